"""BOLD5000: release 2 in volumes and in areas, release 1 in areas."""

import gzip
import shutil
import struct
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import scipy.io
from PIL import Image

from published import Dataset, Form, Truth, cut, empty, flip, move_out, rewrite, web_page
from ubrain.data.importers.bold5000 import import_bold5000

GRID = (5, 4, 3)
VERSION = "TYPED-FITHRF-GLMDENOISE-RR"
LENGTHS = {"CSI1": [37] * 15, "CSI4": [37, 74] + [37] * 7}  # trials of each session
N_REPEATED = 24
AREAS = {
    "EarlyVis": np.s_[1:3, 1:3, 0],
    "LOC": np.s_[1:3, 1:3, 1],
    "PPA": np.s_[2:4, 1, 1:],
}  # LOC and PPA overlap
NAMES = [side + a for side in ("LH", "RH") for a in ("EarlyVis", "LOC", "OPA", "PPA", "RSC")]
PICTURES = "BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli"
RELEASE1 = "ROIs/CSI4/{0}/CSI4_ROIs_TR34.{0}"


def image_names(n: int) -> list[str]:
    """As BOLD5000 names COCO's, ImageNet's and its own images."""
    forms = ("COCO/COCO_train2014_{:012d}.jpg", "ImageNet/n01930112_{}.JPEG", "Scene/airport{}.jpg")
    return [forms[i % 3].format(1000 + i) for i in range(n)]


class Published(Dataset):
    """A folder as one gets it from figshare, Dropbox and OpenNeuro, and the numbers that were
    written into it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        names = image_names(N_REPEATED + 15 * 37 - 17 * N_REPEATED)
        files = [name.split("/")[1] for name in names]
        self.repeated, once = files[:N_REPEATED], files[N_REPEATED:]
        shown = {
            "CSI1": self.repeated * 17 + once,
            "CSI4": self.repeated[:8] * 28 + self.repeated[8:] + once[:130],
        }
        self.shown = {
            subject: rng.permutation(trials).tolist() for subject, trials in shown.items()
        }
        for name in names:
            path = self.file(f"BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli/{name}")
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(
                path, "JPEG", quality=95
            )
        self.file(f"BOLD5000_Stimuli/Scene_Stimuli/Original_Images/{names[0]}").write_bytes(
            b"another version"
        )
        self.write_repeated()

    def write_repeated(self) -> None:
        self.text("BOLD5000_Stimuli/Scene_Stimuli/repeated_stimuli_113_list.txt", self.repeated)

    def text(self, name: str, lines: list[str]) -> Path:
        path = self.file(name)
        path.unlink(missing_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return path

    def write_names(self, subject: str) -> Path:
        return self.text(f"{subject}_imgnames.txt", self.shown[subject])

    def write_lists(self, subject: str) -> None:
        """Presentation lists of all runs, with the prefix of repeats, in an order that is not
        alphabetic.
        """
        shown = self.with_prefix(subject)
        for session, start in enumerate(np.cumsum([0, *LENGTHS[subject][:-1]]), start=1):
            for run in range(LENGTHS[subject][session - 1] // 37):
                lines = shown[start + run * 37 : start + (run + 1) * 37]
                lists = f"BOLD5000_Stimuli/Stimuli_Presentation_Lists/{subject}"
                place = f"{lists}/{subject}_sess{session:02d}"
                self.text(f"{place}/CSI_sess{session:02d}_run{run + 1:02d}.txt", lines)

    def with_prefix(self, subject: str) -> list[str]:
        """Names as release 1 writes them: repeats are rep_<name>."""
        seen: set[str] = set()
        return [
            f"rep_{name}" if name in seen or seen.add(name) else name
            for name in self.shown[subject]
        ]

    def betas(self, subject: str, session: int) -> np.ndarray:
        """Betas (X, Y, Z, trials): outside the brain NaN or 0."""
        rng = np.random.default_rng([int(subject[-1]), session])
        betas = rng.normal(0.5, 2, (*GRID, LENGTHS[subject][session - 1])).astype(np.float32)
        betas[0], betas[:, 0] = np.nan, 0
        return betas

    def write_session(
        self, subject: str, session: int, name: str = "{}_GLMbetas-{}_ses-{:02d}.nii.gz"
    ) -> Path:
        return self.write_nifti(
            name.format(subject, VERSION, session), self.betas(subject, session)
        )

    def write_nifti(self, name: str, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
        """As make_nii does: scl_slope 0; the affine of the betas is not that of the masks."""
        path = self.file(name.removesuffix(".gz"))
        nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
        data = bytearray(path.read_bytes())
        data[112:120] = struct.pack("<ff", 0, 0)
        path.unlink()
        self.file(name).write_bytes(gzip.compress(bytes(data), 1) if name.endswith(".gz") else data)
        return self.file(name)

    def write_masks(self, subject: str) -> None:
        """The brain mask of release 2, and masks of areas of release 1."""
        affine = np.diag([-2.0, 2, 2, 1])
        brain = np.ones(GRID, np.float32)
        brain[0], brain[:, 0] = 0, 0
        self.write_nifti(f"{subject}_brainmask.nii.gz", brain, affine)
        for area, place in AREAS.items():
            for side, half in (("LH", np.s_[:2]), ("RH", np.s_[2:])):
                mask = np.zeros(GRID, np.uint8)
                mask[place] = 1
                kept = np.zeros(GRID, np.uint8)
                kept[half] = mask[half]
                if kept.any():
                    self.write_nifti(self.mask(subject, side + area), kept, affine)

    @staticmethod
    def mask(subject: str, area: str) -> str:
        return f"derivatives/spm/sub-{subject}/sub-{subject}_mask-{area}.nii.gz"

    def write_release2(self, subject: str, sessions: list[int] | None = None) -> None:
        self.write_names(subject)
        self.write_masks(subject)
        for session in sessions or range(1, len(LENGTHS[subject]) + 1):
            self.write_session(subject, session)

    def areas(self, subject: str) -> dict[str, np.ndarray]:
        """Responses of release 1, (n_trials, n_voxels) for each area; the first voxel of LHPPA is
        also one of LHLOC.
        """
        rng, n = np.random.default_rng(int(subject[-1])), len(self.shown[subject])
        widths = {
            "LHPPA": 3,
            "RHPPA": 4,
            "LHLOC": 5,
            "RHLOC": 6,
            "LHEarlyVis": 2,
            "RHEarlyVis": 3,
            "LHOPA": 1,
            "RHOPA": 2,
            "LHRSC": 2,
            "RHRSC": 1,
        }
        arrays = {name: rng.normal(size=(n, width)) for name, width in widths.items()}
        arrays["LHLOC"][:, 2] = arrays["LHPPA"][:, 0]
        return arrays

    def write_release1(self, subject: str, kind: str = "h5", tr: str = "34") -> Path:
        path = self.file(f"ROIs/{subject}/{kind}/{subject}_ROIs_TR{tr}.{kind}")
        arrays = {name: values * int(tr[0]) for name, values in self.areas(subject).items()}
        if kind == "mat":
            scipy.io.savemat(path, arrays)
        else:
            with h5py.File(path, "w") as file:
                for name, values in arrays.items():
                    file[name] = values
        self.text(f"ROIs/stim_lists/CSI0{subject[-1]}_stim_lists.txt", self.with_prefix(subject))
        return path

    def truth(self) -> dict[str, Truth]:
        """Of CSI4."""
        shown = [Path(name).stem for name in self.shown["CSI4"]]
        test = {Path(name).stem for name in self.repeated}
        units = np.repeat(np.arange(9), LENGTHS["CSI4"])
        return {"bold5000-CSI4": Truth(shown, self.values, test, units=units)}

    def pixels_of(self, image_id: str) -> np.ndarray:
        (path,) = (self.root / PICTURES).glob(f"*/{image_id}.*")
        return np.asarray(Image.open(path))


def make_volumes(root: Path) -> Published:
    """Release 2 of CSI4."""
    made = Published(root)
    made.write_release2("CSI4")
    chosen = np.zeros(GRID, dtype=bool)
    for place in AREAS.values():
        chosen[place] = True
    betas = np.concatenate([made.betas("CSI4", s) for s in range(1, 10)], axis=-1)
    made.values = betas.transpose(3, 2, 1, 0)[:, chosen.T]
    return made


def make_areas(root: Path, kind: str) -> Published:
    """Areas of CSI4, of release 2 (npy) or 1 (h5, mat), and its presentation lists."""
    made = Published(root)
    made.write_names("CSI4")
    made.write_lists("CSI4")
    arrays = made.areas("CSI4")
    if kind == "npy":
        for name, values in arrays.items():
            np.save(made.file(f"py/CSI4_GLMbetas-{VERSION}_allses_{name}.npy"), values)
    else:
        made.write_release1("CSI4", kind)
    parts = [np.delete(arrays[n], 0, axis=1) if n == "LHPPA" else arrays[n] for n in NAMES]
    made.values = np.concatenate(parts, axis=1) * (1 if kind == "npy" else 3)
    return made


# --- damage


def release1(bold: Published) -> Path:
    return bold.root / RELEASE1.format("h5")


def betas_file(bold: Published, session: int = 2) -> Path:
    return bold.root / f"CSI4_GLMbetas-{VERSION}_ses-{session:02d}.nii.gz"


def scaled(bold: Published) -> None:
    data = bytearray(gzip.decompress(betas_file(bold).read_bytes()))
    data[112:120] = struct.pack("<ff", 0.01, 0)
    betas_file(bold).write_bytes(gzip.compress(bytes(data)))


def absurd(bold: Published) -> None:
    """A header of 32767 × 32767 × 32767 voxels, in a small file."""
    data = bytearray(gzip.decompress(betas_file(bold).read_bytes()))
    data[42:48] = struct.pack("<hhh", 32767, 32767, 32767)
    betas_file(bold).write_bytes(gzip.compress(bytes(data)))


def like(bold: Published, values: np.ndarray) -> None:
    bold.write_nifti(betas_file(bold).name, values)


def repeat_line(bold: Published) -> None:
    bold.text("CSI4_imgnames.txt", [bold.shown["CSI4"][0], *bold.shown["CSI4"]])


def another_list(bold: Published) -> None:
    bold.text(
        "BOLD5000_Stimuli/Stimuli_Presentation_Lists/CSI4/CSI4_imgnames.txt",
        bold.shown["CSI4"][::-1],
    )


def twice(bold: Published) -> None:
    bold.write_session("CSI4", 2, "copy/{}_GLMbetas-{}_ses-{:02d}.nii.gz")


def remove(bold: Published, *names: str) -> None:
    for name in names:
        path = bold.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def damaged_image(bold: Published) -> None:
    (path,) = (bold.root / "BOLD5000_Stimuli/Scene_Stimuli/Presented_Stimuli").rglob(
        bold.shown["CSI4"][5]
    )
    path.unlink()
    path.write_bytes(b"\xff\xd8\xff")


MASK = Published.mask("CSI4", "LHLOC")
DAMAGES = {
    "no masks": (
        lambda b: remove(b, "derivatives"),
        r"has no masks such as sub-CSI4_mask-LHEarlyVis.* --areas none",
    ),
    "no images": (
        lambda b: remove(b, f"{PICTURES}/ImageNet"),
        r"\d+ of 154 presented images are not there, such as n01930112_\d+\.JPEG",
    ),
    "truncated": (lambda b: cut(betas_file(b)), r"ses-02\.nii\.gz cannot be read"),
    "flipped": (lambda b: flip(betas_file(b)), r"ses-02\.nii\.gz cannot be read"),
    "scaled": (scaled, "its header scales the numbers by 0.01"),
    "absurd size": (absurd, r"expected \(5, 4, 3, n\) .* got \(32767, 32767, 32767, 74\)"),
    "whole numbers": (
        lambda b: like(b, np.ones((*GRID, 74), np.int16)),
        "of kind 'f', got .* int16",
    ),
    "other grid": (
        lambda b: like(b, np.ones((3, 4, 5, 74), np.float32)),
        r"expected \(5, 4, 3, n\)",
    ),
    "a single volume": (lambda b: like(b, np.ones(GRID, np.float32)), r"got \(5, 4, 3\)"),
    "half a run": (
        lambda b: like(b, np.ones((*GRID, 70), np.float32)),
        "70 trials; expected runs of 37",
    ),
    "another session": (
        lambda b: like(b, np.ones((*GRID, 37), np.float32)),
        "have 333 trials, but the list .* has 370 lines",
    ),
    "a line too many": (repeat_line, "have 370 trials, but the list of images has 371 lines"),
    "list of images cut": (
        lambda b: cut(b.root / "CSI4_imgnames.txt"),
        r"trials, but the list|presented images are not there",
    ),
    "two lists of images": (another_list, "name different images; keep the right one"),
    "list as binary": (
        lambda b: (b.root / "CSI4_imgnames.txt").write_bytes(b"\xff" * 99),
        r"imgnames\.txt cannot be read",
    ),
    "two files of a session": (twice, "CSI4, session 2: there are .* keep one there"),
    "test list of others": (
        lambda b: b.text("BOLD5000_Stimuli/Scene_Stimuli/repeated_stimuli_113_list.txt", ["x.jpg"]),
        "none of its images was shown",
    ),
    "mask of another grid": (
        lambda b: b.write_nifti(MASK, np.ones((4, 4, 3), np.uint8)),
        r"LHLOC.*expected \(5, 4, 3\)",
    ),
    "empty mask": (
        lambda b: b.write_nifti(MASK, np.zeros(GRID, np.uint8)),
        "LHLOC.*no voxel is above 0",
    ),
    "mask cut": (lambda b: cut(b.root / MASK), r"LHLOC\.nii\.gz cannot be read"),
    "two masks": (
        lambda b: b.write_nifti(MASK.replace("LOC", "LO"), np.ones(GRID, np.uint8)),
        "another file is a mask",
    ),
    "brain mask of another grid": (
        lambda b: b.write_nifti("CSI4_brainmask.nii.gz", np.ones((4, 4, 3), np.float32)),
        r"brainmask.*expected \(5, 4, 3\)",
    ),
    "two brain masks": (
        lambda b: b.write_nifti("copy/CSI4_brainmask.nii.gz", np.ones(GRID, np.float32)),
        r"CSI4_brainmask\.nii\.gz and copy/CSI4_brainmask\.nii\.gz differ; keep the right one",
    ),
    "link to images": (lambda b: move_out(b.root / "BOLD5000_Stimuli", b.root), "is a link to"),
    "damaged image": (damaged_image, r"image .* cannot be read"),
}
for kind, spoil in {"empty": empty, "a web page": web_page}.items():
    DAMAGES[kind] = (lambda b, spoil=spoil: spoil(betas_file(b)), r"ses-02\.nii\.gz cannot be read")


def endless(path: Path, shape: tuple[int, int]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("LHPPA", shape, np.float64, chunks=(1, 1000))


AREA_DAMAGES = {
    "truncated": (lambda b: cut(release1(b)), r"CSI4_ROIs_TR34\.h5 (cannot be read|is not)"),
    "nothing known": (
        lambda b: rewrite(release1(b), other=np.zeros((370, 2))),
        "no arrays LHEarlyVis",
    ),
    "a row too few": (
        lambda b: rewrite(release1(b), LHPPA=np.zeros((369, 2))),
        r"LHPPA: expected \(370, .* got \(369, 2\)",
    ),
    "whole numbers": (
        lambda b: rewrite(release1(b), LHPPA=np.zeros((370, 2), int)),
        "floating point numbers, .* int64",
    ),
    "one axis": (lambda b: rewrite(release1(b), LHPPA=np.zeros(370)), r"got \(370,\)"),
    "absurd size": (
        lambda b: endless(release1(b), (370, 1 << 40)),
        "too large to be what is expected",
    ),
    "too many bytes": (
        lambda b: endless(release1(b), (370, 30000)),
        "are too large to be what is expected",
    ),
    "too many voxels": (
        lambda b: rewrite(release1(b), LHPPA=np.zeros((370, 9999)), RHPPA=np.zeros((370, 2))),
        r"up to 1\) floating",
    ),
    "constant": (
        lambda b: rewrite(release1(b), LHPPA=np.ones((370, 2))),
        "no usable voxel is left",
    ),
}

FORMS = {
    "bold5000-volumes": Form(
        make_volumes,
        import_bold5000,
        needed=("CSI4_imgnames.txt", PICTURES),
        link=f"CSI4_GLMbetas-{VERSION}_ses-02.nii.gz",
        checked=f"CSI4_GLMbetas-{VERSION}_ses-01.nii.gz",
        damages=DAMAGES,
        options=(
            (
                {"responses": "surface"},
                "--responses surface: expected one of volumes, areas, release1",
            ),
            ({"tr": "6"}, "--tr 6: expected one of"),
            ({"areas": "V1"}, "--areas V1: expected all, none, or names from EarlyVis"),
            ({"areas": "none", "responses": "release1"}, "--areas none is for --responses volumes"),
            ({"areas": "RSC"}, "has no masks such as sub-CSI4_mask-LHRSC"),
            ({"sessions": "x"}, "expected numbers such as"),
            ({"sessions": "9-10"}, "CSI4: no responses of session 10; there are sessions 1-9"),
            (
                {"responses": "areas"},
                r"files such as CSI1_GLMbetas-.*_allses_LHPPA\.npy\): no subject",
            ),
            ({"images": "not-there"}, "not-there: no such folder"),
        ),
        command="bold5000",
    ),
    "bold5000-areas": Form(
        lambda root: make_areas(root, "npy"), import_bold5000, lambda root: {"responses": "areas"}
    ),
    "bold5000-h5": Form(
        lambda root: make_areas(root, "h5"),
        import_bold5000,
        lambda root: {"responses": "release1"},
        needed=("ROIs/stim_lists/CSI04_stim_lists.txt",),
        damages=AREA_DAMAGES,
    ),
    "bold5000-mat": Form(
        lambda root: make_areas(root, "mat"),
        import_bold5000,
        lambda root: {"responses": "release1"},
    ),
}
