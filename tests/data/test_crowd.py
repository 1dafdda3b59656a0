"""Reading a crowd: responses, noise ceilings and rows, against plain numpy on the raw datasets."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest

from ubrain import trials
from ubrain.crowd import Crowd
from ubrain.data.crowdfile import write_crowd
from ubrain.data.importers.arrays import import_arrays
from ubrain.errors import UbrainError
from ubrain.trials import Trials, read_rows

SPLITS = ("train", "val", "test")


def zscored_trials(path: Path, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Responses z-scored per session (ddof 0) in float64, and the image row of each trial."""
    with h5py.File(path) as file:
        group = file["subjects"][subject]
        values, session = group["responses"][:].astype(np.float64), group["trials/session"][:]
        image = group["trials/image"][:]
    for s in np.unique(session):
        part = values[session == s]
        values[session == s] = (part - part.mean(0)) / part.std(0)
    return values, image


def expected_responses(path: Path, subject: str, split: str) -> np.ndarray:
    values, image = zscored_trials(path, subject)
    with h5py.File(path) as file:
        in_split = file["images/split"][:] == SPLITS.index(split)
    return np.stack([values[image == row].mean(0) for row in np.unique(image) if in_split[row]])


def import_sessions(recording: SimpleNamespace, repeats: list[int], seed: int = 5) -> Path:
    """A crowd file whose 12 images were repeated unevenly or evenly, shuffled over three unlike
    sessions.
    """
    rng = np.random.default_rng(seed)
    image = rng.permutation(np.repeat(np.arange(12), repeats))
    session = rng.permutation(np.arange(len(image)) % 3)
    noise = rng.normal(size=(len(image), 5)) * [0.3, 0.6, 1, 2, 4]
    values = (recording.values[image] + noise) * np.array([1, 5, 0.2])[session, None] + np.array(
        [0, 100, -7]
    )[session, None]
    np.save(recording.folder / "trials.npy", values)
    pd.DataFrame({"image": image, "session": session}).to_csv(
        recording.folder / "trials.csv", index=False
    )
    (recording.folder / "test.txt").write_text("image1\nimage3\nimage10.png\n")
    out = recording.folder / "sessions.h5"
    import_arrays(
        recording.images,
        recording.folder / "trials.npy",
        "A",
        out,
        trials=recording.folder / "trials.csv",
        test_images=recording.folder / "test.txt",
        val_fraction=0.3,
    )
    return out


UNEVEN = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 3, 3]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("subject", ["S1", "S2"])
def test_responses_of_simulated_crowd_equal_plain_numpy(
    small_crowd: Path, crowd: Crowd, subject: str, split: str
) -> None:
    found = crowd[subject].responses(split)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, expected_responses(small_crowd, subject, split), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("split", SPLITS)
def test_responses_over_sessions_and_uneven_repeats_equal_plain_numpy(
    recording: SimpleNamespace, split: str
) -> None:
    path = import_sessions(recording, UNEVEN)
    with Crowd(path) as crowd:
        np.testing.assert_allclose(
            crowd["A"].responses(split), expected_responses(path, "A", split), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "voxels",
    [
        slice(3, 17),
        slice(None, None, 4),
        slice(-6, None),
        slice(20, 2, -3),
        np.array([9, 0, 9, 4]),
        [1, 2],
        np.arange(0),
    ],
    ids=str,
)
def test_responses_of_some_voxels_are_columns_of_all(
    crowd: Crowd, voxels: slice | np.ndarray
) -> None:
    every = crowd["S1"].responses("test")
    chosen = voxels if isinstance(voxels, slice) else np.asarray(voxels)
    np.testing.assert_array_equal(crowd["S1"].responses("test", voxels), every[:, chosen])


def test_responses_of_masked_voxels(crowd: Crowd) -> None:
    mask = (crowd["S1"].voxels["areas"] == "V1").to_numpy()
    assert 0 < mask.sum() < len(mask)
    np.testing.assert_array_equal(
        crowd["S1"].responses("train", mask), crowd["S1"].responses("train")[:, mask]
    )


def test_rows_of_responses_are_those_of_images(recording: SimpleNamespace) -> None:
    """One trial per image, in the order of the folder: the z-scored values tell which image a row
    belongs to.
    """
    out = recording.folder / "out.h5"
    import_arrays(
        recording.images, recording.responses, "A", out, test_fraction=0.3, val_fraction=0.3
    )
    z = (recording.values - recording.values.mean(0)) / recording.values.std(0)
    with Crowd(out) as crowd:
        for split in SPLITS:
            numbers = [int(name.removeprefix("image")) for name in crowd["A"].images(split)]
            np.testing.assert_allclose(
                crowd["A"].responses(split), z[numbers], rtol=1e-4, atol=1e-5
            )
        assert sorted(n for s in SPLITS for n in crowd["A"].images(s)) == sorted(
            f"image{i}" for i in range(12)
        )


def test_responses_to_rows_in_any_order(crowd: Crowd) -> None:
    rows = crowd["S1"].image_rows("test")
    order = np.array([3, 0, 3, 8])
    np.testing.assert_array_equal(
        crowd["S1"].responses_to(rows[order]), crowd["S1"].responses("test")[order]
    )


@pytest.mark.parametrize("block_bytes", [1, 4000])
@pytest.mark.parametrize("repeats", [UNEVEN, [3] * 12], ids=["uneven", "even"])
def test_blocks_do_not_change_averages(
    recording: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    block_bytes: int,
    repeats: list[int],
) -> None:
    with Crowd(import_sessions(recording, repeats)) as crowd:
        whole, deviation = crowd["A"].responses("train"), crowd["A"].trials.repeat_deviation()
        monkeypatch.setattr(trials, "BLOCK_BYTES", block_bytes)
        np.testing.assert_allclose(crowd["A"].responses("train"), whole, rtol=1e-6)
        in_blocks = crowd["A"].trials.repeat_deviation()
    np.testing.assert_allclose(in_blocks[0], deviation[0], rtol=1e-6)
    assert in_blocks[1] == deviation[1] == sum(repeats) - 12


def test_voxel_constant_in_one_session_gives_zero_there(recording: SimpleNamespace) -> None:
    values = recording.values.copy()
    values[6:, 2] = 7.3
    out = recording.folder / "out.h5"
    with write_crowd(out) as writer:  # an import would drop the voxel
        rows = [writer.add_image(str(i), p, "train") for i, p in enumerate(recording.pixels)]
        trials = pd.DataFrame({"image": rows, "session": [0] * 6 + [1] * 6})
        writer.add_subject("A", trials, pd.DataFrame(index=range(5)), [values], "d", "3T")
    with Crowd(out) as crowd:
        responses = crowd["A"].responses("train")
    assert (responses[6:, 2] == 0).all()
    np.testing.assert_allclose(responses[:6, 2].std(), 1, rtol=1e-5)
    np.testing.assert_allclose(responses[6:, 1].std(), 1, rtol=1e-5)


def nsd_ncsnr(path: Path, subject: str) -> np.ndarray:
    """sqrt(max(1 - v², 0)) / v with v² the mean over images of the variance (ddof 1), as NSD
    defines it.
    """
    values, image = zscored_trials(path, subject)
    v = np.sqrt(np.mean([values[image == row].var(0, ddof=1) for row in np.unique(image)], axis=0))
    return np.sqrt(np.maximum(1 - v**2, 0)) / v


@pytest.mark.parametrize("subject", ["S1", "S2"])
def test_ncsnr_is_that_of_nsd(small_crowd: Path, crowd: Crowd, subject: str) -> None:
    found, expected = crowd[subject].voxels["ncsnr"].to_numpy(), nsd_ncsnr(small_crowd, subject)
    assert (expected > 0.1).sum() > 20
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


def test_ncsnr_over_sessions_is_that_of_nsd(recording: SimpleNamespace) -> None:
    path = import_sessions(recording, [4] * 12)
    with Crowd(path) as crowd:
        np.testing.assert_allclose(
            crowd["A"].voxels["ncsnr"], nsd_ncsnr(path, "A"), rtol=1e-3, atol=2e-3
        )


def test_ncsnr_is_unknown_without_repeats(recording: SimpleNamespace) -> None:
    out = recording.folder / "out.h5"
    import_arrays(recording.images, recording.responses, "A", out, test_fraction=0.5)
    with Crowd(out) as crowd:
        assert crowd["A"].voxels["ncsnr"].isna().all()
        assert np.isnan(crowd["A"].noise_ceiling("test")).all()


def test_noise_ceiling_uses_the_repeats_of_the_split(recording: SimpleNamespace) -> None:
    with Crowd(import_sessions(recording, UNEVEN)) as crowd:
        power = crowd["A"].voxels["ncsnr"].to_numpy(np.float64) ** 2
        assert (power > 0).any()
        one_by_repeats = np.mean([1 / UNEVEN[i] for i in (1, 3, 10)])
        np.testing.assert_allclose(
            crowd["A"].noise_ceiling("test"), power / (power + one_by_repeats)
        )


def test_no_noise_ceiling_without_images(recording: SimpleNamespace) -> None:
    out = recording.folder / "out.h5"
    import_arrays(recording.images, recording.responses, "A", out, test_fraction=0)
    with Crowd(out) as crowd, pytest.raises(UbrainError, match="'A' has no test images"):
        crowd["A"].noise_ceiling("test")


@pytest.mark.parametrize(
    "rows", [[0, 1, 2], [4, 2, 9, 0], [5, 5, 1, 5], [7], [9, 8, 7, 3, 2], []], ids=str
)
@pytest.mark.parametrize(
    "columns", [slice(None), slice(1, 4), slice(None, None, 2), np.array([3, 0, 3])], ids=str
)
def test_read_rows_is_fancy_indexing(
    tmp_path: Path, rows: list[int], columns: slice | np.ndarray
) -> None:
    data = np.arange(60.0).reshape(10, 6)
    chosen = np.array(rows, dtype=np.int64)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        dataset = file.create_dataset("data", data=data, chunks=(3, 6))
        np.testing.assert_array_equal(read_rows(dataset, chosen, columns), data[chosen][:, columns])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda crowd: crowd["S9"], "no subject 'S9' in small.h5; it has S1, S2"),
        (lambda crowd: crowd.image("scene-999999"), "no image 'scene-999999'"),
        (lambda crowd: crowd.rows(["scene-000000", "nothing"]), "no image 'nothing'"),
        (
            lambda crowd: crowd.split_rows("tset"),
            "unknown split 'tset': expected one of train, val, test",
        ),
        (lambda crowd: crowd["S1"].responses("Test"), "unknown split 'Test'"),
        (
            lambda crowd: crowd["S1"].responses_to(crowd["S2"].image_rows("train")),
            "'S1' has not seen image 'scene-",
        ),
    ],
    ids=["subject", "image", "images", "split", "split of a subject", "unseen image"],
)
def test_unknown_names_are_named(crowd: Crowd, ask, message: str) -> None:
    with pytest.raises(UbrainError, match=message):
        ask(crowd)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UbrainError, match=r"no crowd file at .*absent\.h5"):
        Crowd(tmp_path / "absent.h5")


def test_fingerprint_tells_data_apart(recording: SimpleNamespace) -> None:
    def fingerprint(name: str, **options: float) -> str:
        import_arrays(
            recording.images, recording.responses, "A", recording.folder / name, **options
        )
        with Crowd(recording.folder / name) as crowd:
            return crowd.fingerprint

    first = fingerprint("first.h5")
    assert fingerprint("same.h5") == first
    assert fingerprint("split.h5", test_fraction=0.8) != first
    np.save(recording.responses, recording.values + np.eye(12, 5, dtype=np.float32))
    assert fingerprint("values.h5") != first


def test_a_view_is_a_subject_with_some_images_and_voxels(crowd: Crowd) -> None:
    whole, chosen = crowd["S1"], np.array([7, 0, 3])
    train, val = whole.image_rows("train")[:9], whole.image_rows("train")[9:14]
    view = whole.select(images={"train": train[::-1], "val": val}, voxels=chosen)
    assert isinstance(view, type(whole))
    assert (view.name, view.n_voxels, whole.n_voxels) == ("S1", 3, len(whole.voxels))
    np.testing.assert_array_equal(view.image_rows("train"), train)
    np.testing.assert_array_equal(view.image_rows("test"), whole.image_rows("test"))
    np.testing.assert_array_equal(view.responses("val"), whole.responses_to(val, chosen))
    np.testing.assert_array_equal(view.responses("val", [2]), whole.responses_to(val, [3]))
    np.testing.assert_array_equal(view.voxels["ncsnr"], whole.voxels["ncsnr"].iloc[chosen])
    np.testing.assert_array_equal(view.noise_ceiling(), whole.noise_ceiling()[chosen])
    again = view.select(voxels=np.array([False, True, True]))
    np.testing.assert_array_equal(again.responses("test"), whole.responses("test", chosen[1:]))


def test_a_crowd_of_views_is_a_crowd_with_a_fingerprint_of_its_own(crowd: Crowd) -> None:
    view = crowd["S1"].select(voxels=[1, 2])
    one = crowd.select(view)
    assert one.subjects == ["S1"]
    assert one["S1"] is view
    assert crowd["S1"].n_voxels > 2
    prints = [crowd.fingerprint, one.fingerprint, crowd.select(crowd["S1"]).fingerprint]
    prints.append(crowd.select(crowd["S1"].select({"train": [0, 1]})).fingerprint)
    assert len(set(prints)) == 4


def test_pixels_of_several_images_are_those_of_each(crowd: Crowd) -> None:
    rows = np.array([5, 0, 5])
    for pixels, row in zip(crowd.pixels(rows), rows, strict=True):
        np.testing.assert_array_equal(pixels, crowd.image(crowd.image_ids[row]))


def test_a_view_is_the_same_however_it_was_asked_for(crowd: Crowd) -> None:
    ways = [{"train": [2, 1, 1], "val": [3]}, {"val": np.array([3], np.int32), "train": [1, 2]}]
    prints = {crowd.select(crowd["S1"].select(images=way)).fingerprint for way in ways}
    assert len(prints) == 1
    assert len(crowd["S1"].select(images={"train": []}).images("train")) == 0
    with pytest.raises(UbrainError, match="unknown split 'trian'"):
        crowd["S1"].select(images={"trian": [1]})


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 40)}, {"chunks": (7, 40)}])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("voxels", [slice(None), slice(3, 30, 2), np.array([39, 0, 5])])
def test_trials_are_read_from_their_places_in_the_file(
    small_crowd, tmp_path, options, dtype, voxels
):
    """As a crowd file has them, in pieces of another height, and where they lie in other ways."""
    path, rng = tmp_path / "crowd.h5", np.random.default_rng(0)
    shutil.copy(small_crowd, path)
    with h5py.File(path, "r+") as file:
        group = file["subjects"][next(iter(file["subjects"]))]
        n = len(group["responses"])
        data = rng.normal(size=(n, 40)).astype(dtype)
        del group["responses"]
        group.create_dataset("responses", data=data, **options)
        name = group.name
    rows = rng.permutation(n)[:20]
    with h5py.File(path) as file:
        trials = Trials(file[name])
        assert (trials._places is not None) == bool(options)
        np.testing.assert_array_equal(trials.raw(rows, voxels), data[rows][:, voxels])
        assert trials.raw(rows[:0], voxels).shape == (0, data[:, voxels].shape[1])
