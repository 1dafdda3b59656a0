"""NOD: CIFTI files of two subjects, with the cortex alone as published, or all grayordinates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from published import Dataset, Form, Truth, cut, empty, web_page
from ubrain.data.importers.nod import import_nod

LEFT, RIGHT = [3, 4, 8, 9, 20], [0, 5, 7]
IMAGENET = [f"n0144{i % 3}764_{100 + i}.JPEG" for i in range(12)]
COCO = [f"{i:012d}.jpg" for i in (9, 25, 30)]
RUNS = {  # the run of each task and session; in COCO's, each image once
    "sub-01": [("imagenet01", 1), ("imagenet01", 2), ("imagenet01", 10), ("imagenet02", 1)]
    + [("coco", run) for run in (1, 2, 3)],
    "sub-10": [("imagenet01", 1), ("imagenet01", 2)],
}


def brain(left: list[int], right: list[int], below: int, n_vertices: int = 32) -> Any:
    """Grayordinates of both hemispheres, and some of the thalamus."""
    axis = nib.cifti2.BrainModelAxis
    voxels = np.column_stack([np.arange(below)] * 3)
    structures = ["thalamus_left"] * below
    parts = [
        axis.from_surface(left, n_vertices, "CortexLeft"),
        axis.from_surface(right, n_vertices, "CortexRight"),
    ]
    if below:
        parts.append(axis(structures, voxels, None, np.eye(4), (9, 9, 9)))
    return sum(parts[1:], parts[0])


def write_cifti(path: Path, values: np.ndarray, names: list[str], axis: Any) -> None:
    """(n_maps, n_grayordinates)."""
    header = nib.Cifti2Header.from_axes((nib.cifti2.ScalarAxis(names), axis))
    nib.save(nib.Cifti2Image(values, header), path)


class Published(Dataset):
    """Runs of three images of ImageNet or COCO."""

    def __init__(self, root: Path, below: int = 0) -> None:
        self.root, self.axis = root, brain(LEFT, RIGHT, below)
        self.runs: dict[str, list[tuple[list[str], np.ndarray]]] = {}
        for subject, runs in RUNS.items():
            rng = np.random.default_rng([*subject.encode()])
            self.runs[subject] = []
            for number, (session, run) in enumerate(runs):
                first = 3 * number % len(IMAGENET)
                names = COCO if session == "coco" else IMAGENET[first : first + 3]
                values = rng.normal(3, 40, (3, len(self.axis))).astype(np.float32)
                self.runs[subject].append((names, values))
                write_cifti(self.path(subject, session, run), values, names, self.axis)
        for name in (*IMAGENET, *COCO):
            place = "coco" if name in COCO else f"imagenet/{name.partition('_')[0]}"
            Image.fromarray(self.picture(name)).save(self.file(f"stimuli/{place}/{name}"), "PNG")

    @staticmethod
    def picture(name: str) -> np.ndarray:
        return np.random.default_rng([*name.encode()]).integers(0, 256, (5, 4, 3), np.uint8)

    def path(self, subject: str, session: str, run: int) -> Path:
        label = f"ses-{session}_task-{session.rstrip('0123456789')}_run-{run}"
        place = f"derivatives/ciftify/{subject}/results/{label}"
        self.file(f"{place}/{label}_label.txt").write_text("n01440764_1.JPEGn01440764_2.JPEG")
        return self.file(f"{place}/{label}_beta.dscalar.nii")

    def truth(self) -> dict[str, Truth]:
        test = {f"nod-{Path(name).stem}" for name in COCO}
        found = {}
        for subject, runs in self.runs.items():
            shown = [f"nod-{Path(name).stem}" for names, _ in runs for name in names]
            values = np.concatenate([values[:, : len(LEFT) + len(RIGHT)] for _, values in runs])
            units = np.repeat(np.arange(len(runs)), 3)
            found[f"nod-{subject}"] = Truth(shown, values, test & {*shown}, "run", units)
        return found

    def pixels_of(self, image_id: str) -> np.ndarray:
        name = image_id.removeprefix("nod-")
        return self.picture(f"{name}.JPEG" if name.startswith("n0") else f"{name}.jpg")


# --- damage

FIRST = (
    "derivatives/ciftify/sub-01/results/ses-imagenet01_task-imagenet_run-1/"
    "ses-imagenet01_task-imagenet_run-1_beta.dscalar.nii"
)


def on(spoil: Callable[[Path], object]) -> Callable[[Dataset], object]:
    return lambda data: spoil(data.root / FIRST)


def replaced(old: bytes, new: bytes) -> Callable[[Dataset], object]:
    """Other bytes in what is said about the axes; the first of these only."""

    def spoil(path: Path) -> None:
        data = path.read_bytes()
        assert old in data, path
        path.write_bytes(data.replace(old, new, 1))

    return on(spoil)


def header(place: int, value: bytes) -> Callable[[Dataset], object]:
    def spoil(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place : place + len(value)] = value
        path.write_bytes(data)

    return on(spoil)


def written(**changed: Any) -> Callable[[Dataset], object]:
    given = {
        "values": np.ones((3, 8), np.float32),
        "names": IMAGENET[:3],
        "axis": brain(LEFT, RIGHT, 0),
    }
    return on(lambda path: write_cifti(path, **{**given, **changed}))


def parcels(path: Path) -> None:
    """Areas instead of maps with names."""
    axes = (nib.cifti2.SeriesAxis(0, 1, 3), brain(LEFT, RIGHT, 0))
    nib.save(nib.Cifti2Image(np.ones((3, 8), np.float32), nib.Cifti2Header.from_axes(axes)), path)


def twice(data: Dataset) -> None:
    other = data.file("copy/sub-01/" + Path(FIRST).name)
    other.write_bytes((data.root / FIRST).read_bytes())


def homeless(data: Dataset) -> None:
    (data.root / FIRST).rename(data.root / Path(FIRST).name)


def other_images(data: Dataset) -> None:
    for path in (data.root / "stimuli").rglob("*.*"):
        path.rename(path.with_name(f"x{path.name}"))


DAMAGES = {
    "truncated": (on(cut), "cannot be read"),
    "empty": (on(empty), "cannot be read"),
    "a web page": (on(web_page), "cannot be read"),
    "a number too few": (
        on(lambda path: path.write_bytes(path.read_bytes()[:-4])),
        "the file ends too early",
    ),
    "a number too many": (
        on(lambda path: path.write_bytes(path.read_bytes() + bytes(4))),
        "more numbers than the header says",
    ),
    "no axes": (header(540, bytes(1)), "has no CIFTI extension"),
    "a long description": (header(544, b"\xff\xff\xff\x7f"), "are too large to be what"),
    "data in the description": (header(168, (600).to_bytes(8, "little")), "begin at byte 600"),
    "scaled": (header(176, np.float64(2).tobytes()), "its header scales the numbers"),
    "huge": (header(64, (10**9).to_bytes(8, "little")), "its axes are 3 × 8"),
    "names of its own": (replaced(b"<Matrix>", b"<!ENTITY"), "its XML defines names of its own"),
    "no XML": (replaced(b"</Matrix>", b"</Matrax>"), "mismatched tag"),
    "no names": (on(parcels), "maps of betas without names of images"),
    "whole numbers": (written(values=np.ones((3, 8), np.int16)), "of kind 'f'"),
    "other vertices": (written(axis=brain([1, *LEFT[1:]], RIGHT, 0)), "other vertices than in"),
    "vertices out of range": (
        replaced(b'NumberOfVertices="32"', b'NumberOfVertices="12"'),
        "CORTEX_LEFT has 12 vertices, but not those",
    ),
    "more vertices than numbers": (
        replaced(b'IndexOffset="5"', b'IndexOffset="7"'),
        "expected a CIFTI file with maps and brain models",
    ),
    "no cortex": (
        written(axis=brain(LEFT, RIGHT, 8)[-8:]),
        "no grayordinates of the cortex",
    ),
    "twice": (twice, "are the same run; keep one of them"),
    "of nobody": (homeless, "expected it below a folder such as sub-01"),
    "other images": (other_images, "has none of the 15 images"),
    "an image cut": (lambda data: cut(data.root / f"stimuli/coco/{COCO[0]}"), "cannot be read"),
}
FORMS = {
    "nod": Form(
        Published,
        import_nod,
        link=FIRST,
        damages=DAMAGES,
        options=(({"labels": "absent.npz"}, r"absent\.npz"),),
        command="nod",
    ),
    "nod-91k": Form(lambda root: Published(root, 4), import_nod),
}
