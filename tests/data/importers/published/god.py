"""Generic Object Decoding: its three releases."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

from published import Dataset, Form, Truth, cut, flip, move_out
from ubrain.data.importers.god import import_god

# Two images of one synset differ only in the last of the digits of the id; a float32 holds neither.
TRAINING = [
    "n01518878_5958",
    "n01518878_5959",
    "n01518878_109",
    "n02071294_46212",
    "n12345678_1",
    "n12345678_99",
    "n04507155_21299",
    "n04554684_53399",
]
TEST = ["n01443537_22563", "n03767745_109", "n02824058_18729"]
REPEATS = 35
AREAS = ["V1", "V2", "LOC", "LVC", "HVC", "VC"]
N_VOXELS, N_META = 10, 3


def image_id(name: str) -> float:
    """As the authors compute it: the text synset.image, with six digits for the image, as a
    number.
    """
    synset, number = name[1:].split("_")
    return float(f"{synset}.{int(number):06d}")


def image_pixels(name: str) -> np.ndarray:
    return np.random.default_rng(int(image_id(name) * 1e6)).integers(0, 256, (6, 5, 3), np.uint8)


class Original:
    """A subject of the first release: the table of trials, the keys of its columns, and what was
    shown.
    """

    def __init__(self, subject: int) -> None:
        rng = np.random.default_rng(subject)
        self.shown = [
            *TRAINING,
            *(name for _ in range(REPEATS) for name in rng.permutation(TEST)),
            *TEST,
        ]
        self.kind = np.repeat([1, 2, 3], [len(TRAINING), REPEATS * len(TEST), len(TEST)])
        test = np.repeat(np.arange(1, REPEATS + 1), len(TEST))
        self.run = np.concatenate(
            [np.repeat([1, 2], len(TRAINING) // 2), test, np.ones(len(TEST))]
        )  # from 1 each
        offset = 0.5 * self.run[:, None] * np.linspace(1, 2.8, N_VOXELS) + 20 * self.kind[:, None]
        self.voxels = rng.normal(size=(len(self.kind), N_VOXELS)) * 5 + offset
        ids = [image_id(name) for name in self.shown]
        self.dataset = np.column_stack([self.kind, self.run, ids, self.voxels])
        self.label = "Label"

    @property
    def metadata(self) -> dict[str, np.ndarray]:
        """1 where a column belongs to a key, NaN elsewhere; places are numbers. Some zeros and a
        2, too.
        """

        def only(columns: list[int], value: object = 1.0) -> np.ndarray:
            row = np.full(N_META + N_VOXELS, np.nan)
            row[columns] = value
            return row

        voxels = list(range(N_META, N_META + N_VOXELS))
        members = {
            "V1": voxels[:3],
            "V2": voxels[3:5],
            "LOC": voxels[6:8],
            "LVC": voxels[:5],
            "HVC": voxels[5:9],
            "VC": voxels[:9],
        }  # the last voxel is in none of them
        table = {
            "VoxelData": only(voxels),
            "DataType": only([0]),
            "Run": only([1]),
            self.label: only([2]),
            "voxel_x": only(voxels, np.linspace(-30, 30, N_VOXELS)),
            "voxel_y": only(voxels, -70.5),
            "voxel_z": only(voxels, np.arange(N_VOXELS) * 3.0),
            **{f"ROI_{name}": only(columns) for name, columns in members.items()},
        }
        table["ROI_V2"][voxels[7]], table["ROI_V2"][voxels[8]], table["VoxelData"][2] = 0, 2, 0
        return table

    def write_h5(self, path: Path, legacy: bool = False) -> None:
        dataset, metadata = ("dataSet", "metaData") if legacy else ("dataset", "metadata")
        with h5py.File(path, "w") as file:
            file[dataset] = self.dataset
            file[f"{metadata}/key"] = [key.encode() for key in self.metadata]
            file[f"{metadata}/description"] = [b"1 = something"] * len(self.metadata)
            file[f"{metadata}/value"] = np.stack(list(self.metadata.values()))
            file["header/ctime"] = b"2018-11-01"

    def write_mat(self, path: Path) -> None:
        keys = np.array(list(self.metadata), dtype=object)[None]
        meta = {"key": keys, "description": keys, "value": np.stack(list(self.metadata.values()))}
        scipy.io.savemat(
            path,
            {"dataSet": self.dataset, "metaData": meta, "subject": "Subject1"},
            do_compression=True,
        )


class FMRIPrep:
    """A subject of the later preprocessing: a file for training and one for the test, whose labels
    are in vmap.
    """

    def __init__(self, subject: int) -> None:
        rng = np.random.default_rng(10 + subject)
        self.names = {"Training": TRAINING, "Test": [name for _ in range(REPEATS) for name in TEST]}
        self.order = {"Training": TRAINING[::-1], "Test": TEST}  # numbers in vmap count from 1
        self.session = {
            task: np.arange(len(names)) * 2 // len(names) + 1 for task, names in self.names.items()
        }
        self.run = {
            "Training": np.tile([1, 1, 2, 2], 2),
            "Test": np.arange(REPEATS * 3) // 3 % 17 + 1,
        }
        self.voxels = {
            task: rng.normal(100, 9, (len(names), 6)) for task, names in self.names.items()
        }

    def write(self, folder: Path, subject: int, task: str, label: str = "stimulus_name") -> Path:
        numbers = [self.order[task].index(name) + 1 for name in self.names[task]]
        dataset = np.column_stack([self.session[task], self.run[task], numbers, self.voxels[task]])
        keys = {
            "Session": [1, 0, 0],
            "Run": [0, 1, 0],
            label: [0, 0, 1],
            "VoxelData": [0, 0, 0] + [1] * 6,
            "ROI_V1": [0, 0, 0, 1, 1, 0, 0, 0, 0],
            "ROI_hV4": [0, 0, 0, 0, 0, 1, 0, 0, 0],
            "ROI_VC": [0, 0, 0, 1, 1, 1, 1, 0, 0],
        }
        value = np.full((len(keys) + 1, 9), np.nan)
        for row, belongs in enumerate(keys.values()):
            value[row, np.flatnonzero(belongs)] = 1
        value[-1, 3:] = [5, 6, 7, 8, 9, 10]
        path = folder / f"Subject{subject}_ImageNet{task}.h5"
        with h5py.File(path, "w") as file:
            file["dataset"], file["metadata/value"] = dataset, value
            file["metadata/key"] = [key.encode() for key in [*keys, "voxel_i"]]
            if label == "stimulus_name":
                for number, name in enumerate(self.order[task], start=1):
                    file[f"vmap/{label}/{float(number)}"] = name.encode()
        return path


class Npz:
    """A subject as released with SelfSuperReconst: arrays without names, labels that count from 0,
    masks by name.
    """

    def __init__(self, subject: int) -> None:
        rng = np.random.default_rng(20 + subject)
        self.labels = {"train": rng.permutation(len(TRAINING)), "test": np.tile([2, 0, 1], REPEATS)}
        self.train = rng.normal(size=(len(TRAINING), N_VOXELS))
        signal = rng.normal(size=(len(TEST), N_VOXELS))
        self.test = signal[self.labels["test"]] + rng.normal(size=(REPEATS * 3, N_VOXELS)) * 0.5
        self.average = np.stack(
            [self.test[self.labels["test"] == i].mean(0) for i in range(len(TEST))]
        )
        self.masks = {"V1": np.arange(N_VOXELS) < 4, "VC": np.arange(N_VOXELS) < 9}

    def write(self, path: Path, compressed: bool = False, **changed: np.ndarray | None) -> None:
        arrays = {
            "arr_0": self.train,
            "arr_1": self.test,
            "arr_2": self.average,
            "arr_3": self.labels["train"],
            "arr_4": self.labels["test"],
            "arr_5": np.ones(N_VOXELS),
            "arr_6": np.ones(N_VOXELS),
            **self.masks,
            **changed,
        }
        save = np.savez_compressed if compressed else np.savez
        save(path, **{name: values for name, values in arrays.items() if values is not None})


def write_images(folder: Path, names: list[str] = TRAINING + TEST) -> None:
    """PNG, so that the pixels stay what they are, under the names that the owners give (JPEG)."""
    for name in names:
        place = folder / ("test" if name in TEST else "training")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_pixels(name)).save(place / f"{name}.JPEG", format="PNG")


def write_image_arrays(path: Path) -> dict[str, np.ndarray]:
    arrays = {
        f"{split}_images": (
            np.maximum(np.stack([image_pixels(name) for name in names]) - np.float32(0.4), 0) / 255
        )
        for split, names in (("train", TRAINING), ("test", TEST))
    }
    np.savez(path, **arrays)
    return arrays


def zscored(values: np.ndarray, *units: np.ndarray) -> np.ndarray:
    """z-scores within each combination of units."""
    out = np.empty_like(values)
    for unit in np.unique(np.column_stack(units), axis=0):
        rows = (np.column_stack(units) == unit).all(axis=1)
        out[rows] = (values[rows] - values[rows].mean(0)) / values[rows].std(0)
    return out


class God(Dataset):
    """A folder of one of the releases, and what was shown and measured in it."""

    def __init__(self, root: Path, truth: dict[str, Truth], name: Callable[[str], str]) -> None:
        self.root, self._truth, self._name = root, truth, name

    def truth(self) -> dict[str, Truth]:
        return self._truth

    def pixels_of(self, image_id: str) -> np.ndarray:
        return image_pixels(self._name(image_id.removeprefix("god-")))


def unit(*columns: np.ndarray) -> np.ndarray:
    return np.unique(np.column_stack(columns), axis=0, return_inverse=True)[1].reshape(-1)


def named(shown: list[str]) -> list[str]:
    return [f"god-{name}" for name in shown]


def make_original(root: Path, kind: str) -> God:
    """Subjects 1 and 2 of the first release, and the images."""
    write_images(root / "images")
    truth = {}
    for subject in (1, 2):
        data = Original(subject)
        write = data.write_h5 if kind == "h5" else data.write_mat
        write(root / f"Subject{subject}.{kind}")
        seen = data.kind < 3
        shown = [name for name, s in zip(data.shown, seen, strict=True) if s]
        units = unit(data.kind[seen], data.run[seen])
        values = data.voxels[seen, :9]
        truth[f"god-S{subject}"] = Truth(named(shown), values, {*named(TEST)}, "run", units)
    return God(root, truth, str)


def make_fmriprep(root: Path) -> God:
    """Subject 1 of the later preprocessing, and the images."""
    write_images(root / "images")
    data = FMRIPrep(1)
    parts = []
    for number, task in enumerate(("Training", "Test")):
        folder = root / "fmri_files" / task.lower()
        folder.mkdir(parents=True)
        data.write(folder, 1, task)
        values = data.voxels[task]
        parts.append((np.full(len(values), number), data.session[task], data.run[task]))
    shown = [name for task in ("Training", "Test") for name in data.names[task]]
    values = np.concatenate([data.voxels[task] for task in ("Training", "Test")])[:, :4]
    units = unit(*map(np.concatenate, zip(*parts, strict=True)))
    return God(root, {"god-S1": Truth(named(shown), values, {*named(TEST)}, "run", units)}, str)


def make_npz(root: Path, compressed: bool = False) -> God:
    """Subject 3 as released with SelfSuperReconst."""
    root.mkdir()
    data = Npz(3)
    data.write(root / "sbj_3.npz", compressed)
    write_image_arrays(root / "images_112.npz")
    shown = [f"god-train{i:04d}" for i in data.labels["train"]]
    tests = [f"god-test{i:04d}" for i in data.labels["test"]]
    values = np.concatenate([data.train, data.test])[:, :9]
    units = np.repeat([0, 1], [len(shown), len(tests)])

    def name(image_id: str) -> str:
        return (TRAINING if "train" in image_id else TEST)[int(image_id[-4:])]

    truth = Truth(shown + tests, values, {*tests}, "none", units)
    return God(root, {"god-S3": truth}, name)


# --- damage


def rewritten(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        with h5py.File(root / "Subject1.h5", "r+") as file:
            change(file)

    return spoil


def renamed(key: str) -> Callable[[Path], None]:
    def rename(file: h5py.File) -> None:
        keys = file["metadata/key"][:].tolist()
        replace(file, "metadata/key", [b"Other" if k == key.encode() else k for k in keys])

    return rewritten(rename)


def table(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return rewritten(lambda file: replace(file, "dataset", change(file["dataset"][:])))


def replace(file: h5py.File, name: str, values: object) -> None:
    del file[name]
    file[name] = values


def rounded(root: Path) -> None:
    with h5py.File(root / "Subject1.h5", "r+") as file:
        file["dataset"][:, 2] = file["dataset"][:, 2].astype(np.float32)


def external(root: Path) -> None:
    os.rename(root / "Subject1.h5", root.parent / "hidden.h5")
    with h5py.File(root / "Subject1.h5", "w") as file:
        for name in ("dataset", "metadata"):
            file[name] = h5py.ExternalLink(str(root.parent / "hidden.h5"), name)


def absurd(root: Path) -> None:
    with h5py.File(root / "Subject1.h5", "r+") as file:
        del file["dataset"]
        file.create_dataset("dataset", (10**11, 13), "f8", chunks=(10**6, 1))


def wrong_version(root: Path) -> None:
    os.rename(root / "Subject1.h5", root / "Subject1.mat")


def twice(root: Path) -> None:
    (root / "small").mkdir()
    Image.fromarray(image_pixels("n01518878_109")).save(root / "small/n01518878_109.png")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no images": (
        lambda r: os.rename(r / "images", r.parent / "gone"),
        "has none of the 11 images",
    ),
    "labels rounded to float32": (rounded, "rounded to float32"),
    "a table of float32": (table(lambda t: t.astype(np.float32)), "rounded to float32"),
    "labels as whole numbers": (table(np.floor), "does not say which image was shown"),
    "labels of seven digits": (
        table(lambda t: np.where(t > 1e6, t + 5e-7, t)),
        "expected numbers such as",
    ),
    "no labels": (renamed("Label"), "nothing says which image was shown"),
    "no kinds": (renamed("DataType"), "'DataType' is missing"),
    "no voxels": (renamed("VoxelData"), "'VoxelData' is missing"),
    "an unknown kind": (
        rewritten(lambda f: f["dataset"].__setitem__((0, 0), 4)),
        "DataType: expected 1, 2 or 3",
    ),
    "half a run": (
        rewritten(lambda f: f["dataset"].__setitem__((0, 1), 1.5)),
        "run: expected whole numbers",
    ),
    "no table": (
        rewritten(lambda f: f.__delitem__("dataset")),
        "'dataset' or 'dataSet' is missing",
    ),
    "no metadata": (
        rewritten(lambda f: f.__delitem__("metadata/value")),
        "'metadata/value' is missing",
    ),
    "metadata of another table": (
        rewritten(lambda f: replace(f, "metadata/value", f["metadata/value"][:, 1:])),
        r"expected \(13, 13\)",
    ),
    "text": (table(lambda t: t.astype("S9")), "of kind 'f'"),
    "truncated": (lambda r: cut(r / "Subject1.h5"), r"Subject1\.h5"),
    "metadata flipped": (lambda r: flip(r / "Subject1.h5", 0.001, 40), r"Subject1\.h5"),
    "an error page": (
        lambda r: (r / "Subject1.h5").write_text("<html></html>"),
        "is not an HDF5 file",
    ),
    "an image that is a link out": (
        lambda r: move_out(r / "images/test/n01443537_22563.JPEG", r),
        "is a link to",
    ),
    "links within HDF5": (external, "is a link; expected the data themselves"),
    "absurd size": (absurd, "too many to be what is expected"),
    "MATLAB 7.3": (wrong_version, r"converted to MATLAB's version 7\.3"),
    "an image cut": (
        lambda r: cut(r / "images/training/n01518878_109.JPEG"),
        "n01518878_109.JPEG cannot be read",
    ),
    "an image twice": (twice, "'n01518878_109' is there twice"),
    "two files of a subject": (
        lambda r: Original(1).write_h5(r / "images/subject01.h5"),
        "two files of one subject",
    ),
    "no subjects": (
        lambda r: [(r / f"Subject{s}.h5").unlink() for s in (1, 2)],
        "no subject found",
    ),
}


def zip_bomb(root: Path) -> None:
    with (
        zipfile.ZipFile(root / "sbj_3.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("arr_0.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
        )
        member.write(bytes(1 << 20))


BAD_NPZ: dict[str, tuple[Callable[[Path], object], str]] = {
    "labels from 1": (
        lambda r: Npz(3).write(r / "sbj_3.npz", arr_3=Npz(3).labels["train"] + 1),
        "from 0 to 7",
    ),
    "labels of other trials": (
        lambda r: Npz(3).write(r / "sbj_3.npz", arr_4=np.tile([0, 1, 2], REPEATS)),
        "out of order",
    ),
    "a label too few": (
        lambda r: Npz(3).write(r / "sbj_3.npz", arr_3=Npz(3).labels["train"][1:]),
        r"expected \(8\)",
    ),
    "other voxels in the test": (
        lambda r: Npz(3).write(r / "sbj_3.npz", arr_1=Npz(3).test[:, 1:]),
        "10 voxels in training, 9",
    ),
    "a mask too short": (
        lambda r: Npz(3).write(r / "sbj_3.npz", V1=np.ones(3, bool)),
        r"'V1': expected \(10\)",
    ),
    "no mask": (lambda r: Npz(3).write(r / "sbj_3.npz", VC=None), "no area 'VC'; found V1"),
    "pickled": (
        lambda r: Npz(3).write(r / "sbj_3.npz", arr_0=np.array([{}])),
        "holds pickled objects",
    ),
    "no responses": (lambda r: Npz(3).write(r / "sbj_3.npz", arr_0=None), "no array 'arr_0'"),
    "truncated": (lambda r: cut(r / "sbj_3.npz"), r"sbj_3\.npz cannot be read"),
    "flipped": (lambda r: flip(r / "sbj_3.npz", 0.05, 40), r"sbj_3\.npz"),
    "a bomb": (zip_bomb, r"sbj_3\.npz"),
    "no images": (lambda r: (r / "images_112.npz").unlink(), r"has no images_112\.npz"),
    "images up to 255": (
        lambda r: np.savez(
            r / "images_112.npz",
            **{k: v * 255 for k, v in write_image_arrays(r / "images_112.npz").items()},
        ),
        "values from 0 to 1",
    ),
    "images that are no numbers": (
        lambda r: np.savez(
            r / "images_112.npz",
            **{k: v * np.nan for k, v in write_image_arrays(r / "images_112.npz").items()},
        ),
        "values from 0 to 1",
    ),
    "images flipped": (
        lambda r: flip(r / "images_112.npz", 0.5, 40),
        r"images_112\.npz cannot be read",
    ),
}


def on_root(bad: dict[str, tuple[Callable[[Path], object], str]]) -> dict:
    return {
        name: (lambda d, spoil=spoil: spoil(d.root), message)
        for name, (spoil, message) in bad.items()
    }


FORMS = {
    "god-h5": Form(
        lambda root: make_original(root, "h5"),
        import_god,
        link="Subject1.h5",
        damages=on_root(BAD),
        options=(
            ({"areas": "MT"}, "no area 'MT'; found V1, V2, LOC, LVC, HVC, VC"),
            ({"release": "bids"}, "--release bids: expected one of auto, original"),
            ({"release": "npz"}, "no subject found"),
        ),
        command="god",
    ),
    "god-mat": Form(lambda root: make_original(root, "mat"), import_god),
    "god-fmriprep": Form(make_fmriprep, import_god),
    "god-npz": Form(
        make_npz, import_god, needed=("images_112.npz",), link="sbj_3.npz", damages=on_root(BAD_NPZ)
    ),
    "god-npz-compressed": Form(lambda root: make_npz(root, True), import_god),
}
