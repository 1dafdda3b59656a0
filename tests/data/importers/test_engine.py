"""The engine of the importers: nothing wrong is written, nothing is read twice, and what was done
is said.
"""

import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io

from ubrain.crowd import Crowd
from ubrain.data.importers import pipeline
from ubrain.data.importers import read as files
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.read import Folder, load_npz, read_mat
from ubrain.data.importers.recording import (
    Block,
    ImageArray,
    ImageFiles,
    Options,
    Part,
    Recording,
    array_block,
    parse_numbers,
    select,
)
from ubrain.errors import UbrainError

N_IMAGES, N_TRIALS, N_VOXELS = 20, 40, 6
EXACT = Options(dtype="float32", val_fraction=0.2)


def pixels(seed: int, shape: tuple[int, ...] = (N_IMAGES, 6, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def images(
    seed: int = 0, test: int = 5, keys: list[str] | None = None, name: str = "im", **shape: object
) -> ImageArray:
    array = pixels(seed, **shape)
    splits = ["test"] * test + ["rest"] * (len(array) - test)
    return ImageArray(array, [f"{name}{i}" for i in range(len(array))], splits, keys or [])


def values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3, 2, (N_TRIALS, N_VOXELS)).astype(np.float32)


def recording(
    name: str = "d-S1", data: np.ndarray | None = None, shown: object = None, **changes: object
) -> Recording:
    """40 trials of 20 images in two sessions of two runs."""
    data = values() if data is None else data
    half = len(data) // 2
    trials = pd.DataFrame(
        {
            "image": np.arange(len(data)) % N_IMAGES,
            "session": np.arange(len(data)) // half + 1,
            "run": np.arange(len(data)) % half // 10,
        }
    )
    voxels = pd.DataFrame({"hemisphere": "L", "vertex": np.arange(data.shape[1]), "areas": "V1"})
    blocks = [array_block("session 1", data[:half], []), array_block("session 2", data[half:], [])]
    facts = {
        "dataset": "d",
        "scanner": "7T",
        "space": "fsaverage",
        "images": shown or images(),
        "trials": trials,
        "voxels": voxels,
        "blocks": blocks,
        "account": ["Read from nowhere"],
    }
    return Recording(name, **{**facts, **changes})


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "crowd.h5"
    if (tmp_path / "crowd.h5").exists():
        Crowd(tmp_path / "crowd.h5").close()


def stored(out: Path, subject: str = "d-S1") -> np.ndarray:
    with h5py.File(out) as file:
        return file[f"subjects/{subject}/responses"][:]


def split_of(out: Path) -> dict[str, str]:
    """Split of each image, by the digest of its content."""
    with Crowd(out) as crowd:
        return {
            crowd.content[row]: split
            for split in ("train", "val", "test")
            for row in crowd.split_rows(split)
        }


# --- what is in the file


def test_trials_voxels_and_images_arrive(out: Path) -> None:
    data, shown = values(), images()
    import_recordings([recording(data=data, shown=shown)], out, EXACT)
    np.testing.assert_array_equal(stored(out), data)
    with Crowd(out) as crowd:
        subject = crowd["d-S1"]
        assert list(crowd.image_ids[subject.trials.image]) == [f"im{i % 20}" for i in range(40)]
        np.testing.assert_array_equal(crowd.image("im7"), shown.array[7])
        assert list(subject.images("test")) == [f"im{i}" for i in range(5)]
        assert list(subject.voxels["vertex"]) == list(range(6))
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("custom", "asked"),
    [
        ("session", "auto"),
        ("run", "auto"),
        ("none", "auto"),
        ("session", "session"),
        ("session", "run"),
        ("run", "none"),
        ("none", "session"),
    ],
)
def test_what_is_asked_goes_before_the_custom(out: Path, custom: str, asked: str) -> None:
    data = values()
    text = import_recordings(
        [recording(data=data, normalise=custom)], out, replace(EXACT, normalise=asked)
    )
    np.testing.assert_array_equal(stored(out), data)  # the file holds what was measured
    done = custom if asked == "auto" else asked
    z = data.astype(np.float64)
    if done != "none":
        parts = z.reshape({"session": 2, "run": 4}[done], -1, N_VOXELS)
        z = ((parts - parts.mean(1, keepdims=True)) / parts.std(1, keepdims=True)).reshape(z.shape)
    with Crowd(out) as crowd:
        found = crowd["d-S1"].responses("test")
        settings = json.loads(crowd.file["subjects/d-S1"].attrs["settings"])
    np.testing.assert_allclose(found, (z[:20] + z[20:])[:5] / 2, rtol=1e-4, atol=1e-5)
    assert settings["normalise"] == done
    said = {"none": "without z-scoring", "run": "each run", "session": "each session"}
    assert [way for way, words in said.items() if words in text] == [done]
    chosen = f"chosen with --normalise {asked}; the custom with these responses is {custom}"
    assert (chosen in text) == (asked not in ("auto", custom))


def test_a_published_ceiling_is_of_the_customary_responses(out: Path) -> None:
    voxels = pd.DataFrame({"vertex": np.arange(6), "ncsnr": 0.5})
    for options, said in (
        (EXACT, "ncsnr as published."),
        (replace(EXACT, normalise="run"), "z-scored as is the custom."),
    ):
        assert import_recordings([recording(voxels=voxels)], out, options).endswith(said)
        out.unlink()


WANTED = pd.DataFrame(
    {
        "vertex": np.arange(6),
        "areas": ["V1", "", "FFA", "v1,OFA", "OFA", "FFA"],
        "ncsnr": [0.1, 0.2, 0.3, 0.4, 0.5, np.nan],
    }
)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"areas": "V1, ffa"}, [0, 2, 3, 5]),
        ({"min_ncsnr": 0.3}, [2, 3, 4]),
        ({"areas": "V1,FFA", "min_ncsnr": 0.3}, [2, 3]),
    ],
)
def test_wanted_voxels_alone_are_kept(out: Path, changes: dict, kept: list[int]) -> None:
    data = values()
    parts = [Part(data[:, a : a + 2], 0, a) for a in (4, 0, 2)]
    blocks = [Block("all", N_TRIALS, lambda: iter(parts))]
    text = import_recordings(
        [recording(data=data, voxels=WANTED, blocks=blocks)], out, replace(EXACT, **changes)
    )
    np.testing.assert_array_equal(stored(out), data[:, kept])
    with Crowd(out) as crowd:
        assert list(crowd["d-S1"].voxels["vertex"]) == kept
        assert list(crowd["d-S1"].voxels["source_row"]) == kept
    assert f"Of 6 voxels, the {len(kept)} " in text


@pytest.mark.parametrize(
    ("changes", "voxels", "message"),
    [
        ({"areas": "V1,PPA"}, WANTED, "--areas: no area 'ppa'; found ffa, ofa, v1"),
        ({"areas": "V1"}, WANTED[["vertex"]], "--areas: no area 'v1'; found none"),
        ({"min_ncsnr": 0.3}, WANTED[["vertex"]], "--min-ncsnr: no ncsnr is published"),
        ({"areas": "OFA", "min_ncsnr": 9}, WANTED, "no voxel in OFA with an ncsnr of at least 9"),
    ],
)
def test_voxels_that_are_not_there(
    out: Path, refused, changes: dict, voxels: pd.DataFrame, message: str
) -> None:
    with refused(out, message):
        import_recordings([recording(voxels=voxels)], out, replace(EXACT, **changes))


def test_an_area_that_somebody_lacks_is_no_mistake(out: Path) -> None:
    other = recording("d-S2", voxels=WANTED.assign(areas="PPA"), shown=images(1))
    options = replace(EXACT, areas="FFA,PPA", dry_run=True)
    text = import_recordings([recording(voxels=WANTED), other], out, options)
    assert "up to 2 voxels" in text
    assert "up to 6 voxels" in text


def test_a_full_disk_says_what_is_kept(out: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.CrowdWriter, "add_subject", full)
        with refused(
            out, r"Is the disk full\? .*\. What has been read is kept in .*\.crowd\.h5\.import"
        ):
            import_recordings([recording()], out, EXACT)
    assert out.with_name(".crowd.h5.import").exists()
    import_recordings([recording()], out, EXACT)


@pytest.mark.parametrize(
    ("asked", "changes", "message"),
    [
        (
            "run",
            {"trials": recording().trials.drop(columns="run")},
            "which trials are of one run is not known; possible are",
        ),
        (
            "run",
            {"normalise": "none", "no_sessions": "averaged"},
            r"d-S1: --normalise run: averaged; possible are auto and none",
        ),
        (
            "session",
            {"normalise": "none", "no_sessions": "averaged"},
            "--normalise session: averaged",
        ),
    ],
)
def test_sessions_and_runs_that_are_not_known(
    out: Path, refused, asked: str, changes: dict, message: str
) -> None:
    block = Block("session 1", 40, lambda: pytest.fail("responses were read"))
    with refused(out, message):
        import_recordings(
            [recording(blocks=[block], **changes)], out, replace(EXACT, normalise=asked)
        )


def test_parts_may_be_columns_rows_or_both(out: Path) -> None:
    data = values()

    def pieces(rows: slice) -> Iterator[Part]:
        block = data[rows]
        for row in (12, 0):
            for column in (4, 0, 2):
                stop = 20 if row else 12
                yield Part(block[row:stop, column : column + 2].astype(">f8"), row, column)

    blocks = [
        Block("a", 20, lambda: pieces(slice(0, 20))),
        Block("b", 20, lambda: pieces(slice(20, 40))),
    ]
    import_recordings([recording(blocks=blocks)], out, EXACT)
    np.testing.assert_array_equal(stored(out), data)


def test_float16_rounds_and_float32_does_not(out: Path) -> None:
    data = values()
    import_recordings([recording(data=data)], out, Options())
    assert stored(out).dtype == np.float16
    np.testing.assert_array_equal(stored(out), data.astype(np.float16))


def test_identical_images_of_a_dataset_become_repeats(out: Path) -> None:
    shown = images(test=0)
    shown.array[11] = shown.array[4]
    text = import_recordings([recording(shown=shown)], out, EXACT)
    assert "1 images are identical to other images of the dataset" in text
    with Crowd(out) as crowd:
        assert len(crowd.image_ids) == 19
        assert crowd["d-S1"].trials.repeats(crowd.rows(["im4"])) == [4]


def test_ncsnr_is_kept_or_computed(out: Path) -> None:
    voxels = pd.DataFrame({"vertex": np.arange(6), "ncsnr": [0.5, 1, np.nan, 2, 3, 4]})
    text = import_recordings([recording(), recording("d-S2", voxels=voxels)], out, EXACT)
    with Crowd(out) as crowd:
        np.testing.assert_array_equal(crowd["d-S2"].voxels["ncsnr"], np.float32(voxels["ncsnr"]))
        assert crowd["d-S1"].voxels["ncsnr"].notna().all()
    assert "ncsnr computed from the repeats" in text.split("\n\n")[0]
    assert "ncsnr as published" in text.split("\n\n")[1]


def test_account_and_settings_are_in_the_file(out: Path) -> None:
    text = import_recordings([recording(missing=["session 3"])], out, EXACT, {"space": "fsaverage"})
    with h5py.File(out) as file:
        assert file["subjects/d-S1"].attrs["account"] == text
        settings = file["subjects/d-S1"].attrs["settings"]
    assert '"space": "fsaverage"' in settings
    assert '"dtype": "float32"' in settings
    for part in (
        "Read from nowhere.",
        "Not there: session 3.",
        "over the trials of each session",
        "5 test (2 trials each)",
    ):
        assert part in text


# --- unusable voxels


def spoilt(**cells: tuple) -> np.ndarray:
    data = values()
    for rows, column, value in cells.values():
        data[rows, column] = value
    return data


UNUSABLE = {
    "one NaN": ((7, 2, np.nan), "not a number, or infinite, in some trial"),
    "one infinity": ((7, 2, np.inf), "not a number, or infinite, in some trial"),
    "minus infinity": ((39, 2, -np.inf), "not a number, or infinite, in some trial"),
    "NaN in a session": ((slice(20, 40), 2, np.nan), "not a number, or infinite, in some trial"),
    "zero in a session": ((slice(20, 40), 2, 0), "the same number in all trials of a session"),
    "constant": ((slice(None), 2, 1.25), "the same number in all trials of a session"),
    "next to nothing": (
        (slice(None), 2, np.linspace(0, 1e-41, N_TRIALS)),
        "the same number in all trials of a session",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_voxels_are_dropped_counted_and_listed(out: Path, kind: str) -> None:
    cell, reason = UNUSABLE[kind]
    data = spoilt(it=cell)
    text = import_recordings([recording(data=data)], out, EXACT)
    np.testing.assert_array_equal(stored(out), np.delete(data, 2, axis=1))
    assert f"1 of 6 voxels were dropped: {reason} (at L 2)" in text
    with Crowd(out) as crowd:
        assert list(crowd["d-S1"].voxels["vertex"]) == [0, 1, 3, 4, 5]
        assert list(crowd["d-S1"].voxels["source_row"]) == [0, 1, 3, 4, 5]


def test_unusable_voxels_can_be_refused_and_what_was_read_is_kept(out: Path, refused) -> None:
    refusing = replace(EXACT, bad_voxels="refuse")
    blocks = recording(data=spoilt(it=(7, 2, np.nan))).blocks
    with refused(
        out,
        r"1 of 6 voxels cannot be used: not a number, or infinite, in some trial \(at L 2\)\."
        r" Import without them with --bad-voxels drop",
    ):
        import_recordings([recording(blocks=blocks)], out, refusing)
    again = [Block(b.name, 20, lambda: pytest.fail("responses were read again")) for b in blocks]
    import_recordings([recording(blocks=again)], out, EXACT)
    assert stored(out).shape == (40, 5)
    said = "No voxel was dropped: all are finite, and none is the same number in all trials of a"
    assert said in import_recordings([recording("d-S2")], out, replace(refusing, append=True))


def test_many_voxels_lost_by_one_trial_are_said_loudly(out: Path, caplog) -> None:
    data = spoilt(it=(27, slice(0, 3), np.nan))
    import_recordings([recording(data=data)], out, EXACT)
    assert re.search(
        r"d-S1: 50 % of the voxels are lost: 3 of 6 voxels were dropped: not a number, .*; that"
        r" comes from 1 of 2 block\(s\), such as session 2: is a file damaged\?",
        caplog.text,
    )


def test_a_voxel_constant_in_one_run_goes_only_if_runs_are_zscored(out: Path) -> None:
    data = spoilt(it=(slice(10, 20), 2, 1.0))
    for normalise, left in (("session", 6), ("run", 5), ("none", 6)):
        import_recordings([recording(data=data, normalise=normalise)], out, EXACT)
        assert stored(out).shape == (40, left)
        out.unlink()


def test_advice_on_the_dtype_can_be_followed(out: Path, refused) -> None:
    both = [recording(), recording("d-S2", data=spoilt(it=(27, 2, 70000)))]
    with refused(out, "use --dtype float32$"):
        import_recordings(both, out, Options())
    import_recordings(both, out, Options(dtype="float32"))


def test_no_voxel_left(out: Path, refused) -> None:
    with refused(out, "no usable voxel is left: 6 of 6 voxels were dropped: not a number"):
        import_recordings([recording(data=np.full((40, 6), np.nan, np.float32))], out, EXACT)


def test_values_too_large_for_float16(out: Path, refused) -> None:
    with refused(
        out,
        r"session 1: the response of voxel 2 in trial 7 is 70000, too large for float16; use"
        r" --dtype float32",
    ):
        import_recordings([recording(data=spoilt(it=(7, 2, 70000)))], out, Options())
    import_recordings([recording(data=spoilt(it=(7, 2, 70000)))], out, EXACT)


def test_small_changes_around_a_large_mean_need_float32(out: Path, refused) -> None:
    data = values() + 10000
    with refused(
        out, "6 voxels vary so little around a large mean that float16 would round them off"
    ):
        import_recordings([recording(data=data)], out, Options())
    import_recordings([recording(data=data)], out, EXACT)
    np.testing.assert_array_equal(stored(out), data)


# --- several datasets


def test_grey_and_colour_and_sizes_live_together(out: Path) -> None:
    grey = images(1, shape=(20, 4, 4), name="grey")
    import_recordings([recording()], out, EXACT)
    import_recordings([recording("g-S1", shown=grey, scanner="4T")], out, Options(append=True))
    with Crowd(out) as crowd:
        assert crowd.subjects == ["d-S1", "g-S1"]
        assert crowd.image("grey3").shape == (4, 4, 3)
        np.testing.assert_array_equal(crowd.image("grey3")[..., 1], grey.array[3])
        assert crowd.image("im3").shape == (6, 5, 3)
        assert crowd["g-S1"].scanner == "4T"


def test_known_images_keep_their_split_when_appended(out: Path) -> None:
    import_recordings([recording()], out, EXACT)
    before = split_of(out)
    text = import_recordings([recording("e-S1", shown=images(test=20))], out, Options(append=True))
    assert split_of(out) == before
    n = sum(split != "test" for split in before.values())
    assert f"{n} images of this import were in the crowd already" in text


def test_versions_of_a_photograph_keep_its_split(out: Path) -> None:
    """Two datasets cut and scale a COCO photograph differently; what one trains on, the other must
    not test on.
    """
    keys = [f"coco:{100 + i}" for i in range(20)]
    import_recordings([recording(shown=images(0, test=5, keys=keys))], out, EXACT)
    with Crowd(out) as crowd:
        first = dict(zip(crowd.image_ids, crowd._split, strict=True))
    other = images(1, test=20, keys=[*keys[:10], *[""] * 10], name="crop", shape=(20, 9, 9, 3))
    import_recordings([recording("e-S1", shown=other)], out, Options(append=True))
    with Crowd(out) as crowd:
        second = dict(zip(crowd.image_ids, crowd._split, strict=True))
    assert len(second) == 40
    assert [second[f"crop{i}"] for i in range(10)] == [first[f"im{i}"] for i in range(10)]
    assert all(second[f"crop{i}"] == 2 for i in range(10, 20))


def in_schemes(**schemes: str) -> ImageArray:
    """Images with splits in named schemes, one letter an image: t(e)st, v(al), t(r)ain or none."""
    names = {"e": "test", "v": "val", "r": "train", ".": ""}
    shown = images()
    shown.schemes = {name: [names[letter] for letter in text] for name, text in schemes.items()}
    return shown


def test_named_splits_arrive_and_the_account_counts_them(out: Path) -> None:
    shown = in_schemes(tau="r" * 12 + "e" * 5 + "...", ood="v" * 4 + "r" * 12 + "e" * 4)
    options = replace(EXACT, val_fraction=0.4)
    text = import_recordings([recording(shown=shown)], out, options)
    with Crowd(out) as crowd:
        ood, tau = map(crowd.with_scheme, crowd.schemes)
        counts = [[len(c.split_rows(s)) for s in ("train", "val", "test")] for c in (tau, ood)]
        settings = json.loads(crowd.file["subjects/d-S1"].attrs["settings"])
        drawn = (set(c.split_rows("val")) for c in (tau, crowd))  # alike, of images 5 to 11
        assert len({frozenset(rows & {*range(5, 12)}) for rows in drawn}) == 1
        assert list(tau.split_rows("test")) == list(range(12, 17))
    (train, val, test), of_ood = counts
    assert (train + val, test, of_ood) == (12, 5, [12, 4, 4])
    assert 0 < val < 12
    assert f"tau {train} train, {val} val, 5 test, 3 in none; ood 12 train, 4 val, 4 test" in text
    assert set(settings["schemes"]) == {"tau", "ood"}


def test_named_splits_stay_when_others_are_appended(out: Path, caplog) -> None:
    import_recordings([recording(shown=in_schemes(tau="r" * 10 + "v" * 5 + "e" * 5))], out, EXACT)
    other = recording("d-S2", shown=in_schemes(tau="e" * 10 + "v" * 5 + "e" * 5, ood="e" * 20))
    text = import_recordings([other], out, replace(EXACT, append=True))
    said = "10 images were already in the crowd under another split in scheme tau, which they keep"
    assert said in caplog.text
    assert "10 images of this import were in the crowd already" in text
    assert "tau 10 train, 5 val, 5 test, 0 in none" in text
    none = recording("d-S3", shown=images(7))
    text = import_recordings([none], out, replace(EXACT, append=True))
    assert "tau 0 train, 0 val, 0 test, 20 in none" in text


def test_an_import_continues_only_with_the_same_schemes(
    out: Path, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    first = in_schemes(tau="r" * 15 + "e" * 5)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.CrowdWriter, "add_subject", full)
        with refused(out, "What has been read is kept"):
            import_recordings([recording(shown=first)], out, EXACT)
    with refused(out, r"other settings \(schemes\.tau was"):
        import_recordings([recording(shown=in_schemes(tau="e" * 5 + "r" * 15))], out, EXACT)
    import_recordings([recording(shown=first)], out, EXACT)


@pytest.mark.parametrize(
    ("schemes", "message"),
    [
        ({"tau": ["test"] * 19}, "split scheme tau: 19 splits of 20 images"),
        ({"tau": ["test"] * 19 + ["rest"]}, "image 'im19': expected .* or nothing, got 'rest'"),
        ({"t/u": ["test"] * 20}, "split scheme name 't/u': expected"),
    ],
)
def test_schemes_that_are_none(out: Path, refused, schemes: dict, message: str) -> None:
    shown = images()
    shown.schemes = schemes
    with refused(out, message):
        import_recordings([recording(shown=shown)], out, EXACT)


def test_a_photograph_is_known_by_any_of_its_names(out: Path) -> None:
    a = images(0, test=0, keys=[f"nsd:{i}" for i in range(20)])
    b = images(1, test=0, keys=[f"coco:{i} nsd:{i}" for i in range(20)])
    c = images(2, test=20, keys=[f"coco:{i}" for i in range(20)])
    import_recordings([recording("a-S", shown=a)], out, EXACT)
    import_recordings([recording("b-S", shown=b)], out, Options(append=True, val_fraction=0))
    import_recordings([recording("c-S", shown=c)], out, Options(append=True))
    with Crowd(out) as crowd:
        splits = [crowd._split[crowd[f"{s}-S"].trials.image[:20]].tolist() for s in "abc"]
    assert splits[0] == splits[1] == splits[2]
    assert 2 not in splits[0]


def test_a_crowd_without_names_of_photographs_can_get_them(out: Path) -> None:
    import_recordings([recording()], out, EXACT)
    import_recordings(
        [recording("e-S1", shown=images(keys=[f"coco:{i}" for i in range(20)]))],
        out,
        Options(append=True),
    )
    with Crowd(out) as crowd:
        assert list(crowd.file["images/key"].asstr()[crowd.rows(["im3", "im19"])]) == [
            "coco:3",
            "coco:19",
        ]


def test_versions_within_one_dataset_are_drawn_together(out: Path) -> None:
    keys = [f"coco:{i // 2}" for i in range(20)]
    import_recordings([recording(shown=images(test=0, keys=keys))], out, Options(val_fraction=0.5))
    with Crowd(out) as crowd:
        splits = crowd._split[crowd.rows([f"im{i}" for i in range(20)])]
    assert (splits[::2] == splits[1::2]).all()
    assert len(set(splits)) == 2


def test_versions_within_one_dataset_in_two_splits_are_refused(out: Path, refused) -> None:
    keys = [f"coco:{4 if i == 5 else i}" for i in range(20)]  # im4 is a test image, im5 is not
    with refused(
        out,
        "images 'im4' and 'im5' are the same photograph, but one is test and the other is"
        " (train|val)",
    ):
        import_recordings([recording(shown=images(keys=keys))], out, EXACT)


def test_photographs_found_in_two_splits_too_late_are_said(out: Path, caplog) -> None:
    import_recordings(
        [recording("a-S", shown=images(0, test=0, keys=[f"nsd:{i}" for i in range(20)]))],
        out,
        EXACT,
    )
    later = images(1, test=20, keys=[f"coco:{i}" for i in range(20)])
    import_recordings([recording("b-S", shown=later)], out, Options(append=True))
    both = images(2, test=0, keys=[f"nsd:{i} coco:{i}" for i in range(20)])
    import_recordings([recording("c-S", shown=both)], out, Options(append=True))
    assert (
        "20 photographs are in the crowd in two versions, imported earlier under two splits"
        in caplog.text
    )


@pytest.mark.parametrize("sizes", [(10, None), (None, 10), (10, 20)])
def test_shrunk_images_keep_the_split_of_the_large_ones(
    out: Path, sizes: tuple[int | None, int | None]
) -> None:
    for name, n_test, size in (("a-S", 0, sizes[0]), ("b-S", 20, sizes[1])):
        shown = images(0, n_test, name=name, shape=(20, 40, 60, 3))
        options = Options(append=name == "b-S", image_size=size, val_fraction=0.5)
        import_recordings([recording(name, shown=shown)], out, options)
    with Crowd(out) as crowd:
        splits = [crowd._split[crowd[name].trials.image[:20]].tolist() for name in ("a-S", "b-S")]
        heights = {crowd.image(crowd.image_ids[row]).shape[0] for row in (0, 39)}
        assert heights == {size or 40 for size in sizes}
    assert splits[0] == splits[1]
    assert set(splits[0]) == {0, 1}


def test_append_needs_other_subjects(out: Path, refused) -> None:
    import_recordings([recording()], out, EXACT)
    with refused(out, r"subject 'd-S1' is already in .*leave it out, or choose another name"):
        import_recordings([recording("d-S2"), recording()], out, Options(append=True))
    with refused(out, r"crowd\.h5 exists"):
        import_recordings([recording("d-S2")], out, EXACT)


# --- tables that do not fit


def changed(**columns: object) -> pd.DataFrame:
    return recording().trials.assign(**columns)


def part(array: np.ndarray, *first: int) -> list[Block]:
    return [Block("session 1", 40, lambda: [Part(array, *first)])]


BAD = {
    "trial too few": (
        dict(trials=recording().trials[:-1]),
        "the table of trials has 39 rows, the responses 40",
    ),
    "image beyond the last": (
        dict(trials=changed(image=20)),
        "a trial shows image number 20, of 20",
    ),
    "negative image": (
        dict(trials=changed(image=-1)),
        "column 'image': expected whole numbers from 0",
    ),
    "float image": (
        dict(trials=changed(image=0.5)),
        "column 'image': expected whole numbers from 0",
    ),
    "NaN session": (
        dict(trials=changed(session=np.nan)),
        "column 'session': expected whole numbers from 0",
    ),
    "trial listed twice": (
        dict(trials=changed(repeat=0)),
        "trial 20 is listed twice: .* same repeat of image 'im0'",
    ),
    "voxel listed twice": (
        dict(voxels=recording().voxels.assign(vertex=[0, 1, 2, 3, 3, 5])),
        "voxel 4 is there twice, at L 3",
    ),
    "no voxels": (dict(voxels=recording().voxels[:0]), "40 trials and 0 voxels"),
    "vertex as text": (
        dict(voxels=pd.DataFrame({"vertex": [*"abcdef"]})),
        "column 'vertex': expected whole numbers, got 'a' in row 0",
    ),
    "half a vertex": (
        dict(voxels=pd.DataFrame({"vertex": [1, 2, 3, 4.5, 5, 6]})),
        "column 'vertex': expected whole numbers, got '4.5' in row 3",
    ),
    "infinite place": (
        dict(voxels=pd.DataFrame({"i": [1, 2, 3, 4, 5, np.inf]})),
        "column 'i': expected whole numbers, got 'inf' in row 5",
    ),
    "negative vertex": (
        dict(voxels=pd.DataFrame({"vertex": [-1, 2, 3, 4, 5, 6]})),
        "column 'vertex': expected whole numbers, got '-1' in row 0",
    ),
    "vertex listed twice": (
        dict(voxels=pd.DataFrame({"vertex": [0, 1, 2, 3, 3, 5]})),
        "voxel 4 is there twice, at 3",
    ),
    "no training responses": (
        dict(data=np.where(np.arange(40)[:, None] % 20 < 5, values(), 0)),
        "the responses to all training images are the same, such as 0; is the file complete",
    ),
    "session of one trial": (
        dict(trials=changed(session=[1] * 39 + [2])),
        "a session has a single trial",
    ),
    "run without runs": (
        dict(normalise="run", trials=recording().trials.drop(columns="run")),
        "cannot z-score per 'run'",
    ),
    "unknown normalisation": (dict(normalise="week"), "cannot z-score per 'week'"),
    "bad name": (dict(name="a/b"), "subject name 'a/b'"),
    "part too wide": (
        dict(blocks=part(np.ones((40, 7)))),
        r"expected responses to 40 trials in 6 voxels, got \(40, 7\)",
    ),
    "part too long": (dict(blocks=part(np.ones((40, 6)), 1)), r"got \(40, 6\) at \(1, 0\)"),
    "part missing": (dict(blocks=part(np.ones((39, 6)))), "trial 39 has 0 responses, expected 6"),
    "column missing": (dict(blocks=part(np.ones((40, 5)))), "trial 0 has 5 responses, expected 6"),
    "text": (
        dict(blocks=part(np.full((40, 6), "a"))),
        r"expected responses \(n_trials, n_voxels\), got \(40, 6\) <U1",
    ),
    "one axis": (dict(blocks=part(np.ones(40))), r"got \(40,\) float64"),
    "name of a column": (dict(voxels=pd.DataFrame({"../x": [1] * 6})), r"column name '\.\./x'"),
    "unknown split": (
        dict(shown=ImageArray(pixels(0), [f"i{i}" for i in range(20)], ["exam"] * 20)),
        "unknown split 'exam'",
    ),
    "float images": (
        dict(shown=ImageArray(np.ones((20, 4, 4)), [f"i{i}" for i in range(20)])),
        r"uint8, got \(4, 4\) float64",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_recordings_that_make_no_sense(out: Path, refused, kind: str) -> None:
    changes, message = BAD[kind]
    with refused(out, message):
        import_recordings([recording(**{"name": "d-S1", **changes})], out, EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(dtype="int8"), "--dtype int8: expected float16 or float32"),
        (Options(val_fraction=1.5), "fractions must be"),
        (Options(val_fraction=-0.1), "fractions must be"),
        (Options(val_fraction=float("nan")), "fractions must be"),
        (Options(val_fraction=0.5, test_fraction=0.5), "fractions must be"),
        (Options(image_size=0), "--image-size 0"),
        (Options(normalise="week"), "--normalise week: expected auto, session, run or none"),
        (Options(bad_voxels="mend"), "--bad-voxels mend: expected drop or refuse"),
        (Options(append=True), r"no crowd file at"),
    ],
)
def test_options_that_make_no_sense(out: Path, refused, options: Options, message: str) -> None:
    with refused(out, message):
        import_recordings([recording()], out, options)
    assert list(out.parent.iterdir()) == []


def test_image_that_is_not_there_is_found_before_responses_are_read(
    out: Path, refused, tmp_path: Path
) -> None:
    shown = ImageFiles([tmp_path / f"{i}.png" for i in range(20)])
    block = Block("session 1", 40, lambda: pytest.fail("responses were read"))
    with refused(out, r"0\.png cannot be read: No such file"):
        import_recordings([recording(shown=shown, blocks=[block])], out, EXACT)


def test_dry_run_writes_nothing(out: Path) -> None:
    block = Block("session 1", 40, lambda: pytest.fail("responses were read"))
    text = import_recordings(
        [recording(blocks=[block], missing=["session 2"])], out, Options(dry_run=True)
    )
    assert "d-S1 (d, 7T, fsaverage): 40 trials of 20 images in 2 session(s), up to 6 voxels" in text
    assert "each voxel is z-scored over the trials of each session" in text
    assert "session 2" in text
    assert list(out.parent.iterdir()) == []


def test_disk_that_is_too_small(out: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 20 * 90 + 2 * 40 * 6 * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free - 1))
    with refused(out, "needs about .* kB, but only .* are free"):
        import_recordings([recording()], out, EXACT)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    import_recordings([recording()], out, EXACT)


# --- interruptions

KILLED = """
import os, signal, sys
sys.path.insert(0, {folder!r})
from test_engine import *
data = values()
def read(which):
    yield Part(data[which * 20 : which * 20 + 10], 0)
    if which:
        os.kill(os.getpid(), signal.SIGKILL)
    yield Part(data[which * 20 + 10 : which * 20 + 20], 10)
blocks = [Block(f"session {{i + 1}}", 20, lambda i=i: read(i)) for i in range(2)]
import_recordings([recording(data=data, blocks=blocks)], {out!r}, EXACT, {{"space": "x"}})
"""


def kill(out: Path, script: str) -> None:
    code = script.format(folder=str(Path(__file__).parent), out=str(out))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()


@pytest.fixture(scope="module")
def killed_import(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an import that was killed in the middle of the second session."""
    folder = tmp_path_factory.mktemp("killed")
    kill(folder / "crowd.h5", KILLED)
    return folder


@pytest.fixture
def killed(killed_import: Path, out: Path) -> Path:
    """Where the crowd file of a copy of the killed import belongs."""
    shutil.copytree(killed_import, out.parent, dirs_exist_ok=True)
    return out


def second_half_only() -> list[Block]:
    data = values()
    return [
        Block("session 1", 20, lambda: pytest.fail("session 1 was read again")),
        array_block("session 2", data[20:], []),
    ]


def test_killed_import_continues_with_the_next_session(killed: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        import_recordings([recording(blocks=second_half_only())], killed, EXACT, {"space": "x"})
    assert "continuing, 1 of 2 block(s) are there" in caplog.text
    np.testing.assert_array_equal(stored(killed), values())
    assert list(killed.parent.iterdir()) == [killed]


@pytest.mark.parametrize(
    ("options", "space", "message"),
    [
        (
            EXACT,
            "y",
            r"space was 'x', is 'y'\)\. Finish it with the same, .* delete .*crowd\.h5\.import",
        ),
        (Options(val_fraction=0.2), "x", "dtype was 'float32', is 'float16'"),
        (replace(EXACT, normalise="run"), "x", "normalise was 'session', is 'run'"),
        (replace(EXACT, val_fraction=0.1), "x", "val_fraction was 0.2, is 0.1"),
        (replace(EXACT, test_fraction=0.1), "x", "test_fraction was 0.0, is 0.1"),
        (replace(EXACT, image_size=3), "x", "image_size was None, is 3"),
        (replace(EXACT, image_source="a museum"), "x", "image_source was '', is 'a museum'"),
        (replace(EXACT, images_may_be_shown=True), "x", "images_may_be_shown was False, is True"),
    ],
)
def test_killed_import_does_not_continue_with_other_settings(
    killed: Path, refused, options: Options, space: str, message: str
) -> None:
    with refused(killed, "the import of d-S1 was begun with other settings .*" + message):
        import_recordings([recording(blocks=second_half_only())], killed, options, {"space": space})


def test_half_written_block_is_read_again(killed: Path) -> None:
    (raw,) = killed.parent.glob(".crowd.h5.import/d-S1/*.raw")
    raw.write_bytes(raw.read_bytes()[:-1])
    import_recordings([recording()], killed, EXACT, {"space": "x"})
    np.testing.assert_array_equal(stored(killed), values())


KILLED_WHILE_WRITING = """
import os, signal, sys
sys.path.insert(0, {folder!r})
from test_engine import *
class Deadly(ImageArray):
    def pixels(self, i):
        if i == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().pixels(i)
shown = images()
import_recordings([recording(shown=Deadly(shown.array, shown.ids, shown.splits))], {out!r}, EXACT)
"""


def test_killed_while_the_crowd_file_is_written(out: Path) -> None:
    kill(out, KILLED_WHILE_WRITING)
    blocks = [Block(f"session {i}", 20, lambda: pytest.fail("read again")) for i in (1, 2)]
    import_recordings([recording(blocks=blocks)], out, EXACT)
    np.testing.assert_array_equal(stored(out), values())
    assert list(out.parent.iterdir()) == [out]


def of_files(files: list[Path], read: list[str]) -> Recording:
    """A session of ten trials for each file that is there; `read` gets the names of those read."""
    sessions = [number for number, file in enumerate(files) if file.exists()]

    def session(number: int) -> Iterator[Part]:
        read.append(files[number].name)
        if files[number].read_bytes() == b"bad":
            raise UbrainError("unreadable; get it again")
        yield Part(values(int(files[number].read_bytes()))[:10])

    blocks = [Block(f"session {i}", 10, partial(session, i), (files[i],)) for i in sessions]
    trials = [{"image": i, "session": number} for number in sessions for i in range(10)]
    return recording(trials=pd.DataFrame(trials), blocks=blocks)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"2": b"2"}, "23"),
        ({"0": b"8", "2": b"2"}, "023"),  # one came before
        ({"1": b"1", "2": b"2"}, "123"),  # one was fetched again, with its times
        ({"1": b"7", "2": b"2"}, "123"),
        ({"2": None}, "3"),
        ({"1": None, "2": b"2"}, "23"),
    ],
)
def test_an_import_continues_with_files_that_were_replaced_added_or_removed(
    out: Path, refused, tmp_path: Path, change: dict[str, bytes | None], again: str
) -> None:
    files, read = [tmp_path / name for name in "0123"], list[str]()
    for name, data in (("1", b"1"), ("2", b"bad"), ("3", b"3")):
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, (0, 0))
    with refused(out, r"get it again\. What has been read is kept in .*\.crowd\.h5\.import; the"):
        import_recordings([of_files(files, read)], out, EXACT)
    assert read == ["1", "2"]
    read.clear()
    for name, data in change.items():
        (tmp_path / name).unlink(missing_ok=True)
        if data is not None:
            (tmp_path / name).write_bytes(data)
            os.utime(tmp_path / name, (0, 0))
    import_recordings([of_files(files, read)], out, EXACT)
    assert "".join(read) == again
    import_recordings([of_files(files, [])], tmp_path / "fresh.h5", EXACT)
    np.testing.assert_array_equal(stored(out), stored(tmp_path / "fresh.h5"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": changed(image=[19 - i % 20 for i in range(40)])},
        {"shown": images(name="other")},
        {"voxels": recording().voxels.assign(vertex=range(1, 7))},
    ],
)
def test_blocks_of_other_trials_images_or_voxels_are_not_used(killed: Path, changes: dict) -> None:
    other = values(1)
    import_recordings([recording(data=other, **changes)], killed, EXACT, {"space": "x"})
    np.testing.assert_array_equal(stored(killed), other)


def test_two_imports_at_once(out: Path, refused) -> None:
    def read() -> Iterator[Part]:
        with pytest.raises(UbrainError, match="another process is busy with the import of"):
            import_recordings([recording("d-S2")], out, EXACT)
        yield Part(values()[:20])

    blocks = [Block("session 1", 20, read), array_block("session 2", values()[20:], [])]
    import_recordings([recording(blocks=blocks)], out, EXACT)


def test_a_session_is_never_held_as_a_whole(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "VALUES", 1 << 16)
    n_trials, n_voxels, step = 200, 20000, 10  # 16 MB as float32

    def read(seed: int) -> Iterator[Part]:
        rng = np.random.default_rng(seed)
        for start in range(0, n_trials, step):
            yield Part(rng.random((step, n_voxels), np.float32), start)

    blocks = [Block(f"session {i}", n_trials, lambda i=i: read(i)) for i in (1, 2)]
    trials = pd.DataFrame({"image": np.arange(400) % 20, "session": np.arange(400) // 200})
    big = recording(
        blocks=blocks,
        trials=trials,
        voxels=pd.DataFrame({"vertex": np.arange(n_voxels), "ncsnr": 1.0}),
    )
    tracemalloc.start()
    try:
        import_recordings([big], out, EXACT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12e6


# --- helpers


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (None, ["subj01", "subj02", "subj10"]),
        (["1"], ["subj01"]),
        (["02", "10"], ["subj02", "subj10"]),
        (["SUBJ10", "10"], ["subj10"]),
        (["nsd-subj01"], ["subj01"]),
    ],
)
def test_subjects_by_name_and_number(asked: list[str] | None, chosen: list[str]) -> None:
    assert select(asked, ["subj10", "subj01", "subj02"], "here") == chosen


@pytest.mark.parametrize("asked", ["3", "subj3", "", "subj"])
def test_subjects_that_are_not_there(asked: str) -> None:
    with pytest.raises(UbrainError, match=f"here: no subject '{asked}'; found subj01, subj02"):
        select([asked], ["subj01", "subj02"], "here")


def test_numbers() -> None:
    assert parse_numbers("1-3, 7,5") == [1, 2, 3, 5, 7]
    for text in ("", "a", "1-", "-1", "1..3", "9999999", "3-1", "1-2,9-8"):
        with pytest.raises(UbrainError, match="expected numbers such as"):
            parse_numbers(text)


def test_folder_finds_files_in_any_case_but_prefers_the_exact_one(tmp_path: Path) -> None:
    (tmp_path / "Data").mkdir()
    (tmp_path / "Data/Subject1.H5").touch()
    folder = Folder(tmp_path)
    assert folder.find("data/subject1.h5") == tmp_path / "Data/Subject1.H5"
    (tmp_path / "Data/subject1.h5").touch()
    assert folder.find("Data/subject1.h5") == tmp_path / "Data/subject1.h5"
    assert folder.find("data/subject2.h5") is None
    with pytest.raises(UbrainError, match=r"has no a\.h5 or b\.h5"):
        folder.need("a.h5", "b.h5")


@pytest.mark.parametrize("text", ["1", "01", "S1", "sub-01", "SUBJ01", "subject 1", "x-sub-01_NSD"])
def test_subjects_may_be_called_by_their_numbers(text: str) -> None:
    there = ["sub-01_NSD", "sub-11_GOD"]
    assert select([text], there, "here") == there[:1]
    with pytest.raises(UbrainError, match="here: '1' means sub-01_A, sub-01_B; found"):
        select(["1"], ["sub-01_A", "sub-01_B"], "here")
    with pytest.raises(UbrainError, match=r"here: no subject found; there are a, b$"):
        select(None, [], "here", ["b", "a", "a"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "x"), "cannot be read: permission denied$"),
        (FileNotFoundError(errno.ENOENT, "x"), "cannot be read: no such file or directory$"),
        (OSError("file ends"), r"cannot be read: file ends.*\. It may be truncated or damaged"),
    ],
)
def test_damage_is_only_suspected_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str
) -> None:
    def opened(*_: object) -> None:
        raise error

    (tmp_path / "x.h5").touch()
    monkeypatch.setattr(h5py, "is_hdf5", opened)
    for opener in (files.open_hdf5(tmp_path / "x.h5").__enter__, lambda: Crowd(tmp_path / "x.h5")):
        with pytest.raises(UbrainError, match=message):
            opener()


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_is_mapped_or_unpacked(tmp_path: Path, compressed: bool) -> None:
    data = {
        "a": np.arange(12, dtype=np.float16).reshape(3, 4),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", **data)
    for name, array in data.items():
        np.testing.assert_array_equal(load_npz(tmp_path / "x.npz", name), array)
    with pytest.raises(UbrainError, match="no array 'c'; found a, b"):
        load_npz(tmp_path / "x.npz", "c")


def npy(header: str, data: bytes) -> bytes:
    text = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


def lie(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "a.npy",
            npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 40},), }}", b"abcd"),
        )


NPZ = {
    "objects": (lambda p: np.savez(p, a=np.array([{}], dtype=object)), "pickled objects"),
    "lie": (lie, "but has 4 bytes"),
    "text": (lambda p: p.write_text("no archive"), "cannot be read"),
    "cut": (
        lambda p: (np.savez(p, a=np.arange(9)), p.write_bytes(p.read_bytes()[:-30])),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("kind", NPZ)
def test_npz_that_is_refused(tmp_path: Path, kind: str) -> None:
    make, message = NPZ[kind]
    make(tmp_path / "x.npz")
    with pytest.raises(UbrainError, match=message):
        load_npz(tmp_path / "x.npz", "a")


def test_npz_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1 << 20))
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    with pytest.raises(
        UbrainError, match=r"x\.npz is compressed and unpacks to 0\.0 GB; store it uncompressed"
    ):
        load_npz(tmp_path / "x.npz", "a")


def test_errors_of_the_writer_are_not_blamed_on_an_open_source(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(OSError, match="disk full"), files.open_hdf5(tmp_path / "x.h5"):
        raise OSError("disk full")


def test_matlab_files_of_both_versions(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    scipy.io.savemat(tmp_path / "v5.mat", {"x": array, "text": "no numbers"})
    with h5py.File(tmp_path / "v73.mat", "w") as file:
        file["x"] = array.T  # MATLAB's axes are the other way round in HDF5
    for name in ("v5.mat", "v73.mat"):
        content = read_mat(tmp_path / name, ["x", "y"])
        assert list(content) == ["x"]
        np.testing.assert_array_equal(content["x"], array)
    with pytest.raises(UbrainError, match="'text' is not an array of numbers"):
        read_mat(tmp_path / "v5.mat", ["text"])


@pytest.mark.parametrize(
    "link", [h5py.SoftLink("/nothing"), h5py.ExternalLink("other.h5", "x"), h5py.SoftLink("/x")]
)
def test_links_in_matlab_files_are_not_followed(tmp_path: Path, link: h5py.SoftLink) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones((2, 3))
    with h5py.File(tmp_path / "v73.mat", "w") as file:
        file["x"] = link
    with pytest.raises(UbrainError, match=r"v73\.mat: 'x' is a link; expected the data themselves"):
        read_mat(tmp_path / "v73.mat", ["x"])


def test_a_link_to_itself_is_no_trap(tmp_path: Path) -> None:
    (tmp_path / "a.h5").symlink_to("a.h5")
    folder = Folder(tmp_path)
    assert folder.find("a.h5") is None
    (path,) = folder.search(r"a\.h5")
    with (
        pytest.raises(UbrainError, match=r"a\.h5 cannot be read|a\.h5 is not an HDF5 file"),
        files.open_hdf5(path),
    ):
        pass
