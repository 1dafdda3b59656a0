"""NSD: volumes in HDF5 and NIfTI, both surfaces."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import scipy.io

from published import Dataset, Form, Truth, cut, empty, rewrite, web_page
from ubrain.data.importers.nsd import import_nsd

GRID = (5, 4, 3)  # X, Y, Z
BETAS = "betas_fithrf_GLMdenoise_RR"
N_VERTICES = {"fsaverage": {"lh": 20, "rh": 20}, "nativesurface": {"lh": 17, "rh": 23}}
SESSIONS = (1, 2)


class Published(Dataset):
    """A folder as NSD publishes it, with subjects 1 and 2, and the numbers that were written into
    it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.betas: dict[tuple[str, int, str], np.ndarray] = {}
        rng = np.random.default_rng(0)
        self.order = np.concatenate(  # from 1, as in the file; few images a session
            [
                rng.permuted(np.repeat(images, 3))
                for images in rng.permutation(np.arange(1, 10001)).reshape(40, 250)
            ]
        )
        some = rng.choice(750, 90, replace=False)  # which not all subjects have seen three times
        late = 35 * 750 + some
        self.order[some], self.order[late] = self.order[late], self.order[some].copy()
        shared = np.sort(rng.choice(73000, 1000, replace=False)) + 1
        others = np.setdiff1d(np.arange(1, 73001), shared)
        self.images = np.stack(
            [np.concatenate([shared, rng.permutation(others)[:9000]]) for _ in range(8)]
        )
        self.shared = shared - 1  # 0-based
        self.write_design()
        self.pixels = rng.integers(0, 256, (73000, 3, 2, 3), np.uint8)
        with h5py.File(self.file("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"), "w") as file:
            file["imgBrick"] = self.pixels

    def write_design(
        self, order: np.ndarray | None = None, images: np.ndarray | None = None
    ) -> None:
        content = {
            "masterordering": (self.order if order is None else order)[None].astype(np.uint16),
            "subjectim": (self.images if images is None else images).astype(np.int32),
            "sharedix": self.images[:1, :1000].astype(np.float64),
        }
        scipy.io.savemat(self.file("nsddata/experiments/nsd/nsd_expdesign.mat"), content)

    def shown(self, subject: int, session: int) -> np.ndarray:
        """0-based numbers of the images of a session."""
        return self.images[subject - 1][self.order[(session - 1) * 750 : session * 750] - 1] - 1

    def write_stim_info(self) -> None:
        table = pd.DataFrame(
            {
                "cocoId": np.arange(73000) + 500000,
                "nsdId": np.arange(73000),
                "shared1000": np.isin(np.arange(73000), self.shared),
            }
        )
        table.to_csv(self.file("nsddata/experiments/nsd/nsd_stim_info_merged.csv"))

    def write_behaviour(self, subject: int, sessions: list[int], base: int = 1) -> None:
        parts = [
            pd.DataFrame(
                {
                    "SUBJECT": subject,
                    "SESSION": s,
                    "RUN": 1,
                    "TRIAL": 1,
                    "73KID": self.shown(subject, s) + base,
                    "RT": np.nan,
                }
            )
            for s in sessions
        ]
        pd.concat(parts).to_csv(
            self.file(f"nsddata/ppdata/subj{subject:02d}/behav/responses.tsv"),
            sep="\t",
            index=False,
        )

    def betas_folder(self, subject: int, space: str) -> str:
        return f"nsddata_betas/ppdata/subj{subject:02d}/{space}/{BETAS}"

    def write_volume(
        self, subject: int, session: int, kind: str = "hdf5", space: str = "func1pt8mm"
    ) -> np.ndarray:
        """Betas (X, Y, Z, 750) int16: ten of 60 voxels are outside the brain."""
        rng = np.random.default_rng([subject, session])
        betas = rng.normal(100, 400, (*GRID, 750)).astype(np.int16)
        betas[0, 0] = betas[4, 3] = 0
        betas[0, 1:, 0] = 0
        self.write_volume_file(
            f"{self.betas_folder(subject, space)}/betas_session{session:02d}", betas, kind
        )
        return betas

    def write_volume_file(self, name: str, betas: np.ndarray, kind: str) -> None:
        if kind in ("hdf5", "mat"):
            with h5py.File(self.file(f"{name}.{kind}"), "w") as file:
                file.create_dataset("betas", data=betas.T, chunks=(750, 1, 1, 1))
        else:
            self.write_nifti(f"{name}.{kind}", betas)

    def write_nifti(self, name: str, values: np.ndarray) -> None:
        """As NIfTI_20140122 does: scl_slope 0, sform 1, the origin in the middle of the volume."""
        affine = np.diag([1.8, 1.8, 1.8, 1.0])
        affine[:3, 3] = -(np.array(values.shape[:3]) - 1) / 2 * 1.8
        path = self.file(name.removesuffix(".gz"))
        nib.save(nib.Nifti1Image(values, affine), path)
        data = bytearray(path.read_bytes())
        data[112:120] = struct.pack("<ff", 0, 0)
        if name.endswith(".gz"):
            path.unlink()
            self.file(name).write_bytes(gzip.compress(bytes(data), 1))
        else:
            path.write_bytes(data)

    def write_volume_labels(self, subject: int = 1, space: str = "func1pt8mm") -> np.ndarray:
        """nsdgeneral and others; -1 outside the cortex, 0 cortex without a label. Returns
        nsdgeneral.
        """
        place = f"nsddata/ppdata/subj{subject:02d}/{space}"
        brain = np.ones(GRID, np.int16)
        brain[0, 0] = brain[4, 3] = 0
        brain[0, 1:, 0] = 0
        self.write_nifti(f"{place}/brainmask.nii.gz", brain)
        general = np.full(GRID, -1.0)
        general[1:4] = 0
        general[1:4, 1:3] = 1
        self.write_nifti(f"{place}/roi/nsdgeneral.nii.gz", general)
        visual = np.where(general >= 0, 0, -1.0)
        visual[1, 1], visual[2, 1], visual[3, 2] = 1, 7, 2
        self.write_nifti(f"{place}/roi/prf-visualrois.nii.gz", visual)
        kastner = np.where(general >= 0, 0, -1.0)
        kastner[1, 1, 0], kastner[1, 0, 0] = 1, 25
        self.write_nifti(f"{place}/roi/Kastner2015.nii.gz", kastner)
        for side, half in (("lh", slice(0, 2)), ("rh", slice(2, 5))):
            mine = np.full(GRID, -1.0)
            mine[half] = visual[half]
            self.write_nifti(f"{place}/roi/{side}.prf-visualrois.nii.gz", mine)
        self.write_nifti(
            f"{place}/roi/floc-faces.nii.gz", np.where(general >= 0, 0, -1.0)
        )  # nobody has every area
        return general

    def write_table(self, name: str, text: str) -> None:
        self.file(f"nsddata/freesurfer/subj01/label/{name}.mgz.ctab").write_text(text)

    def write_mgh(self, name: str, values: np.ndarray) -> None:
        full = values.astype(np.float32).reshape(len(values), 1, 1, *values.shape[1:])
        nib.save(nib.MGHImage(full, np.eye(4)), self.file(name))

    def write_surface(self, subject: int, session: int, space: str) -> dict[str, np.ndarray]:
        """Betas (vertices, 750) of both hemispheres: float32 with NaN on fsaverage, int16 with 0
        on the native surface.
        """
        rng, written = np.random.default_rng([subject, session]), {}
        for side, n in N_VERTICES[space].items():
            name = f"{self.betas_folder(subject, space)}/{side}.betas_session{session:02d}"
            if space == "fsaverage":
                written[side] = rng.normal(0.4, 1.5, (n, 750)).astype(np.float32)
                written[side][3] = np.nan
                self.write_mgh(f"{name}.mgh", written[side])
            else:
                written[side] = rng.normal(100, 400, (n, 750)).astype(np.int16)
                written[side][3] = 0
                with h5py.File(self.file(f"{name}.hdf5"), "w") as file:
                    file.create_dataset("betas", data=written[side].T, chunks=(750, 1))
        return written

    def write_surface_labels(self, space: str) -> None:
        folder = f"nsddata/freesurfer/{'fsaverage' if space == 'fsaverage' else 'subj01'}/label"
        for side, n in N_VERTICES[space].items():
            self.write_mgh(
                f"{folder}/{side}.nsdgeneral.mgz", np.arange(n) % 2
            )  # odd vertices; 3 has no data
            self.write_mgh(f"{folder}/{side}.streams.mgz", np.arange(n) % 8)
            self.write_mgh(
                f"{folder}/{side}.prfangle.mgz", np.linspace(0, 360, n)
            )  # a map, not labels

    def truth(self) -> dict[str, Truth]:
        """Of subject 1: all that `make` has written."""
        shown = np.concatenate([self.shown(1, s) for s in SESSIONS])
        names = [f"nsd-{i:05d}" for i in shown]
        test = {f"nsd-{i:05d}" for i in shown if i in set(self.shared.tolist())}
        units = np.repeat(np.arange(len(SESSIONS)), 750)
        return {"nsd-subj01": Truth(names, self.values, test, units=units, dropped=self.dropped)}

    def pixels_of(self, image_id: str) -> np.ndarray:
        return self.pixels[int(image_id.removeprefix("nsd-"))]


def make(root: Path, space: str = "func1pt8mm", kind: str = "hdf5") -> Published:
    """Two sessions of subject 1, and all tables."""
    made = Published(root)
    made.write_stim_info()
    made.write_behaviour(1, [*SESSIONS])
    if space in N_VERTICES:
        made.write_surface_labels(space)
        sides = [made.write_surface(1, s, space) for s in SESSIONS]
        odd = {side: [v for v in range(1, n, 2) if v != 3] for side, n in N_VERTICES[space].items()}
        parts = [np.concatenate([s[side][rows] for side, rows in odd.items()]).T for s in sides]
        made.values = np.concatenate(parts) / (1 if space == "fsaverage" else 300)
        made.dropped = 2
    else:
        general = made.write_volume_labels(space=space)
        made.write_table("prf-visualrois", "0 Unknown\n1 V1v\n2 V1d\n")
        betas = [made.write_volume(1, s, kind, space) for s in SESSIONS]
        ncsnr = np.full(GRID, 0.7, np.float32)
        made.write_nifti(f"{made.betas_folder(1, space)}/ncsnr.nii.gz", ncsnr)
        at = (general == 1).T
        made.values = np.concatenate([b.transpose(3, 2, 1, 0)[:, at] for b in betas]) / 300
        made.dropped = 0
    return made


# --- damage

HDF5, NIFTI = (
    f"nsddata_betas/ppdata/subj01/func1pt8mm/{BETAS}/betas_session01.{kind}"
    for kind in ("hdf5", "nii.gz")
)
MGH = f"nsddata_betas/ppdata/subj01/fsaverage/{BETAS}/rh.betas_session01.mgh"
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
GENERAL, KASTNER = (
    f"nsddata/ppdata/subj01/func1pt8mm/roi/{name}.nii.gz" for name in ("nsdgeneral", "Kastner2015")
)


def on(name: str, spoil: Callable[[Path], object]) -> Callable[[Published], object]:
    return lambda nsd: spoil(nsd.root / name)


def betas(**arrays: Any) -> Callable[[Published], object]:
    return on(HDF5, lambda path: rewrite(path, **arrays))


def huge(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "betas", (750, 1 << 20, 1 << 20, 1 << 20), np.int16, chunks=(750, 1, 1, 1)
        )


def linked(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    with h5py.File(path, "w") as file:
        file["betas"] = h5py.ExternalLink(path.with_suffix(".elsewhere").name, "/betas")


def left(part: float) -> Callable[[Published], object]:
    """The beginning of a file: so many bytes, or such a share of them."""

    def spoil(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(part * len(data))] if 0 < part < 1 else data[: int(part)])

    return on(NIFTI, spoil)


def header(where: slice, value: bytes, more: int = 0) -> Callable[[Published], object]:
    """Other bytes in the header of a NIfTI file, and zeros behind the last."""

    def spoil(path: Path) -> None:
        data = bytearray(gzip.decompress(path.read_bytes()))
        data[where] = value
        path.write_bytes(gzip.compress(bytes(data) + bytes(more)))

    return on(NIFTI, spoil)


def one_based(nsd: Published) -> None:
    path = nsd.root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
    table = pd.read_csv(path, index_col=0)
    table["nsdId"] += 1
    table.to_csv(path)


def junk(path: Path) -> None:
    path.write_bytes(b"junk" * 99)


HDF5_DAMAGES = {
    "truncated": (on(HDF5, cut), "cannot be read|is not an HDF5 file"),
    "empty": (on(HDF5, empty), "is not an HDF5 file"),
    "a web page": (on(HDF5, web_page), "is not an HDF5 file"),
    "no betas": (betas(beta=np.zeros((750, 3, 4, 5), np.int16)), "'betas' is missing; found beta"),
    "not transposed": (
        betas(betas=np.zeros((5, 4, 3, 750), np.int16)),
        r"expected \(750, 3, 4, 5\)",
    ),
    "float": (betas(betas=np.zeros((750, 3, 4, 5))), "'int16', got .* float64"),
    "two trials": (betas(betas=np.zeros((2, 3, 4, 5), np.int16)), r"got \(2, 3, 4, 5\)"),
    "absurd size": (on(HDF5, huge), r"expected \(750, 3, 4, 5\)"),
    "links within HDF5": (on(HDF5, linked), "'betas' is a link"),
    "a group": (betas(**{"betas/x": np.zeros(3)}), "'betas' is not an array"),
    "a design from 0": (
        lambda nsd: nsd.write_design(order=nsd.order - 1),
        "masterordering: expected numbers from 1 to 10000",
    ),
    "an empty design": (
        lambda nsd: nsd.write_design(order=nsd.order[:0]),
        r"'masterordering': expected whole numbers, got \(1, 0\)",
    ),
    "images from 0": (
        lambda nsd: nsd.write_design(images=nsd.images - nsd.images.min()),
        "subjectim: expected|should be those of sharedix",
    ),
    "behaviour of other images": (
        lambda nsd: nsd.write_behaviour(1, [1], base=0),
        r"session 1: nsd_expdesign\.mat and .*responses\.tsv name different images",
    ),
    "a table of images from 1": (one_based, "does nsdId count from 0"),
    **{
        f"{name.rpartition('/')[2]} {spoil.__name__}": (on(name, spoil), name.rpartition("/")[2])
        for name in (DESIGN, STIMULI, GENERAL, KASTNER)
        for spoil in (cut, junk)
    },
}
NIFTI_DAMAGES = {
    **{
        f"{part} is left": (left(part), r"betas_session01\.nii\.gz cannot be read")
        for part in (0, 100, 352, 0.5, -9)
    },
    "scaled": (
        header(slice(112, 120), struct.pack("<ff", 1 / 300, 0)),
        "its header scales the numbers by 0.00333",
    ),
    "data in the header": (
        header(slice(108, 112), struct.pack("<f", 0), 352),
        "cannot be read: its header says that the data begin at byte 0",
    ),
    "float": (
        lambda nsd: nsd.write_nifti(NIFTI, np.zeros((*GRID, 750), np.float32)),
        "'int16', got .* float32",
    ),
    "another grid": (
        lambda nsd: nsd.write_nifti(NIFTI, np.zeros((3, 4, 5, 750), np.int16)),
        r"expected \(5, 4, 3, 750\) of kind 'int16', got \(3, 4, 5, 750\)",
    ),
}
FORMS = {
    "nsd-hdf5": Form(
        make,
        import_nsd,
        needed=(DESIGN, STIMULI, GENERAL, "nsddata_betas/ppdata"),
        link=STIMULI,
        damages=HDF5_DAMAGES,
        options=(
            ({"space": "MNI"}, "--space MNI: expected one of func1pt8mm"),
            ({"test": "all"}, "--test all: expected one of"),
            ({"mask": "."}, "--mask is for --space fsaverage"),
            ({"sessions": "1-"}, "expected numbers such as 1-10,12"),
            (
                {"sessions": "1,3,5-7"},
                "subj01: no responses of session 3, 5-7; there are sessions 1-2",
            ),
            ({"areas": "no-such"}, r"has no .*no-such\.nii\.gz"),
            ({"betas": "betas_x"}, "no subject found"),
        ),
        command="nsd",
    ),
    "nsd-nifti": Form(
        lambda root: make(root, kind="nii.gz"), import_nsd, checked=NIFTI, damages=NIFTI_DAMAGES
    ),
    "nsd-fsaverage": Form(
        lambda root: make(root, "fsaverage"),
        import_nsd,
        lambda root: {"space": "fsaverage"},
        link=MGH,
        damages={"truncated": (on(MGH, cut), r"rh\.betas_session01\.mgh cannot be read")},
    ),
    "nsd-native": Form(
        lambda root: make(root, "nativesurface"),
        import_nsd,
        lambda root: {"space": "nativesurface"},
    ),
}
