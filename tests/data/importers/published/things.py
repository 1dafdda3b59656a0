"""THINGS-fMRI: the tables of two subjects, betas as pandas writes them in its format "fixed" (as
published) and "table"; written with h5py, as PyTables lays them out.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from published import Dataset, Form, Truth, cut, empty, links_within, web_page
from ubrain.data.importers.things import import_things

N_VOXELS, N_REPEATS = {"sub-01": 11, "sub-02": 9}, 3
TRAIN = [f"{concept}_{i:02d}s.jpg" for concept in ("cat", "air_bag", "bow1") for i in range(4)]
TEST = ["cat_20s.jpg", "air_bag_21n.jpg", "tea_pot2_22s.jpg"]
NAMES = ("ResponseData.h5", "VoxelMetadata.csv", "StimulusMetadata.csv")
OPENNEURO = tuple(
    f"task-things_{name}"
    for name in ("voxel-wise-responses.h5", "voxel-metadata.tsv", "stimulus-metadata.tsv")
)
BETAS, VOXELS, TRIALS = (f"betas_csv/sub-01_{name}" for name in NAMES)


def picture(name: str) -> np.ndarray:
    return np.random.default_rng([*name.encode()]).integers(0, 256, (5, 6, 3), np.uint8)


def write_fixed(path: Path, betas: np.ndarray, ids: np.ndarray | None) -> None:
    """(n_voxels, n_trials), and voxel_id, unless None; what is pickled cannot be unpickled."""
    with h5py.File(path, "w") as file:
        group = file.create_group("ResponseData")
        group.attrs.update(CLASS="GROUP", pandas_type="frame", ndim=2, axis0_variety="regular")
        names = np.frombuffer(b"cno_such_module\nf\n.", np.uint8)
        for name in ("axis0", "block0_items"):
            data = group.create_dataset(name, (1,), h5py.vlen_dtype(np.uint8))
            data[0] = names
            data.attrs.update(CLASS="VLARRAY", PSEUDOATOM="object", kind="object")
        group["axis1"] = np.arange(len(betas))
        group["block0_values"] = betas
        group["block0_values"].attrs.update(CLASS="ARRAY", transposed=np.True_)
        if ids is not None:
            group["block1_items"] = np.array([b"voxel_id"])
            group["block1_values"] = ids[:, None]


def write_table(path: Path, betas: np.ndarray, ids: np.ndarray | None) -> None:
    """The same as records; voxel_id is a column of its own (a data column)."""
    fields = [("index", np.int64), ("values_block_0", betas.dtype, betas.shape[1:])]
    rows = np.zeros(len(betas), [*fields, ("voxel_id", np.int64)] if ids is not None else fields)
    rows["index"], rows["values_block_0"] = np.arange(len(betas)), betas
    if ids is not None:
        rows["voxel_id"] = ids
    with h5py.File(path, "w") as file:
        group = file.create_group("ResponseData")
        table = group.create_dataset("table", data=rows, chunks=(4,), maxshape=(None,))
        table.attrs["values_block_0_kind"] = np.bytes_(pickle.dumps(["x"], 0))
        group.create_group("_i_table/index").attrs["CLASS"] = "CINDEX"


def write_one_block(path: Path, betas: np.ndarray, ids: np.ndarray | None) -> None:
    """If voxel_id has the type of the betas, it is in one array with them, and comes first."""
    assert ids is not None
    write_fixed(path, np.column_stack([ids.astype(betas.dtype), betas]), None)


class Published(Dataset):
    """Two sessions of two runs; trials are shuffled, and so are the rows of their table."""

    def __init__(self, root: Path, write: Callable = write_fixed, openneuro: bool = False) -> None:
        self.root, self.write, self.names = root, write, OPENNEURO if openneuro else NAMES
        self.place = "derivatives/ICA-betas/{}/voxel-metadata" if openneuro else "betas_csv"
        self.tables: dict[str, dict[str, Any]] = {s: self.content(s) for s in N_VOXELS}
        for subject in N_VOXELS:
            self.write_subject(subject)
        for name in (*TRAIN, *TEST):
            path = self.file(f"object_images/{name.rpartition('_')[0]}/{name}")
            Image.fromarray(picture(name)).save(path, format="PNG")

    def content(self, subject: str) -> dict[str, Any]:
        n = N_VOXELS[subject]
        rng = np.random.default_rng(n)
        absent = ["missing_01s.jpg"] * (subject == "sub-01")
        shown = rng.permutation([*TRAIN, *TEST * N_REPEATS, *absent])
        trials = pd.DataFrame(
            {
                "trial_type": ["test" if name in TEST else "train" for name in shown],
                "session": np.arange(len(shown)) // 11 + 1,
                "run": np.arange(len(shown)) // 6 % 2 + 1,
                "subject_id": int(subject[-1]),
                "trial_id": np.arange(len(shown)),
                "stimulus": shown,
                "concept": [name.rpartition("_")[0] for name in shown],
            }
        )
        voxels = pd.DataFrame({"voxel_id": np.arange(n), "subject_id": int(subject[-1])})
        voxels["voxel_x"], voxels["voxel_y"], voxels["voxel_z"] = 10 + np.arange(n), 7, 3
        voxels["nc_singletrial"] = np.linspace(0, 20, n)
        voxels["nc_testset"] = np.linspace(0, 60, n)
        voxels["prf-size"] = 1.5
        for column, rows in {
            "V1": [0, 1],
            "LO1 (prf)": [2],
            "lFFA": [3, 4],
            "rEBA": [4 % n],
        }.items():
            voxels[column] = np.isin(np.arange(n), rows).astype(int)
        voxels["glasser-FFC"] = np.isin(np.arange(n), [3]).astype(float)
        betas = rng.normal(0.5, 1.2, (n, len(shown)))
        betas[5] = 0  # a voxel without data
        return {"trials": trials, "voxels": voxels, "betas": betas}

    def path(self, subject: str, number: int) -> Path:
        return self.file(f"{self.place.format(subject)}/{subject}_{self.names[number]}")

    def write_subject(self, subject: str) -> None:
        made = self.tables[subject]
        ids = made["voxels"]["voxel_id"].to_numpy()
        self.write(self.path(subject, 0), made["betas"], ids)
        made["voxels"].to_csv(self.path(subject, 1), index=False)
        made["trials"].sample(frac=1, random_state=0).to_csv(self.path(subject, 2), index=False)

    def truth(self) -> dict[str, Truth]:
        found = {}
        for subject, made in self.tables.items():
            there = (made["trials"]["stimulus"] != "missing_01s.jpg").to_numpy()
            trials = made["trials"][there]
            found[f"things-{subject}"] = Truth(
                [f"things-{Path(name).stem}" for name in trials["stimulus"]],
                np.delete(made["betas"], 5, axis=0).T[there],
                {f"things-{Path(name).stem}" for name in TEST},
                units=trials["session"].to_numpy(),
                dropped=1,
            )
        return found

    def pixels_of(self, image_id: str) -> np.ndarray:
        return picture(f"{image_id.removeprefix('things-')}.jpg")


# --- damage


def on(name: str, spoil: Callable[[Path], object]) -> Callable[[Dataset], object]:
    return lambda data: spoil(data.root / name)


def table(name: str, change: Callable[[pd.DataFrame], object]) -> Callable[[Dataset], object]:
    """Another table, made by `change` of the one that is there, in place or anew."""

    def spoil(path: Path) -> None:
        before = pd.read_csv(path)
        made = change(before)
        (made if isinstance(made, pd.DataFrame) else before).to_csv(path, index=False)

    return on(name, spoil)


def arrays(**content: Any) -> Callable[[Dataset], object]:
    """Other arrays in the group of the betas; None: gone."""

    def spoil(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            for name, values in content.items():
                if name in file["ResponseData"]:
                    del file["ResponseData"][name]
                if values is not None:
                    file["ResponseData"][name] = values

    return on(BETAS, spoil)


def huge(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("ResponseData/block0_values", (10**7, 10**7), "f8", chunks=(1, 10))


def twice(data: Dataset) -> None:
    other = data.file("copy/sub-01_ResponseData.h5")
    other.write_bytes((data.root / BETAS).read_bytes())


N = len(TRAIN) + N_REPEATS * len(TEST) + 1
DAMAGES = {
    "betas truncated": (on(BETAS, cut), r"sub-01_ResponseData\.h5"),
    "betas empty": (on(BETAS, empty), "is not an HDF5 file"),
    "a web page": (on(BETAS, web_page), "is not an HDF5 file"),
    "links within HDF5": (on(BETAS, links_within), r"found none"),
    "absurd size": (on(BETAS, huge), r"found \(10000000, 10000000\)"),
    "no betas": (arrays(block0_values=None), rf"11 voxels .* × {N} trials .*found \(11, 1\)"),
    "whole numbers": (arrays(block0_values=np.ones((11, N), int)), "expected one table of betas"),
    "turned": (arrays(block0_values=np.ones((N, 11))), "expected one table of betas"),
    "a trial too few": (arrays(block0_values=np.ones((11, N - 1))), rf"found \(11, {N - 1}\)"),
    "a voxel too few": (arrays(block0_values=np.ones((10, N))), rf"found \(10, {N}\)"),
    "two arrays of betas": (arrays(block2_values=np.ones((11, N))), "expected one table of betas"),
    "text": (arrays(block0_values="text"), "expected one table of betas"),
    "other voxels": (arrays(block1_values=np.arange(11)[::-1, None]), "voxel_id of row 0 is 10"),
    "twice": (twice, "are the same; keep one of them"),
    "no voxel_x": (table(VOXELS, lambda t: t.pop("voxel_x")), "no column 'voxel_x'"),
    "an area of many numbers": (
        table(VOXELS, lambda t: t.insert(0, "V2", 0.5)),
        "column 'V2': expected 0 and 1",
    ),
    "ceiling as a share": (
        table(VOXELS, lambda t: t.assign(nc_testset=t["nc_testset"] / 100)),
        "nc_testset: expected percent from 0 to 100, got 0 to 0.6",
    ),
    "a place twice": (table(VOXELS, lambda t: t.assign(voxel_x=1)), "is there twice"),
    "half a place": (table(VOXELS, lambda t: t.assign(voxel_x=0.5)), "expected whole numbers"),
    "voxels truncated": (on(VOXELS, cut), r"sub-01_VoxelMetadata\.csv"),
    "trials from 1": (
        table(TRIALS, lambda t: t.assign(trial_id=t["trial_id"] + 1)),
        "'trial_id': expected each number from 0 to",
    ),
    "a trial missing": (table(TRIALS, lambda t: t[t["trial_id"] != 3]), "'trial_id': expected"),
    "the last trial missing": (
        table(TRIALS, lambda t: t[t["trial_id"] != N - 1].drop(columns="concept")),
        rf"× {N - 1} trials",
    ),
    "catch trials": (
        table(TRIALS, lambda t: t.assign(trial_type="catch")),
        "expected train or test",
    ),
    "no name": (table(TRIALS, lambda t: t.assign(stimulus=None)), "'stimulus' has empty cells"),
    "sessions with names": (
        table(TRIALS, lambda t: t.assign(session="one")),
        r"sub-01_StimulusMetadata\.csv cannot be read",
    ),
    "one image in both": (
        table(
            TRIALS, lambda t: t.assign(trial_type=["test", *["train"] * (N - 1)], stimulus=TEST[0])
        ),
        "is an image of training and of test trials",
    ),
    "an image cut": (on(f"object_images/cat/{TEST[0]}", cut), "cannot be read"),
}
FORMS = {
    "things": Form(
        Published,
        import_things,
        needed=(VOXELS, TRIALS),
        link=BETAS,
        damages=DAMAGES,
        command="things",
    ),
    "things-table": Form(lambda root: Published(root, write_table), import_things),
    "things-openneuro": Form(lambda root: Published(root, write_one_block, True), import_things),
}
