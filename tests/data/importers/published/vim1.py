"""vim-1: MATLAB files in version 7.3 as published, and in the forms that are passed on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

from published import Dataset, Form, Truth, cut
from ubrain.data.importers.vim1 import import_vim1

N_TRAIN, N_VAL, SIDE = 30, 7, 6
N_VOXELS = {"S1": 11, "S2": 9}


class Published(Dataset):
    """Responses and stimuli as they are called in MATLAB: responses are voxels × images, stimuli
    images × side × side.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.responses: dict[str, Any] = {}
        for subject, n in N_VOXELS.items():
            self.responses[f"dataTrn{subject}"] = rng.normal(size=(n, N_TRAIN)).astype(np.float32)
            self.responses[f"dataVal{subject}"] = rng.normal(size=(n, N_VAL)).astype(np.float32)
            self.responses[f"roi{subject}"] = np.arange(n, dtype=float)[None] % 8
            self.responses[f"voxIdx{subject}"] = (1 + rng.choice(64 * 64 * 18, n, replace=False))[
                None
            ].astype(float)
        grey = rng.integers(0, 256, (N_TRAIN + N_VAL, SIDE, SIDE))
        grey[0, 0, 0], grey[-1, 0, 0] = 0, 255
        self.grey = grey.astype(np.uint8)
        light = grey / 255 - 0.45
        self.stimuli: dict[str, Any] = {
            "stimTrn": light[:N_TRAIN],
            "stimVal": light[N_TRAIN:],
            "seqTrn": np.arange(1, N_TRAIN + 1.0)[None],
        }

    def z(self, subject: str) -> np.ndarray:
        """Responses (n_images, n_voxels), training before validation."""
        return np.concatenate(
            [self.responses[f"dataTrn{subject}"], self.responses[f"dataVal{subject}"]], axis=1
        ).T

    def truth(self) -> dict[str, Truth]:
        train, val = (
            [f"vim1-{split}{i:04d}" for i in range(n)]
            for split, n in (("train", N_TRAIN), ("val", N_VAL))
        )
        return {f"vim1-{s}": Truth(train + val, self.z(s), {*val}, "none") for s in N_VOXELS}

    def pixels_of(self, image_id: str) -> np.ndarray:
        number = int(image_id[-4:]) + (N_TRAIN if "val" in image_id else 0)
        return self.grey[number][..., None].repeat(3, axis=2)


def write_v73(path: Path, content: dict[str, np.ndarray]) -> None:
    """As MATLAB does: a block of text before the HDF5, and all axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in content.items():
            file[name] = values.T
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116))


def write_python(path: Path, content: dict[str, np.ndarray]) -> None:
    """HDF5 made with Python from arrays as MATLAB has them."""
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file[name] = values


def write_copied(path: Path, content: dict[str, np.ndarray]) -> None:
    """MATLAB's arrays in a new HDF5 file, without its text at the beginning."""
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file[name] = values.T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")


def write_v5(path: Path, content: dict[str, np.ndarray]) -> None:
    scipy.io.savemat(path, content, do_compression=True)


def transposed(content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values.T for name, values in content.items()}


def images_last(content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.moveaxis(values, 0, -1) if values.ndim == 3 else values
        for name, values in content.items()
    }


def write(root: Path, data: Published) -> Path:
    root.mkdir(exist_ok=True)
    write_v73(root / "EstimatedResponses.mat", data.responses)
    write_v5(root / "Stimuli.mat", data.stimuli)
    return root


def make(root: Path, responses: Callable, stimuli: Callable) -> Published:
    made = Published()
    made.root = root
    responses(made.file("EstimatedResponses.mat"), made.responses)
    stimuli(made.file("Stimuli.mat"), made.stimuli)
    return made


# --- damage


def changed(
    name: str, values: object, file: str = "EstimatedResponses.mat"
) -> Callable[[Path, Published], None]:
    """Write a file again with one array changed, or left out."""

    def change(root: Path, data: Published) -> None:
        content = dict(data.responses if file.startswith("Est") else data.stimuli)
        content[name] = values(content[name]) if callable(values) else values
        if content[name] is None:
            del content[name]
        write_v73(root / file, content)

    return change


def huge(root: Path, data: Published) -> None:
    with h5py.File(root / "EstimatedResponses.mat", "w") as file:
        file["roiS1"] = file["voxIdxS1"] = np.ones((1, 5))
        file.create_dataset("dataTrnS1", (10**7, 10**7), "f4", chunks=(1, 10))


def external(root: Path, data: Published) -> None:
    (root / "EstimatedResponses.mat").rename(root.parent / "elsewhere.h5")
    with h5py.File(root / "EstimatedResponses.mat", "w") as file:
        for name in data.responses:
            file[name] = h5py.ExternalLink(str(root.parent / "elsewhere.h5"), name)


def nan_pixel(values: np.ndarray) -> np.ndarray:
    return np.where(np.arange(values.size).reshape(values.shape) == 3, np.nan, values)


BAD: dict[str, tuple[Callable[[Path, Published], object], str]] = {
    "responses truncated": (
        lambda r, d: cut(r / "EstimatedResponses.mat"),
        r"EstimatedResponses\.mat",
    ),
    "stimuli truncated": (lambda r, d: cut(r / "Stimuli.mat"), r"Stimuli\.mat cannot be read"),
    "an error page": (
        lambda r, d: (r / "Stimuli.mat").write_text("<html>log in</html>" * 20),
        "cannot be read",
    ),
    "no validation responses": (changed("dataValS1", None), "'dataValS1' is missing"),
    "no places": (changed("voxIdxS1", None), "'voxIdxS1' is missing"),
    "an image too few": (
        changed("dataTrnS1", lambda v: v[:, 1:]),
        r"expected 11 voxels × 30 images, got \(11, 29\)",
    ),
    "an area too few": (
        changed("roiS1", lambda v: v[:, 1:]),
        "voxIdxS1 has 11 voxels, roiS1 has 10",
    ),
    "places from 0": (
        changed("voxIdxS1", lambda v: np.arange(11.0)[None]),
        "expected numbers from 1 to 73728, got 0 to 10",
    ),
    "a place twice": (changed("voxIdxS1", lambda v: np.ones((1, 11))), "is there twice"),
    "unknown areas": (changed("roiS1", lambda v: v + 5), "expected numbers from 0 to 7"),
    "areas that are no numbers": (changed("roiS1", lambda v: v * np.nan), "expected whole numbers"),
    "complex responses": (changed("dataTrnS1", lambda v: v.astype(complex)), "kind 'biuf'"),
    "three axes": (changed("dataTrnS1", lambda v: v[None]), r"expected \(n, n\)"),
    "a nan pixel": (changed("stimVal", nan_pixel, "Stimuli.mat"), "finite grey values"),
    "one grey": (
        lambda r, d: write_v5(r / "Stimuli.mat", {n: v * 0 for n, v in d.stimuli.items()}),
        "finite grey values",
    ),
    "no validation images": (changed("stimVal", None, "Stimuli.mat"), "'stimVal' is missing"),
    "other sides": (
        changed("stimVal", lambda v: v[:, 1:], "Stimuli.mat"),
        "expected images .* of one size",
    ),
    "flat images": (
        changed("stimTrn", lambda v: v.reshape(30, -1), "Stimuli.mat"),
        r"expected \(n, n, n\)",
    ),
    "links within HDF5": (external, "is a link; expected the data themselves"),
    "absurd size": (huge, "too large"),
}


FORMS = {
    "vim1": Form(
        lambda root: make(root, write_v73, write_v5),
        import_vim1,
        sessions=False,
        needed=("Stimuli.mat", "EstimatedResponses.mat"),
        link="Stimuli.mat",
        damages={
            name: (lambda d, spoil=spoil: spoil(d.root, d), message)
            for name, (spoil, message) in BAD.items()
        },
        command="vim1",
    ),
    "vim1-converted": Form(
        lambda root: make(root, write_v5, write_v73), import_vim1, sessions=False
    ),
}
