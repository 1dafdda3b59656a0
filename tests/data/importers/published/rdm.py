"""RDMs of people, as in Algonauts 2019: one MATLAB file, or a .npz file for each area."""

import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

from published import Dataset, Form, Truth, cut, empty, web_page
from ubrain.data.crowdfile import content_digest, split_by_content
from ubrain.data.importers.rdm import import_rdm, patterns_of

N, N_SUBJECTS = 30, 3
AREAS = {"EVC": 50, "IT": 12}  # voxels; fewer than images, and more
EVC, MAT = "fmri_EVC_RDMs.npz", "target_fmri.mat"


class Published(Dataset):
    """Dissimilarities of patterns of noise, to images of 6 × 5 pixels."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        self.patterns = {a: rng.normal(size=(N_SUBJECTS, N, v)) for a, v in AREAS.items()}
        self.rdms = {
            area: np.stack([1 - np.corrcoef(mine) for mine in patterns])
            for area, patterns in self.patterns.items()
        }
        for rdms in self.rdms.values():
            rdms[:, np.arange(N), np.arange(N)] = 0
        self.pixels = rng.integers(0, 256, (N, 5, 6, 3), np.uint8)
        for i, pixels in enumerate(self.pixels):
            Image.fromarray(pixels).save(self.file(f"92images/image_{i + 1}.png"))

    def truth(self) -> dict[str, Truth]:
        names = [f"image_{i + 1}" for i in range(N)]
        draw = split_by_content(0.2, 0.2)
        test = {
            n for n, p in zip(names, self.pixels, strict=True) if draw(content_digest(p)) == "test"
        }
        return {
            f"algonauts2019-subj{i + 1:02d}": Truth(
                names,
                np.concatenate([patterns_of(rdms[i])[0] for rdms in self.rdms.values()], axis=1),
                test,
                "none",
            )
            for i in range(N_SUBJECTS)
        }

    def pixels_of(self, image_id: str) -> np.ndarray:
        return self.pixels[int(image_id.removeprefix("image_")) - 1]


def write_npz(made: Published) -> None:
    for area, key in (("EVC", "Net_RDM"), ("IT", "arr_0")):
        np.savez(made.file(f"fmri_{area}_RDMs.npz"), **{key: made.rdms[area]})


def write_v5(made: Published) -> None:
    content = {f"{area}_RDMs": rdms for area, rdms in made.rdms.items()}
    scipy.io.savemat(made.file(MAT), content, do_compression=True)


def write_v73(made: Published) -> None:
    """As MATLAB does: a block of text before the HDF5, and all axes reversed."""
    with h5py.File(made.file(MAT), "w", userblock_size=512) as file:
        for area, rdms in made.rdms.items():
            file[f"{area}_RDMs"] = rdms.T
    with made.file(MAT).open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116))


def write_python(made: Published) -> None:
    """HDF5 under the name of MATLAB's file: the axes are not reversed."""
    with h5py.File(made.file(MAT), "w") as file:
        for area, rdms in made.rdms.items():
            file[f"{area}_RDMs"] = rdms


def make(*writers: Callable[[Published], None]) -> Callable[[Path], Published]:
    def build(root: Path) -> Published:
        made = Published(root)
        for write in writers:
            write(made)
        return made

    return build


def spoilt(change: Callable[[np.ndarray], object]) -> Callable[[Published], object]:
    """One area with other numbers."""

    def spoil(made: Published) -> None:
        rdms = made.rdms["EVC"].copy()
        rdms = rdms if (other := change(rdms)) is None else other
        np.savez(made.file(EVC), Net_RDM=rdms)

    return spoil


def put(rdms: np.ndarray, value: float, *places: tuple[int, int]) -> None:
    for i, j in places:
        rdms[0, i, j] = value


def on_file(name: str, spoil: Callable[[Path], object]) -> Callable[[Published], object]:
    return lambda made: spoil(made.root / name)


def objects(path: Path) -> None:
    np.savez(path, Net_RDM=np.array([{}], dtype=object))


DAMAGES = {
    "truncated": (on_file(EVC, cut), EVC),
    "empty": (on_file(EVC, empty), EVC),
    "a web page": (on_file(EVC, web_page), EVC),
    "objects": (on_file(EVC, objects), "pickled objects"),
    "no such array": (
        on_file(EVC, lambda path: np.savez(path, x=np.zeros(3))),
        "expected an array called Net_RDM or arr_0",
    ),
    "other images": (
        spoilt(lambda rdms: rdms[:, :-1, :-1]),
        r"with 30 images: expected \(n, 30, 30\).*got \(3, 29, 29\)",
    ),
    "not symmetric": (spoilt(lambda rdms: put(rdms, 0.3, (1, 2))), "expected symmetric"),
    "not finite": (spoilt(lambda rdms: put(rdms, np.nan, (1, 2))), "not a number"),
    "similarities": (spoilt(lambda rdms: 1 - rdms), "expected symmetric dissimilarities"),
    "distances": (spoilt(lambda rdms: 10 * rdms), "to 2; they go from"),
    "no correlations": (
        spoilt(lambda rdms: put(rdms, 2.0, *permutations(range(9), 2))),
        "EVC of algonauts2019-subj01: negative eigenvalues have a share of",
    ),
    "an image twice": (
        lambda made: shutil.copyfile(
            made.root / "92images/image_1.png", made.root / "92images/image_2.png"
        ),
        "'image_1' and 'image_2' are the same image; average the responses",
    ),
    "fewer subjects": (spoilt(lambda rdms: rdms[:2]), "areas of 2 and 3 subjects"),
}


def images(root: Path) -> dict[str, Path]:
    return {"images": root / "92images"}


FORMS = {
    "rdm": Form(
        make(write_npz),
        import_rdm,
        images,
        sessions=False,
        checked="fmri_IT_RDMs.npz",
        link=EVC,
        damages=DAMAGES,
        options=(({"images": Path("nowhere")}, "expected a folder of images"),),
        command="rdm",
    ),
    **{
        f"rdm-{name}": Form(make(write), import_rdm, images, sessions=False, needed=(MAT,))
        for name, write in (("v5", write_v5), ("v73", write_v73), ("python", write_python))
    },
}
