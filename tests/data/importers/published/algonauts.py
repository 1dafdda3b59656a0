"""Algonauts 2023: with the responses to the test images, and without."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from published import Dataset, Form, Truth, cut
from ubrain.data.importers.algonauts import import_algonauts

N_TRAIN, N_TEST = 24, 6
VERTICES = {"lh": [3, 10, 11, 500], "rh": [0, 7, 163841]}
MAPPING = {0: "Unknown", 1: "V1v", 2: "V1d", 3: "V2v", 4: "V2d", 5: "V3v", 6: "V3d", 7: "hV4"}


class Packaged(Dataset):
    """A folder as the challenge hands it out, and the numbers that were written into it."""

    def __init__(self, root: Path) -> None:
        self.root, self.responses, self.images = root, {}, {}

    def write(self, subject: int, images: list[int], test: list[int] | None = None) -> Path:
        """A subject that has seen these images (0-based 73k numbers, ascending), and optionally
        answered to test images.
        """
        folder = self.root / f"subj{subject:02d}"
        self.write_split(folder, subject, "training", "train", images)
        (folder / "test_split/test_images").mkdir(parents=True)
        if test is not None:
            shutil.rmtree(folder / "test_split/test_images")
            self.write_split(folder, subject, "test", "test", test)
        masks = folder / "roi_masks"
        masks.mkdir()
        for side, vertices in VERTICES.items():
            full = np.zeros(163842, np.int64)
            full[vertices] = [2, 1] + [1] * (len(vertices) - 2)  # a vertex in both masks is 2
            np.save(masks / f"{side}.all-vertices_fsaverage_space.npy", full)
            labels = np.arange(len(vertices)) % 8
            np.save(masks / f"{side}.prf-visualrois_challenge_space.npy", labels)
            np.save(masks / f"{side}.streams_challenge_space.npy", np.full(len(vertices), 5))
            np.save(masks / f"{side}.prf-visualrois_fsaverage_space.npy", full)
        np.save(masks / "mapping_prf-visualrois.npy", MAPPING)
        return folder

    def write_split(
        self, folder: Path, subject: int, split: str, prefix: str, images: list[int]
    ) -> None:
        fmri, pictures = (folder / f"{split}_split/{split}_{what}" for what in ("fmri", "images"))
        fmri.mkdir(parents=True)
        pictures.mkdir(parents=True)
        rng = np.random.default_rng([subject, len(split)])
        for side, vertices in VERTICES.items():
            self.responses[subject, split, side] = rng.normal(
                size=(len(images), len(vertices))
            ).astype(np.float32)
            np.save(fmri / f"{side}_{split}_fmri.npy", self.responses[subject, split, side])
        for row, image in enumerate(images):
            Image.fromarray(self.pixels(image)).save(
                pictures / f"{prefix}-{row + 1:04d}_nsd-{image:05d}.png", compress_level=1
            )
        self.images[subject, split] = images

    @staticmethod
    def pixels(image: int) -> np.ndarray:
        return np.random.default_rng(image).integers(0, 256, (5, 5, 3), np.uint8)

    def both(self, subject: int, split: str = "training") -> np.ndarray:
        return np.concatenate([self.responses[subject, split, side] for side in VERTICES], axis=1)

    def truth(self) -> dict[str, Truth]:
        subjects = sorted({subject for subject, _ in self.images})
        test = {i for s in subjects for i in self.images.get((s, "test"), [])}
        seen = [set(self.images[s, "training"]) for s in subjects]
        test = test or set.intersection(*seen)
        found = {}
        for s in subjects:
            splits = [split for split in ("training", "test") if (s, split) in self.images]
            shown = [i for split in splits for i in self.images[s, split]]
            found[f"algonauts-subj{s:02d}"] = Truth(
                [f"nsd-{i:05d}" for i in shown],
                np.concatenate([self.both(s, split) for split in splits]),
                {f"nsd-{i:05d}" for i in test & set(shown)},
                "none",
            )
        return found

    def pixels_of(self, image_id: str) -> np.ndarray:
        return self.pixels(int(image_id.removeprefix("nsd-")))


def make(root: Path) -> Packaged:
    """Two subjects; images 100 to 107 are seen by both."""
    made = Packaged(root)
    made.write(1, [*range(100, 108), *range(200, 216)])
    made.write(2, [*range(100, 108), *range(300, 316)])
    return made


def make_official(root: Path) -> Packaged:
    """Two subjects with responses to test images; 503 is one of subject 1's."""
    made = Packaged(root)
    made.write(1, list(range(100, 124)), test=list(range(500, 506)))
    made.write(2, [*range(200, 223), 503], test=list(range(600, 606)))
    for folder in root.glob("subj*"):
        (folder / "test_split/noise_ceiling").mkdir()
        for side, vertices in VERTICES.items():
            ceiling = np.linspace(0, 0.8, len(vertices), dtype=np.float32)
            np.save(folder / f"test_split/noise_ceiling/{side}_noise_ceiling.npy", ceiling)
    return made


# --- damage


def training(root: Path, name: str = "lh_training_fmri.npy") -> Path:
    return root / "subj01/training_split/training_fmri" / name


def picture(root: Path, number: int) -> Path:
    return next((root / "subj01/training_split/training_images").glob(f"train-{number:04d}_*"))


def rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


DAMAGES = {
    "a row too few": (
        lambda d: np.save(training(d.root), np.zeros((23, 4), np.float32)),
        "23 rows, but there are 24 images",
    ),
    "another mask": (
        lambda d: np.save(training(d.root), np.ones((24, 5), np.float32)),
        "4 vertices, .* responses have 5",
    ),
    "whole numbers": (
        lambda d: np.save(training(d.root), np.zeros((24, 4), int)),
        r"expected \(n, n\) of kind 'f', got .* int64",
    ),
    "one axis": (lambda d: np.save(training(d.root), np.zeros(24)), r"got \(24,\) float64"),
    "truncated responses": (
        lambda d: cut(training(d.root)),
        r"lh_training_fmri\.npy cannot be read",
    ),
    "an image missing": (lambda d: picture(d.root, 5).unlink(), "number 5 is missing"),
    "counted from 0": (
        lambda d: rename(picture(d.root, 24), "train-0000_nsd-09999.png"),
        "number 1 is missing",
    ),
    "an image twice": (
        lambda d: rename(picture(d.root, 7), "train-0007_nsd-00100.png"),
        "different images",
    ),
    "an image number too high": (
        lambda d: rename(picture(d.root, 7), "train-0007_nsd-73000.png"),
        "numbers below 73000",
    ),
    "a damaged image": (
        lambda d: cut(picture(d.root, 3)),
        r"image .*train-0003_nsd-00102\.png cannot be read",
    ),
    "a mask of another surface": (
        lambda d: np.save(
            d.root / "subj01/roi_masks/lh.all-vertices_fsaverage_space.npy", np.ones(10242)
        ),
        r"expected \(163842\)",
    ),
    "a mapping that is cut": (
        lambda d: cut(d.root / "subj01/roi_masks/mapping_prf-visualrois.npy"),
        "mapping_prf-visualrois",
    ),
}


FORMS = {
    "algonauts": Form(
        make,
        import_algonauts,
        sessions=False,
        damages=DAMAGES,
        options=(
            ({"test": "all"}, "--test all"),
            ({"test": "official"}, "test_fmri is not there"),
            ({"test_fraction": 2}, "fractions must be"),
        ),
        command="algonauts",
    ),
    "algonauts-official": Form(
        make_official,
        import_algonauts,
        sessions=False,
        needed=(
            "subj02/training_split/training_fmri/lh_training_fmri.npy",
            "subj01/training_split/training_images",
        ),
        link="subj01/training_split/training_fmri/lh_training_fmri.npy",
    ),
}
