"""Single-trial betas: BIDS derivatives in volumes, surfaces and CIFTI; outputs of GLMsingle."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from nibabel.cifti2 import BrainModelAxis, ScalarAxis
from PIL import Image

from published import Dataset, Form, Truth, cut, empty, rewrite, web_page
from published.vim1 import write_v73
from ubrain.data.importers.bids import import_bids

N_IMAGES, GRID, LEFT, RIGHT = 10, (4, 3, 2), 7, 5
OBLIQUE = np.array([[1.9, 0.3, 0, -40], [-0.3, 1.9, 0.1, 20], [0, -0.1, 2, 3], [0, 0, 0, 1]])
MASK = np.arange(24).reshape(GRID) % 3 > 0
# runs as their names sort, which is not their order; images of the trials, -1: none
RUNS = {"sub-01": {2: 12, 10: 13}, "sub-02": {1: 11}}


class Published(Dataset):
    """Ten images, and for each run of each subject trials, and betas (n_trials, x, y, z)."""

    def __init__(self, root: Path) -> None:
        self.root, rng = root, np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (N_IMAGES, 6, 8, 3), np.uint8)
        for i, image in enumerate(self.pixels):
            Image.fromarray(image).save(self.file(f"images/im{i}.png"))
        self.file("test.txt").write_text("im3.png\nim5\n")
        self.shown = {
            (s, r): rng.permutation(np.arange(n) % N_IMAGES)
            for s, m in RUNS.items()
            for r, n in m.items()
        }
        self.betas = {
            key: rng.integers(-900, 900, (len(v), *GRID), np.int16) for key, v in self.shown.items()
        }

    def runs(self, subject: str) -> list[tuple[str, int]]:
        return [key for key in self.shown if key[0] == subject]

    def values(self, subject: str) -> np.ndarray:
        """Responses of the voxels in the mask, (n_trials, n_voxels)."""
        return np.concatenate([self.betas[k][:, MASK] for k in self.runs(subject)]) * 0.01

    def truth(self) -> dict[str, Truth]:
        found = {}
        for subject in RUNS:
            shown = [f"im{i}" for key in self.runs(subject) for i in self.shown[key]]
            found[f"bids-{subject}"] = Truth(shown, self.values(subject), {"im3", "im5"})
        return found

    def pixels_of(self, image_id: str) -> np.ndarray:
        return self.pixels[int(image_id[2:])]


def volume(path: Path, values: np.ndarray, slope: float = 1, affine: np.ndarray = OBLIQUE) -> None:
    image = nib.Nifti1Image(values, affine)
    image.header.set_slope_inter(slope, 0)
    nib.save(image, path)


def volumes(root: Path) -> Published:
    """int16 with a factor; tables of events with rows of answers, and a trial without image."""
    made = Published(root)
    volume(made.file("mask.nii.gz"), MASK.astype(np.uint8))
    volume(made.file("areas.nii.gz"), (np.arange(24) % 4).reshape(GRID).astype(np.int16))
    made.file("areas.tsv").write_text("index\tname\n1\tV1\n2\thV4\n3\tFFA\n")
    for (subject, run), shown in made.shown.items():
        place = f"{subject}/ses-01/func/{subject}_ses-01_task-look_run-{run}"
        stored, names = np.moveaxis(made.betas[subject, run], 0, -1), [f"im{i}.png" for i in shown]
        if subject == "sub-02":  # blanks have volumes
            stored = np.insert(stored, 4, 7, axis=3)
            names.insert(4, "n/a")
        path = made.file(f"betas/{place}_space-T1w_stat-effect_desc-trials_statmap.nii.gz")
        image = nib.Nifti1Image(stored, OBLIQUE)
        image.header.set_slope_inter(0.01, 0)
        with nib.openers.ImageOpener(path, "wb") as file:
            image.header.write_to(file)
            file.write(stored.tobytes(order="F"))
        rows = [(name, "stimulus") for name in names]
        if run == 10:  # answers have none
            rows = [pair for row in rows for pair in (row, ("n/a", "answer"))]
        lines = [
            f"{t}\t1\t{kind}\tstimuli/{n}" if n != "n/a" else f"{t}\t1\t{kind}\tn/a"
            for t, (n, kind) in enumerate(rows)
        ]
        text = "\n".join(["onset\tduration\ttrial_type\tstim_file", *lines, ""])
        made.file(f"raw/{place}_events.tsv").write_text(text)
    return made


def surfaces(root: Path) -> Published:
    made = Published(root)
    for (subject, run), shown in made.shown.items():
        place = f"{subject}/{subject}_run-{run:02d}"
        flat = made.betas[subject, run].reshape(len(shown), -1)[:, : LEFT + RIGHT]
        for hemi, values in zip(
            "LR", np.split(flat * np.float32(0.01), [LEFT], axis=1), strict=True
        ):
            gifti(made.file(f"{place}_hemi-{hemi}_space-fsaverage5_betas.func.gii"), values, hemi)
        rows = "".join(f"im{i},{i}\n" for i in shown)
        made.file(f"{place}_trials.csv").write_text("image,code\n" + rows)
    made.values = (
        lambda s: (
            np.concatenate(  # type: ignore[method-assign]
                [made.betas[k].reshape(-1, 24)[:, : LEFT + RIGHT] for k in made.runs(s)]
            )
            * 0.01
        )
    )
    return made


def gifti(path: Path, values: np.ndarray, hemi: str, encoding: str = "B64GZ") -> None:
    code = nib.nifti1.intent_codes["NIFTI_INTENT_NONE"]
    arrays = [
        nib.gifti.GiftiDataArray(v.astype(np.float32), code, encoding=f"GIFTI_ENCODING_{encoding}")
        for v in values
    ]
    side = {"L": "CortexLeft", "R": "CortexRight"}[hemi]
    meta = nib.gifti.GiftiMetaData({"AnatomicalStructurePrimary": side})
    nib.save(nib.gifti.GiftiImage(meta=meta, darrays=arrays), path)


def models() -> BrainModelAxis:
    return (
        BrainModelAxis.from_surface(np.arange(LEFT) * 2, 20, name="CortexLeft")
        + BrainModelAxis.from_surface(np.arange(RIGHT), 20, name="CortexRight")
        + BrainModelAxis.from_mask(np.ones((2, 1, 1)), name="thalamus_left", affine=OBLIQUE)
    )


def ciftis(root: Path) -> Published:
    made, n = Published(root), LEFT + RIGHT + 2
    for (subject, run), shown in made.shown.items():
        place = f"{subject}/{subject}_task-look_run-{run}"
        flat = made.betas[subject, run].reshape(len(shown), -1)[:, :n] * np.float32(0.01)
        maps = ScalarAxis([f"im{i}" for i in shown])
        path = made.file(f"{place}_space-fsLR_den-91k_betas.dscalar.nii")
        nib.save(nib.Cifti2Image(flat, (maps, models())), path)
        rows = "".join(f"im{i}\n" for i in shown)
        made.file(f"{place}_conditions.tsv").write_text("stimulus\n" + rows)
    made.values = (
        lambda s: (
            np.concatenate(  # type: ignore[method-assign]
                [made.betas[k].reshape(-1, 24)[:, :n] for k in made.runs(s)]
            )
            * 0.01
        )
    )
    return made


def glmsingle(root: Path, matlab: bool) -> Published:
    """A folder per session, as each run of GLMsingle makes one; sessions of two runs."""
    made = Published(root)
    volume(made.file("mask.nii.gz"), MASK.astype(np.uint8))
    made.file("list.txt").write_text("".join(f"im{i}.png\n" for i in range(N_IMAGES)))
    for (subject, run), shown in made.shown.items():
        place = f"{subject}/ses-{run}/GLMestimatesingletrialoutputs"
        betas = np.moveaxis(made.betas[subject, run], 0, -1) * np.float32(0.01)
        runs = np.array([[5, len(shown) - 5]], dtype=float)
        if matlab:
            write = {"modelmd": betas}, {"stimorder": shown[None] + 1.0, "numtrialrun": runs}
            for name, content in zip(
                ("TYPED_FITHRF_GLMDENOISE_RR", "DESIGNINFO"), write, strict=True
            ):
                write_v73(made.file(f"{place}/{name}.mat"), content)
        else:
            rewrite(made.file(f"{place}/TYPED_FITHRF_GLMDENOISE_RR.hdf5"), betasmd=betas)
            rewrite(made.file(f"{place}/DESIGNINFO.hdf5"), stimorder=shown, numtrialrun=runs[0])
    one = made.truth

    def truth() -> dict[str, Truth]:
        sessions = {s: np.repeat(range(len(r)), list(r.values())) for s, r in RUNS.items()}
        return {k: t._replace(units=sessions[k[5:]]) for k, t in one().items()}

    made.truth = truth  # type: ignore[method-assign]
    return made


# --- damage

EVENTS = "raw/sub-01/ses-01/func/sub-01_ses-01_task-look_run-2_events.tsv"
VOLUME = EVENTS.replace("raw", "betas").replace(
    "events.tsv", "space-T1w_stat-effect_desc-trials_statmap.nii.gz"
)
SURFACE = "sub-01/sub-01_run-02_hemi-R_space-fsaverage5_betas.func.gii"
CIFTI = "sub-01/sub-01_task-look_run-2_space-fsLR_den-91k_betas.dscalar.nii"
OUTPUTS = "sub-01/ses-2/GLMestimatesingletrialoutputs"
MODEL = f"{OUTPUTS}/TYPED_FITHRF_GLMDENOISE_RR"


def on(name: str, change: Callable[..., object], *given: Any) -> Callable[[Dataset], object]:
    """Do something to a file."""
    return lambda data: change(data.root / name, *given)


def replaced(path: Path, old: str, new: str, times: int = -1) -> None:
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new, times))


def set_array(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with h5py.File(path, "r+") as file:
        values = change(file[name][()])
        del file[name]
        file[name] = values


def copied(path: Path, old: str, new: str) -> None:
    path.with_name(path.name.replace(old, new)).write_bytes(path.read_bytes())


BAD_VOLUMES = {
    "truncated betas": (on(VOLUME, cut), "run-2_space.* cannot be read"),
    "betas that are an error page": (on(VOLUME, web_page), "cannot be read"),
    "an empty table": (on(EVENTS, empty), r"run-2_events\.tsv cannot be read"),
    "a row too few": (
        on(EVENTS, lambda p: p.write_text("\n".join(p.read_text().splitlines()[:-1]))),
        r"volumes and rows .*run-2: 12 volumes, 11 rows of raw.*run-2_events\.tsv$",
    ),
    "rows that are not in the order of time": (
        on(EVENTS, replaced, "\n3\t", "\n0.5\t", 1),
        "not in the order of onset",
    ),
    "an image that is not there": (
        lambda d: (d.root / "images/im4.png").unlink(),
        r"column 'stim_file' names 10 images, of which 1 are not there, such as stimuli/im4\.png",
    ),
    "two images of a name": (
        lambda d: d.file("images/more/im4.png").write_bytes(
            (d.root / "images/im4.png").read_bytes()
        ),
        "is there twice, as images/im4.png and as images/more/im4.png; name",
    ),
    "a second column that names images": (
        lambda d: [
            p.write_text(p.read_text().replace("stimulus", "im1").replace("answer", "n/a"))
            for p in d.root.rglob("*_events.tsv")
        ],
        "columns stim_file, trial_type all name images; say which with --image-column",
    ),
    "a mask of another place": (
        on("mask.nii.gz", volume, MASK.astype(np.uint8), 1, OBLIQUE + np.eye(4) * 0.01),
        r"its affine differs from that of .* by up to 0\.01",
    ),
    "a mask of another shape": (
        on("mask.nii.gz", volume, np.ones((4, 3, 3), np.uint8)),
        r"\(4, 3, 3\), but the betas .* are \(4, 3, 2\)",
    ),
    "an empty mask": (on("mask.nii.gz", volume, np.zeros(GRID, np.uint8)), "no value is above 0"),
    "two versions of the betas": (
        on(VOLUME, copied, "T1w", "MNI152"),
        "several versions: .*space-MNI152,.*choose with --entities",
    ),
    "betas twice": (on(VOLUME, copied, ".nii.gz", ".nii"), "are the same betas; keep one"),
    "a table twice": (on(EVENTS, copied, ".tsv", ".csv"), "could be the table of trials"),
    "labels that are no numbers": (
        on("areas.nii.gz", volume, np.full(GRID, 0.5, np.float32)),
        "expected whole numbers",
    ),
}
BAD_SURFACES = {
    "truncated": (on(SURFACE, cut), "cannot be read: .*a GIFTI file"),
    "the other hemisphere": (on(SURFACE, replaced, "CortexRight", "CortexLeft"), "contradict"),
    "a map too few": (on(SURFACE, gifti, np.ones((11, RIGHT)), "R"), "have 11, 12 data arrays"),
    "another width": (on(SURFACE, gifti, np.ones((12, RIGHT + 1)), "R"), "choose with --entities"),
    "entities of XML": (
        on(SURFACE, replaced, "<GIFTI ", '<!DOCTYPE GIFTI [<!ENTITY a "b">]><GIFTI ', 1),
        "cannot be read",
    ),
    "numbers in another file": (
        on(SURFACE, replaced, "GZipBase64Binary", "ExternalFileBinary"),
        "not in the file itself",
    ),
}
BAD_CIFTI = {
    "other vertices": (
        on(CIFTI, lambda p: p.write_bytes(p.read_bytes().replace(b"0 2 4 6", b"0 2 4 5"))),
        "at different places; choose with --entities",
    ),
    "truncated": (on(CIFTI, cut), "cannot be read"),
    "a header alone": (on(CIFTI, lambda p: p.write_bytes(p.read_bytes()[:900])), "cannot be read"),
}
BAD_HDF5 = {
    "a list too short": (
        lambda d: d.file("list.txt").write_text("im0\nim1\n"),
        "stimorder goes from 0 to 9, which does not fit 2 images",
    ),
    "a list with a gap": (
        lambda d: replaced(d.root / "list.txt", "im4.png\n", "im4.png\n\n"),
        "an empty line between others",
    ),
    "both bases fit": (
        lambda d: [
            set_array(p, "stimorder", lambda v: v % 8 + 1) for p in d.root.rglob("DESIGNINFO.hdf5")
        ],
        "can be 0 .* or 1 .*--first-condition",
    ),
    "a trial too few": (
        on(f"{MODEL}.hdf5", set_array, "betasmd", lambda v: v[..., 1:]),
        "has 11 trials, stimorder of its DESIGNINFO 12",
    ),
    "other runs": (
        on(f"{OUTPUTS}/DESIGNINFO.hdf5", set_array, "numtrialrun", lambda v: v + 1),
        "numtrialrun has 14 trials, stimorder 12",
    ),
    "no betas": (on(f"{MODEL}.hdf5", rewrite), "'betasmd' is missing"),
    "truncated": (on(f"{MODEL}.hdf5", cut), "cannot be read"),
    "a pickle": (
        on(f"{MODEL}.hdf5", lambda p: p.rename(p.with_suffix(".npy"))),
        "a pickled Python object.* never read; save it as HDF5",
    ),
    "a pickled design": (
        on(f"{OUTPUTS}/DESIGNINFO.hdf5", lambda p: p.rename(p.with_suffix(".npy"))),
        "a pickled Python object",
    ),
}


def given(*names: str, **more: Any) -> Callable[[Path], dict[str, Any]]:
    files = {"mask": "mask.nii.gz", "atlas": "areas.nii.gz", "stimuli": "list.txt"}
    return lambda root: {
        "test_images": root / "test.txt",
        **{n: root / files[n] for n in names},
        **more,
    }


TABLE = CIFTI.replace("space-fsLR_den-91k_betas.dscalar.nii", "conditions.tsv")
FORMS = {
    "bids-volume": Form(
        volumes,
        import_bids,
        given("mask", "atlas"),
        needed=(EVENTS, "mask.nii.gz"),
        link=VOLUME,
        checked=VOLUME,
        damages=BAD_VOLUMES,
        options=(
            (
                {"image_column": "stimulus"},
                "no column 'stimulus'; found duration, onset, stim_file",
            ),
            ({"entities": "T1w"}, "expected such as space-T1w"),
            ({"type": "E"}, "expected one of B, C, D"),
            ({"first_condition": 2}, "expected 0 or 1"),
        ),
        command="bids",
    ),
    "bids-gifti": Form(
        surfaces, import_bids, given(image_column="image"), link=SURFACE, damages=BAD_SURFACES
    ),
    "bids-cifti": Form(
        ciftis, import_bids, given(), needed=(TABLE,), link=CIFTI, damages=BAD_CIFTI
    ),
    "glmsingle-hdf5": Form(
        partial(glmsingle, matlab=False),
        import_bids,
        given("mask", "stimuli"),
        needed=(f"{OUTPUTS}/DESIGNINFO.hdf5", "list.txt"),
        link=f"{MODEL}.hdf5",
        damages=BAD_HDF5,
        options=(
            ({"stimuli": ""}, "--stimuli FILE is missing"),
            ({"first_condition": 1}, "does not fit 10 images counted from 1"),
            ({"type": "B"}, "no subject found"),
        ),
    ),
    "glmsingle-mat": Form(
        partial(glmsingle, matlab=True), import_bids, given("mask", "stimuli"), link=f"{MODEL}.mat"
    ),
}
