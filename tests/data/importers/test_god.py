"""Generic Object Decoding: files of its three releases, written exactly as published, at tiny
size.
"""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from PIL import Image

from ubrain.crowd import Crowd
from ubrain.data.importers.god import import_god
from ubrain.data.importers.recording import Options

EXACT = Options(dtype="float32", val_fraction=0.2)
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


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crowd.h5"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The first release, subjects 1 and 2, and the images."""
    root = tmp_path / "god"
    write_images(root / "images")
    for subject in (1, 2):
        Original(subject).write_h5(root / f"Subject{subject}.h5")
    return root


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The later preprocessing, subject 1, and the images."""
    root = tmp_path / "god"
    write_images(root / "images")
    for task in ("Training", "Test"):
        (root / "fmri_files" / task.lower()).mkdir(parents=True)
        FMRIPrep(1).write(root / "fmri_files" / task.lower(), 1, task)
    return root


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """The release with SelfSuperReconst, subject 3."""
    root = tmp_path / "data"
    root.mkdir()
    Npz(3).write(root / "sbj_3.npz")
    write_image_arrays(root / "images_112.npz")
    return root


def zscored(values: np.ndarray, *units: np.ndarray) -> np.ndarray:
    """z-scores within each combination of units."""
    out = np.empty_like(values)
    for unit in np.unique(np.column_stack(units), axis=0):
        rows = (np.column_stack(units) == unit).all(axis=1)
        out[rows] = (values[rows] - values[rows].mean(0)) / values[rows].std(0)
    return out


def check_responses(out: Path, subject: str, names: list[str], expected: np.ndarray) -> None:
    """The crowd has these responses, one row a trial, averaged by image."""
    with Crowd(out) as crowd:
        unique = sorted(set(names))
        mine = crowd[subject].responses_to(crowd.rows([f"god-{name}" for name in unique]))
        theirs = np.stack([expected[[n == name for n in names]].mean(0) for name in unique])
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)


# --- first release


def test_responses_are_z_scored_within_each_run_of_training_and_of_test(
    root: Path, out: Path
) -> None:
    text = import_god(root, out, EXACT)
    for subject in (1, 2):
        data = Original(subject)
        seen = data.kind < 3
        expected = zscored(
            data.voxels[seen, :9], data.kind[seen], data.run[seen]
        )  # runs of both kinds count from 1
        check_responses(
            out,
            f"god-S{subject}",
            [n for n, s in zip(data.shown, seen, strict=True) if s],
            expected,
        )
    assert "z-scored over the trials of each run" in text
    assert "3 trials of imagery were left out" in text


def test_images_belong_to_ids_to_the_last_digit(root: Path, out: Path) -> None:
    import_god(root, out, EXACT)
    with Crowd(out) as crowd:
        assert len(crowd.image_ids) == len(TRAINING) + len(TEST)
        for name in TRAINING + TEST:
            np.testing.assert_array_equal(crowd.image(f"god-{name}"), image_pixels(name))
        assert crowd["god-S1"].trials.repeats(
            crowd.rows(["god-n01518878_5958", "god-n01518878_5959"])
        ).tolist() == [1, 1]
        keys = crowd.file["images/key"].asstr()[:]
        assert keys[crowd.rows(["god-n03767745_109"])[0]] == "imagenet:n03767745_109"


def test_ids_that_are_off_by_the_last_bit_belong_to_the_nearest_image(
    root: Path, out: Path
) -> None:
    data = Original(1)
    data.dataset[:, 2] = np.nextafter(
        data.dataset[:, 2], np.where(np.arange(len(data.dataset)) % 2, 0, np.inf)
    )
    data.write_h5(root / "Subject1.h5")
    import_god(root, out, Options(dtype="float32", val_fraction=0.2, subjects=["1"]))
    check_responses(out, "god-S1", data.shown[:8], zscored(data.voxels[:8, :9], data.run[:8]))


def test_test_images_are_those_of_the_perception_test_with_35_repeats(
    root: Path, out: Path
) -> None:
    text = import_god(root, out, EXACT)
    with Crowd(out) as crowd:
        subject = crowd["god-S1"]
        assert sorted(subject.images("test")) == sorted(f"god-{name}" for name in TEST)
        assert subject.trials.repeats(subject.image_rows("test")).tolist() == [REPEATS] * len(TEST)
        assert subject.voxels["ncsnr"].notna().all()
        assert (subject.dataset, subject.scanner) == ("GOD", "3T")
    assert "3 test (35 trials each)" in text
    assert "ncsnr computed from the repeats" in text


def test_voxels_and_areas_are_where_the_metadata_say_1(root: Path, out: Path) -> None:
    import_god(root, out, EXACT)
    with Crowd(out) as crowd:
        voxels = crowd["god-S1"].voxels
    assert list(voxels["areas"]) == ["V1,LVC,VC"] * 3 + ["V2,LVC,VC"] * 2 + ["HVC,VC"] + [
        "LOC,HVC,VC"
    ] * 2 + ["HVC,VC"]
    np.testing.assert_allclose(voxels["x"], np.linspace(-30, 30, N_VOXELS)[:9], rtol=1e-6)
    np.testing.assert_allclose(voxels["y"], -70.5)


@pytest.mark.parametrize(
    ("areas", "columns"),
    [("v1,ROI_LOC", [0, 1, 2, 6, 7]), ("V2", [3, 4]), ("none", list(range(10)))],
)
def test_voxels_of_some_areas(root: Path, out: Path, areas: str, columns: list[int]) -> None:
    import_god(root, out, EXACT, areas=areas)
    data = Original(1)
    expected = zscored(data.voxels[:, columns], data.kind, data.run)
    check_responses(out, "god-S1", data.shown[:8], expected[:8])


@pytest.mark.parametrize(
    "form", ["mat", "mat elsewhere", "legacy names", "stimulus_id", "run of one kind"]
)
def test_variants_of_the_file_give_the_same(root: Path, out: Path, form: str) -> None:
    data = Original(1)
    if form == "mat":
        data.write_mat(root / "Subject1.mat")
        (root / "Subject1.h5").unlink()
    if form == "mat elsewhere":
        (root / "Another").mkdir()
        Original(2).write_mat(root / "Another/Subject1.mat")
    if form == "stimulus_id":
        data.label = "stimulus_id"
    if form != "mat":
        data.write_h5(root / "Subject1.h5", legacy=form == "legacy names")
    import_god(root, out, Options(dtype="float32", val_fraction=0.2, subjects=["1"]))
    check_responses(out, "god-S1", data.shown[:8], zscored(data.voxels[:8, :9], data.run[:8]))
    with Crowd(out) as crowd:
        assert crowd["god-S1"].voxels["areas"][3] == "V2,LVC,VC"


@pytest.mark.parametrize("normalise", ["session", "none"])
def test_other_ways_to_z_score(root: Path, out: Path, normalise: str) -> None:
    text = import_god(root, out, Options(dtype="float32", normalise=normalise))
    assert (
        f"Z-scoring is chosen with --normalise {normalise}; the custom with these responses is run"
        in text
    )
    data = Original(1)
    expected = (
        zscored(data.voxels[:8, :9], data.kind[:8])
        if normalise == "session"
        else data.voxels[:8, :9]
    )
    check_responses(out, "god-S1", data.shown[:8], expected)


@pytest.mark.parametrize("normalise", ["run", "none"])
def test_ncsnr_has_no_unit(root: Path, out: Path, normalise: str) -> None:
    """Of responses that are not z-scored, too: their noise is divided by their variance."""
    data = Original(1)
    data.voxels[:] = np.random.default_rng(3).normal(size=data.voxels.shape) * 5 + 3
    shown = np.array(data.shown)
    for name in TEST:
        data.voxels[shown == name] += (
            np.random.default_rng(int(image_id(name))).normal(size=N_VOXELS) * 6
        )
    data.dataset[:, N_META:] = data.voxels
    data.write_h5(root / "Subject1.h5")
    text = import_god(root, out, Options(dtype="float32", subjects=["1"], normalise=normalise))
    seen = data.kind < 3
    values, shown = data.voxels[seen, :9], shown[seen]
    values = zscored(values, data.kind[seen], data.run[seen]) if normalise == "run" else values
    noise = np.mean([values[shown == name].var(0, ddof=1) for name in TEST], axis=0) / values.var(0)
    with Crowd(out) as crowd:
        np.testing.assert_allclose(
            crowd["god-S1"].voxels["ncsnr"], np.sqrt(np.maximum(1 - noise, 0) / noise), rtol=1e-3
        )
    assert ("as they are, without z-scoring" in text) == (normalise == "none")
    assert "z-scored already" not in text


def test_without_runs_the_session_is_z_scored(root: Path, out: Path) -> None:
    data = Original(1)
    renamed("Run")(root)
    text = import_god(root, out, Options(dtype="float32", val_fraction=0.2, subjects=["S1"]))
    assert "z-scored over the trials of each session" in text
    check_responses(out, "god-S1", data.shown[:8], zscored(data.voxels[:8, :9], data.kind[:8]))


def test_zero_padded_and_lower_case_names_of_images_are_found(root: Path, out: Path) -> None:
    folder = root / "images/training"
    os.rename(folder / "n01518878_5958.JPEG", folder / "N01518878_005958.jpeg")
    import_god(root, out, EXACT)
    with Crowd(out) as crowd:
        np.testing.assert_array_equal(
            crowd.image("god-n01518878_5958"), image_pixels("n01518878_5958")
        )


def test_images_may_be_in_another_folder(root: Path, out: Path, tmp_path: Path) -> None:
    os.rename(root / "images", tmp_path / "elsewhere")
    import_god(root, out, EXACT, images=tmp_path / "elsewhere")
    with Crowd(out) as crowd:
        assert len(crowd.image_ids) == len(TRAINING) + len(TEST)


def test_trials_without_an_image_are_left_out_and_said(root: Path, out: Path) -> None:
    (root / "images/training/n01518878_5958.JPEG").unlink()
    (root / "images/test/n03767745_109.JPEG").unlink()
    text = import_god(root, out, EXACT)
    assert "Not there: 2 images, such as n01518878_5958; their 36 trials are left out" in text
    data = Original(1)
    keep = np.array([n not in ("n01518878_5958", "n03767745_109") for n in data.shown]) & (
        data.kind < 3
    )
    names = [name for name, k in zip(data.shown, keep, strict=True) if k]
    check_responses(
        out, "god-S1", names, zscored(data.voxels[keep, :9], data.kind[keep], data.run[keep])
    )


def test_one_picture_under_two_names_is_one_image(root: Path, out: Path) -> None:
    """Whatever is drawn by the names: half of the images are val images here, so that some pair
    would be parted.
    """
    pixels = Image.fromarray(image_pixels(TRAINING[0]))
    for name in TRAINING:
        pixels.save(root / f"images/training/{name}.JPEG", format="PNG")
    text = import_god(root, out, Options(dtype="float32", val_fraction=0.5))
    assert f"{len(TRAINING) - 1} images are identical to other images of the dataset" in text
    with Crowd(out) as crowd:
        assert len(crowd.image_ids) == 1 + len(TEST)
        assert crowd["god-S1"].trials.repeats(crowd.rows(["god-n01518878_109"])).tolist() == [
            len(TRAINING)
        ]


def test_a_trial_of_an_unnamed_image_is_left_out(root: Path, out: Path) -> None:
    with h5py.File(root / "Subject1.h5", "r+") as file:
        file["dataset"][0, 2] = np.nan
    text = import_god(root, out, EXACT)
    assert "1 trials of which the file does not name the image were left out" in text


def test_small_parts_give_the_same(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ubrain.data.importers.god.PART_BYTES", 8 * 13 * 5)
    test_trials_without_an_image_are_left_out_and_said(root, out)


def test_missing_subjects_are_said_unless_asked_for(root: Path, out: Path, refused, caplog) -> None:
    with refused(out, "no subject '3'; found S1, S2"):
        import_god(root, out, Options(subjects=["3"]))
    import_god(root, out, Options(dtype="float32", subjects=["god-S2"]))
    assert "no files of S3, S4, S5" in caplog.text
    with Crowd(out) as crowd:
        assert crowd.subjects == ["god-S2"]


def test_command_line(root: Path, out: Path, run_cli) -> None:
    done = run_cli(
        "import",
        "god",
        "--root",
        root,
        "--out",
        out,
        "--subjects",
        "1",
        "--areas",
        "V1",
        "--dtype",
        "float32",
    )
    assert done.returncode == 0, done.stderr
    assert (
        "god-S1 (GOD, 3T, volume): 113 trials of 11 images in 2 session(s), 3 voxels" in done.stdout
    )


# -------------------------------------------------------------------------------------------------
# later preprocessing


def test_later_release_names_images_by_label_and_z_scores_runs_of_sessions(
    later: Path, out: Path
) -> None:
    import_god(later, out, EXACT)
    data = FMRIPrep(1)
    for task, names in data.names.items():
        check_responses(
            out,
            "god-S1",
            names,
            zscored(data.voxels[task][:, :4], data.session[task], data.run[task]),
        )
    with Crowd(out) as crowd:
        assert sorted(crowd["god-S1"].images("test")) == sorted(f"god-{name}" for name in TEST)
        assert list(crowd["god-S1"].voxels["areas"]) == ["V1,VC", "V1,VC", "hV4,VC", "VC"]
        assert list(crowd["god-S1"].voxels["i"]) == [5, 6, 7, 8]


def test_image_index_is_looked_up_in_the_tables(later: Path, out: Path, refused) -> None:
    data = FMRIPrep(1)
    for task in ("Training", "Test"):
        data.write(later / "fmri_files" / task.lower(), 1, task, label="image_index")
    with refused(out, "only has numbers of images; put stimulus_ImageNetTraining.tsv"):
        import_god(later, out, EXACT)
    for task, names in data.order.items():
        table = pd.DataFrame([(n, image_id(n), 1, i) for i, n in enumerate(names, start=1)])
        table.to_csv(later / f"stimulus_ImageNet{task}.tsv", sep="\t", header=False, index=False)
    import_god(later, out, EXACT)
    check_responses(
        out,
        "god-S1",
        TRAINING,
        zscored(data.voxels["Training"][:, :4], data.session["Training"], data.run["Training"]),
    )


def test_only_training_is_there(later: Path, out: Path) -> None:
    (later / "fmri_files/test/Subject1_ImageNetTest.h5").unlink()
    assert "Not there: trials of test images" in import_god(later, out, EXACT)


def test_both_releases_in_one_folder(later: Path, out: Path, caplog) -> None:
    Original(1).write_h5(later / "Subject1.h5")
    import_god(later, out, Options(dry_run=True))
    assert "several releases are there (original, fmriprep); taking original" in caplog.text
    assert "fmriprep release" in import_god(later, out, EXACT, release="fmriprep")


# --- release
# with SelfSuperReconst


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_labels_count_from_0_and_nothing_is_z_scored_again(
    packed: Path, out: Path, compressed: bool
) -> None:
    data = Npz(3)
    data.write(packed / "sbj_3.npz", compressed)
    text = import_god(packed, out, EXACT)
    check_responses(
        out, "god-S3", [f"train{i:04d}" for i in data.labels["train"]], data.train[:, :9]
    )
    check_responses(out, "god-S3", [f"test{i:04d}" for i in data.labels["test"]], data.test[:, :9])
    with Crowd(out) as crowd:
        subject = crowd["god-S3"]
        assert subject.trials.repeats(subject.image_rows("test")).tolist() == [REPEATS] * 3
        assert list(subject.voxels["areas"]) == ["V1,VC"] * 4 + ["VC"] * 5
        assert subject.trials.normalise == "none"
        assert subject.voxels["ncsnr"].notna().all()
        for i, name in enumerate(TRAINING):
            np.testing.assert_array_equal(crowd.image(f"god-train{i:04d}"), image_pixels(name))
    assert "noise ceiling is not used" in text


def test_npz_can_be_z_scored_again_but_its_runs_are_not_known(
    packed: Path, out: Path, refused
) -> None:
    data = Npz(3)
    data.write(packed / "sbj_3.npz")
    with refused(
        out,
        "--normalise run: which trials are of one run is not known; possible are auto, session and"
        " none",
    ):
        import_god(packed, out, Options(normalise="run"))
    import_god(packed, out, Options(dtype="float32", normalise="session"))
    check_responses(
        out,
        "god-S3",
        [f"train{i:04d}" for i in data.labels["train"]],
        zscored(data.train[:, :9], [0] * 8),
    )


# --- refusals


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    place = int(len(data) * at)
    data[place : place + 40] = bytes(byte ^ 0xFF for byte in data[place : place + 40])
    path.write_bytes(data)


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


def moved_out(path: Path, root: Path) -> None:
    os.rename(path, root.parent / path.name)
    path.symlink_to(root.parent / path.name)


def external(root: Path) -> None:
    os.rename(root / "Subject1.h5", root.parent / "hidden.h5")
    with h5py.File(root / "Subject1.h5", "w") as file:
        for name in ("dataset", "metadata"):
            file[name] = h5py.ExternalLink(str(root.parent / "hidden.h5"), name)


def absurd(root: Path) -> None:
    with h5py.File(root / "Subject1.h5", "r+") as file:
        del file["dataset"]
        file.create_dataset("dataset", (10**11, 13), "f8", chunks=(10**6, 1))


def bomb(root: Path) -> None:
    """A MATLAB file of a few kB that unpacks to as many GB as it likes."""
    from ubrain.data.importers import bdata

    (root / "Subject1.h5").unlink()
    scipy.io.savemat(root / "Subject1.mat", {"dataSet": np.zeros((400, 500))}, do_compression=True)
    assert (root / "Subject1.mat").stat().st_size < 5000
    bdata.MAX_BYTES = 100_000


def wrong_version(root: Path) -> None:
    os.rename(root / "Subject1.h5", root / "Subject1.mat")


def twice(root: Path) -> None:
    (root / "small").mkdir()
    Image.fromarray(image_pixels("n01518878_109")).save(root / "small/n01518878_109.png")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
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
    "metadata flipped": (lambda r: flip(r / "Subject1.h5", 0.001), r"Subject1\.h5"),
    "an error page": (
        lambda r: (r / "Subject1.h5").write_text("<html></html>"),
        "is not an HDF5 file",
    ),
    "a link out": (lambda r: moved_out(r / "Subject1.h5", r), "is a link to"),
    "an image that is a link out": (
        lambda r: moved_out(r / "images/test/n01443537_22563.JPEG", r),
        "is a link to",
    ),
    "links within HDF5": (external, "is a link; expected the data themselves"),
    "absurd size": (absurd, "too many to be what is expected"),
    "MATLAB 7.3": (wrong_version, r"converted to MATLAB's version 7\.3"),
    "a bomb": (bomb, "are too large to be what is expected"),
    "an image cut": (
        lambda r: cut(r / "images/training/n01518878_109.JPEG"),
        "n01518878_109.JPEG cannot be read",
    ),
    "an image twice": (twice, "'n01518878_109' is there twice"),
    "no images": (
        lambda r: os.rename(r / "images", r.parent / "gone"),
        "has none of the 11 images",
    ),
    "two files of a subject": (
        lambda r: Original(1).write_h5(r / "images/subject01.h5"),
        "two files of one subject",
    ),
    "no subjects": (
        lambda r: [(r / f"Subject{s}.h5").unlink() for s in (1, 2)],
        "no subject found",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_refused(
    root: Path, out: Path, refused, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("ubrain.data.importers.bdata.MAX_BYTES", 1 << 29)
    spoil, message = BAD[kind]
    spoil(root)
    with refused(out, message):
        import_god(root, out, EXACT)


def test_a_damaged_mat_file_is_refused(root: Path, out: Path, refused) -> None:
    (root / "Subject1.h5").unlink()
    Original(1).write_mat(root / "Subject1.mat")
    whole = (root / "Subject1.mat").read_bytes()
    for at in np.linspace(0.02, 0.98, 12):
        (root / "Subject1.mat").write_bytes(whole)
        flip(root / "Subject1.mat", at)
        with refused(out, r"Subject1\.mat"):
            import_god(root, out, EXACT)
        (root / "Subject1.mat").write_bytes(whole[: int(len(whole) * at)])
        with refused(out, r"Subject1\.mat"):
            import_god(root, out, EXACT)


def test_test_trials_of_other_voxels_than_training_are_refused(
    later: Path, out: Path, refused
) -> None:
    with h5py.File(later / "fmri_files/test/Subject1_ImageNetTest.h5", "r+") as file:
        file["metadata/value"][-1, 3] = 77
    with refused(out, r"its voxels are not those of Subject1_ImageNetTraining\.h5"):
        import_god(later, out, EXACT)


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
    "flipped": (lambda r: flip(r / "sbj_3.npz", 0.05), r"sbj_3\.npz"),
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
        lambda r: flip(r / "images_112.npz", 0.5),
        r"images_112\.npz cannot be read",
    ),
}


@pytest.mark.parametrize("kind", BAD_NPZ)
def test_npz_that_does_not_fit_is_refused(packed: Path, out: Path, refused, kind: str) -> None:
    spoil, message = BAD_NPZ[kind]
    spoil(packed)
    with refused(out, message):
        import_god(packed, out, EXACT)


def test_options_that_make_no_sense(root: Path, out: Path, refused) -> None:
    for options, message in (
        ({"areas": "MT"}, "no area 'MT'; found V1, V2, LOC, LVC, HVC, VC"),
        ({"release": "bids"}, "--release bids: expected auto, original"),
        ({"release": "npz"}, "no subject found"),
    ):
        with refused(out, message):
            import_god(root, out, EXACT, **options)
