"""LAION-fMRI: both layouts, which differ in masks of areas, in how images are packed, and in what
tells which voxels are the brain.
"""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from published import Dataset, Form, Truth, cut, empty, web_page
from ubrain.data.importers.laion import import_laion

GRID, N_TRIALS = (5, 4, 3), 16  # X, Y, Z; of a session
SESSIONS = (1, 2)
AFFINE = np.diag([1.778, 1.778, 1.778, 1.0])
GLM, T1W = "derivatives/glmsingle-tedana", "task-images_space-T1w"
CODES = {"sub-01": "01", "sub-03": "04"}  # that of names of images is not that of the subject
SHARED = [f"shared_12rep_LAION_cluster_{n}_i0.jpg" for n in range(5)]
SHARED += ["shared_4rep_OOD_shape_a dog .jpg", "shared_4rep_OOD_shape_a dog .png"]
CONFLICT = SHARED[1]  # on which files of the split tau disagree
OUT = SHARED[5:]  # out of distribution: in no file of tau


def own(subject: str) -> list[str]:
    """Images that a subject alone has seen."""
    return [f"unique_LAION_new_cluster_{n}_i1_p{CODES[subject]}.jpg" for n in range(4)]


NAMES = SHARED + own("sub-01") + own("sub-03")


class Published(Dataset):
    """Two subjects with two sessions."""

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.pixels = root, dict[str, bytes](), dict[str, np.ndarray]()
        for number, name in enumerate(NAMES):
            self.draw(name, np.random.default_rng(number))
        self.brain = np.zeros(GRID, bool)
        self.brain[1:4, 1:3] = True
        self.test: set[str] = {*SHARED}
        for subject in CODES:
            for session in SESSIONS:
                self.write_session(subject, session)
            percent = np.where(self.brain, 75, np.nan).astype(np.float32)
            for name in ("12rep", "4rep", "Allrep"):
                self.write_map(f"{self.start(subject)}_desc-Noiseceiling{name}_statmap", percent)

    def draw(self, name: str, rng: np.random.Generator) -> None:
        """An image, and its pixels as somebody else's few lines have them."""
        stream, jpg = io.BytesIO(), name.endswith(".jpg")
        picture = rng.integers(0, 256, (9, 8, 3 if jpg else 4), np.uint8)
        Image.fromarray(picture).save(stream, "JPEG" if jpg else "PNG")
        self.data[name] = stream.getvalue()
        if jpg:
            self.pixels[name] = np.asarray(Image.open(stream))
        else:
            part = picture[..., 3:] / 255
            seen = picture[..., :3] / 255 * part + 0.5 * (1 - part)
            self.pixels[name] = np.rint(255 * seen).astype(np.uint8)

    def start(self, subject: str, session: int | None = None, kind: str = T1W) -> str:
        inside = f"/ses-{session:02d}/func" if session else ""
        of = f"_ses-{session:02d}" if session else ""
        return f"{GLM}/{subject}{inside}/{subject}{of}_{kind}"

    def shown(self, subject: str, session: int) -> list[str]:
        """The image of each beta."""
        names = SHARED + own(subject)
        rng = np.random.default_rng([session, int(subject[-2:])])
        return [names[i] for i in rng.permutation(np.arange(N_TRIALS) % len(names))]

    def betas(self, subject: str, session: int) -> np.ndarray:
        """(X, Y, Z, trials), with a voxel that is not there in one session."""
        rng = np.random.default_rng([session, int(subject[-2:]), 7])
        values = rng.normal(0.3, 2, (*GRID, N_TRIALS)).astype(np.float32)
        values[0] = 0
        if session == 2:
            values[3, 2, 1] = np.nan
        return values

    def write_session(self, subject: str, session: int) -> None:
        path = f"{self.start(subject, session)}_stat-effect_desc-SingletrialBetas_statmap"
        self.write_map(path, self.betas(subject, session))
        self.write_trials(subject, session)

    def write_trials(self, subject: str, session: int, /, **columns: object) -> None:
        """In another order than that of the betas."""
        table = {
            "session": session,
            "run": 1 + np.arange(N_TRIALS) // 8,
            "beta_index": np.arange(N_TRIALS),
            "label": self.shown(subject, session),
        }
        table = pd.DataFrame({k: v for k, v in {**table, **columns}.items() if v is not None})
        path = self.start(subject, session, "task-images_desc-SingletrialBetas_trials.tsv")
        table.sample(frac=1, random_state=0).to_csv(self.file(path), sep="\t", index=False)

    def write_map(self, name: str, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
        nib.save(nib.Nifti1Image(values, affine), self.file(f"{name}.nii.gz"))

    def write_split(self, name: str, train: list[str], test: list[str], **more: object) -> None:
        """As `re:vision` has them; `pool` names the subject by the code of its images."""
        variant = {"variant_id": 0, "train_ids": sorted(train), "test_ids": sorted(test)}
        content = {"name": name, "pool": "p01", "splitter": "s", "params": {}}
        content |= {"n_train": len(train), "n_test": len(test), "variants": [variant], **more}
        self.file(f"splits/data/{name}.json").write_text(json.dumps(content))

    def write_splits(self) -> None:
        """The split tau, on an image of which the files disagree; none has those of OUT."""
        self.write_split("shared/tau", SHARED[2:5], SHARED[:2])
        for subject, test in (("sub-01", SHARED[:2]), ("sub-03", SHARED[:1])):
            test = test + own(subject)[:1]
            train = [n for n in SHARED + own(subject) if n not in [*test, *OUT]]
            self.write_split(f"{subject}/tau", train, test)
        self.test = {SHARED[0], own("sub-01")[0], own("sub-03")[0]}

    def digest(self, name: str) -> str:
        """SHA-256 of a file of a split."""
        data = (self.root / f"splits/data/{name}.json").read_bytes()
        return hashlib.sha256(data).hexdigest()

    def write_packed(self, names: list[str] = NAMES, rows: int | None = None) -> None:
        """Images as the newer layout has them: files in an array, in the order of a table."""
        table = {"image_name": names, "dataset": "LAION", "participant": 1, "n_reps": 4}
        pd.DataFrame(table).to_csv(self.file("stimuli/task-images_metadata.csv"), index=False)
        with h5py.File(self.file(PACKED), "w") as file:
            packed = file.create_dataset("images", (rows or len(names),), h5py.vlen_dtype("u1"))
            for row, name in enumerate(names[: len(packed)]):
                packed[row] = np.frombuffer(self.data[name], np.uint8)

    def truth(self) -> dict[str, Truth]:
        found = {}
        for subject in CODES:
            shown = [name for s in SESSIONS for name in self.shown(subject, s)]
            good = self.brain.copy()
            good[3, 2, 1] = False
            values = np.concatenate([self.betas(subject, s)[good].T for s in SESSIONS])
            units = np.repeat(SESSIONS, N_TRIALS)
            test = self.test & {*shown}
            found[f"laion-{subject}"] = Truth(shown, values, test, units=units, dropped=1)
        return found

    def pixels_of(self, image_id: str) -> np.ndarray:
        return self.pixels[image_id]


def make_older(root: Path) -> Published:
    """With splits."""
    made = Published(root)
    for name, data in made.data.items():
        made.file(f"stimuli/images/{name}").write_bytes(data)
    made.file("stimuli/stimuli.tsv").write_text("stimulus\n" + "".join(f"{n}\n" for n in NAMES))
    made.write_splits()
    for subject in CODES:
        made.write_map(f"{made.start(subject)}_desc-meanR2gt15mask_mask", made.brain.astype("u1"))
        for number, name in enumerate(("V1v", "FFA-1")):
            area = np.zeros(GRID, np.uint8)
            area[1 + number, 1:] = 1
            made.write_map(f"derivatives/atlases/{subject}/rois/{name}", area)
    return made


def make_newer(root: Path) -> Published:
    """Without splits."""
    made = Published(root)
    made.write_packed(NAMES[::-1])
    for subject in CODES:
        r2 = np.where(made.brain, 20, 10).astype(np.float32)
        r2[0, 0, 0] = np.nan
        made.write_map(f"{made.start(subject)}_stat-rsquare_desc-R2mean_statmap", r2)
        for number, name in enumerate(("retinotopy/V1v", "faces/FFA1", "large/laionEVC")):
            area = np.zeros(GRID, np.float32)
            area[1 + number, 1:] = 1
            made.write_map(mask_file(subject, name), area)
        fine = np.ones((6, 5, 4), np.uint8)  # on the grid of other betas
        made.write_map(mask_file(subject, "retinotopy/V1v", "1pt5"), fine)
    return made


def mask_file(subject: str, name: str, resolution: str = "1pt8") -> str:
    category, _, area = name.rpartition("/")
    place = f"derivatives/rois/{subject}/{category}/{subject}"
    return f"{place}_space-T1w_res-{resolution}_label-{area}_mask"


# --- damage

BETAS, TRIALS = (
    f"{GLM}/sub-01/ses-01/func/sub-01_ses-01_{end}"
    for end in (
        f"{T1W}_stat-effect_desc-SingletrialBetas_statmap.nii.gz",
        "task-images_desc-SingletrialBetas_trials.tsv",
    )
)
MASK = f"{GLM}/sub-01/sub-01_{T1W}_desc-meanR2gt15mask_mask"
R2MEAN = f"{GLM}/sub-01/sub-01_{T1W}_stat-rsquare_desc-R2mean_statmap"
CEILING = f"{GLM}/sub-01/sub-01_{T1W}_desc-Noiseceiling12rep_statmap"
PACKED, PICTURE = "stimuli/task-images_stimuli.h5", f"stimuli/images/{SHARED[-1]}"


def on(name: str, spoil: Callable[[Path], object]) -> Callable[[Published], object]:
    return lambda laion: spoil(laion.root / name)


def trials(**columns: object) -> Callable[[Published], object]:
    return lambda laion: laion.write_trials("sub-01", 1, **columns)


def split(train: list[str], test: list[str], **more: object) -> Callable[[Published], object]:
    return lambda laion: laion.write_split("sub-01/tau", train, test, **more)


def grid(name: str, shape: tuple[int, ...], size: float = 1.778) -> Callable[[Published], object]:
    affine = np.diag([size, 1.778, 1.778, 1.0])
    return lambda laion: laion.write_map(name, np.ones(shape, np.float32), affine)


def pixels(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((len(NAMES), 4, 4, 3), np.uint8)


def blank(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["images"][0] = np.zeros(0, np.uint8)


def elsewhere(laion: Published) -> None:
    (laion.root / "splits/data/sub-01").rename(laion.file("copy/sub-01"))
    laion.write_split("sub-01/tau", SHARED[:1], SHARED[1:2])


OLDER_DAMAGES = {
    **{
        f"betas {spoil.__name__}": (on(BETAS, spoil), r"SingletrialBetas_statmap\.nii\.gz")
        for spoil in (cut, empty, web_page)
    },
    "trials cut": (on(TRIALS, cut), "'beta_index': expected each number|whole numbers|trials.tsv"),
    "betas of three axes": (grid(BETAS[:-7], GRID), r"expected \(n, n, n, n\)"),
    "a session on another grid": (
        grid(BETAS[:-7].replace("ses-01", "ses-02"), (5, 4, 2, N_TRIALS)),
        r"ses-02_.*its shape is not that of sub-01_ses-01",
    ),
    "a mask of another affine": (grid(MASK, GRID, 1.5), "its affine is not that of sub-01_ses-01"),
    "a mask of another shape": (grid(MASK, (5, 3, 4)), "its shape is not that of sub-01_ses-01"),
    "no voxels": (lambda x: x.write_map(MASK, np.zeros(GRID, "u1")), r"no voxel in .*gt15mask"),
    "no labels": (trials(label=None), "no column 'label'; found session, run, beta_index"),
    "an empty label": (trials(label=[None] + ["x"] * 15), "'label': expected the name"),
    "indices from 1": (trials(beta_index=np.arange(N_TRIALS) + 1), "from 0 to 15 once"),
    "an index twice": (trials(beta_index=[0, 0, *range(2, N_TRIALS)]), "from 0 to 15 once"),
    "another session": (trials(session=2), "'session': expected 1 in all rows"),
    "runs without numbers": (trials(run="first"), "'run': expected the number of a run"),
    "no image is there": (
        lambda laion: [laion.write_trials(s, i, label="x") for s in CODES for i in SESSIONS],
        "none of its images is there, such as 'x'",
    ),
    "an image cut": (on(PICTURE, cut), r"image .*dog \.png cannot be read"),
    "a split that overlaps": (split(SHARED[:3], SHARED[2:4]), "is in train_ids and in test_ids"),
    "a split without names": (split([], SHARED[:2]), "train_ids: expected names of images"),
    "a split of numbers": (
        split([], [], variants=[{"train_ids": [1], "test_ids": [2]}]),
        "train_ids: expected names",
    ),
    "a split of another length": (split(SHARED[:3], SHARED[3:], n_test=9), "expected n_test"),
    "a name twice in a split": (split(SHARED[:1] * 2, SHARED[3:]), "different names"),
    "a split with two variants": (split(["a"], ["b"], variants=[{}, {}]), "too many values"),
    "a split cut": (on("splits/data/sub-01/tau.json", cut), r"tau\.json cannot be read"),
    "a deep split": (
        on("splits/data/sub-01/tau.json", lambda path: path.write_text("[" * 100000)),
        r"tau\.json cannot be read",
    ),
    "splits in two places": (elsewhere, r"sub-01/tau\.json is there twice"),
}
NEWER_DAMAGES = {
    "images cut": (on(PACKED, cut), "task-images_stimuli.h5"),
    "images as pixels": (on(PACKED, pixels), "'images': expected"),
    "a name too few": (lambda x: x.write_packed(NAMES[1:], len(NAMES)), r"expected \(14\)"),
    "a name twice": (lambda x: x.write_packed([*NAMES, NAMES[0]]), "a name is there twice"),
    "an image that is empty": (on(PACKED, blank), r"image .*_p04\.jpg cannot be read"),
    "a ceiling as a share": (
        lambda x: x.write_map(CEILING, np.full(GRID, 0.7, np.float32)),
        "expected percent from 0 to 100",
    ),
    "a ceiling of another affine": (grid(CEILING, GRID, 2.0), "its affine is not that of"),
    "an area of another affine": (grid(mask_file("sub-01", "faces/FFA1"), GRID, 2), "its affine"),
    "an area twice": (
        lambda x: x.write_map(mask_file("sub-01", "words/FFA-1"), np.ones(GRID, "u1")),
        "are masks of the same area",
    ),
    "two files of a session": (
        lambda x: (x.root / BETAS).with_suffix("").write_bytes((x.root / BETAS).read_bytes()),
        "other betas of that session",
    ),
}
FORMS = {
    "laion-older": Form(
        make_older,
        import_laion,
        needed=(GLM, f"{MASK}.nii.gz", "stimuli/images"),
        link=PICTURE,
        checked=BETAS,
        damages=OLDER_DAMAGES,
        options=(
            ({"ceiling": "5rep"}, "--ceiling 5rep: expected one of 12rep, 4rep, Allrep"),
            ({"sessions": "1-"}, "expected numbers such as 1-10,12"),
            ({"sessions": "2-4"}, "sub-01: no responses of session 3-4; there are sessions 1-2"),
            ({"voxels": "V1"}, "sub-01 has no area 'V1'; found V1v, FFA-1"),
            ({"voxels": "R2mean>3"}, r"has no .*R2mean_statmap\.nii\.gz"),
            ({"split": "ood"}, "--split ood: expected one of shared, tau-shared, tau-sub-01"),
            ({"splits": Path(__file__).parent}, r"has no splits, such as sub-01/tau\.json"),
        ),
        command="laion",
    ),
    "laion-newer": Form(
        make_newer,
        import_laion,
        needed=(f"{R2MEAN}.nii.gz", "stimuli/task-images_metadata.csv"),
        link=PACKED,
        damages=NEWER_DAMAGES,
    ),
}
