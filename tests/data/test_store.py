"""The crowd file: splits are per image, broken files are refused, and nothing half-written
appears.
"""

import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest

from ubrain.crowd import Crowd
from ubrain.data.crowdfile import write_crowd
from ubrain.data.importers.arrays import import_arrays
from ubrain.errors import UbrainError
from ubrain.resume import Sink


@pytest.fixture
def tiny(recording: SimpleNamespace) -> Path:
    """A crowd file with subject A, made from `recording`."""
    out = recording.folder / "tiny.h5"
    import_arrays(
        recording.images, recording.responses, "A", out, test_fraction=0.3, val_fraction=0.3
    )
    return out


def append(recording: SimpleNamespace, out: Path, **options: object) -> None:
    import_arrays(recording.images, recording.responses, "B", out, append=True, **options)


# --- splits


@pytest.mark.parametrize("val_fraction", [0, 0.99], ids=["train", "val"])
def test_one_image_in_two_splits_is_refused(
    recording: SimpleNamespace, refused, val_fraction: float
) -> None:
    shutil.copy(recording.images / "image4.png", recording.images / "copy.png")
    np.save(recording.responses, np.random.default_rng(0).normal(size=(13, 5)))
    (recording.folder / "test.txt").write_text("image4.png\n")
    out = recording.folder / "out.h5"
    with refused(
        out,
        r"images 'copy' and 'image4' are identical, but one is (train|val) and the other is test",
    ):
        import_arrays(
            recording.images,
            recording.responses,
            "A",
            out,
            test_images=recording.folder / "test.txt",
            val_fraction=val_fraction,
        )


def test_images_are_known_by_content_not_by_name(recording: SimpleNamespace, tiny: Path) -> None:
    """Subject B saw the same images from the last to the first, under other names, and one more."""
    new = np.full((1, 8, 8, 3), 9, np.uint8)
    recording.save_images(
        recording.folder / "reversed", np.concatenate([recording.pixels[::-1], new]), "other{}.png"
    )
    values = np.concatenate([recording.values[::-1], np.ones((1, 5), np.float32)])
    np.save(recording.folder / "reversed.npy", values)
    import_arrays(
        recording.folder / "reversed", recording.folder / "reversed.npy", "B", tiny, append=True
    )
    with Crowd(tiny) as crowd:
        assert len(crowd.image_ids) == 13
        assert crowd.image_ids[-1] == "other12"
        old = crowd["A"].image_rows("test")
        z = (recording.values - values.mean(0)) / values.std(0)
        np.testing.assert_allclose(crowd["B"].responses_to(old), z[old], rtol=1e-4, atol=1e-5)


def test_images_of_the_same_name_but_other_content_both_survive(
    recording: SimpleNamespace, tiny: Path
) -> None:
    other = 255 - recording.pixels
    recording.save_images(recording.folder / "others", other)
    import_arrays(recording.folder / "others", recording.responses, "B", tiny, append=True)
    with Crowd(tiny) as crowd:
        assert len(set(crowd.image_ids)) == 24
        shown = {"A": recording.pixels, "B": other}
        for subject, pixels in shown.items():
            names = [
                name for split in ("train", "val", "test") for name in crowd[subject].images(split)
            ]
            assert sorted(name.split("~")[0] for name in names) == sorted(
                f"image{i}" for i in range(12)
            )
            for name in names:
                number = int(name.split("~")[0].removeprefix("image"))
                np.testing.assert_array_equal(crowd.image(name), pixels[number])


# --- named splits


def write_images(path: Path, images: list[tuple], subject: str = "A") -> None:
    """A crowd file, or more of one, from (number, split, key, schemes) of each image."""
    with write_crowd(path, append=path.exists()) as writer:
        rows = [
            writer.add_image(f"i{number}", np.full((2, 2, 3), number, np.uint8), *rest)
            for number, *rest in images
        ]
        trials = pd.DataFrame({"image": rows, "session": 0})
        responses = np.random.default_rng(0).normal(size=(len(rows), 2)).astype(np.float32)
        writer.add_subject(subject, trials, pd.DataFrame(index=range(2)), [responses], "d", "3T")


def stored_scheme(path: Path, name: str = "tau") -> list[int]:
    with h5py.File(path) as file:
        return file[f"images/schemes/{name}"][:].tolist()


def write_by_hand(path: Path) -> None:
    """A file of schema 1, as its text says, without our writer."""
    with h5py.File(path, "w") as file:
        file.attrs.update(format="ubrain-crowd", version=1)
        text = h5py.string_dtype()
        for name, values, dtype in (
            ("id", ["a", "b", "c"], text),
            ("content", ["1", "2", "3"], text),
            ("split", [0, 1, 2], np.uint8),
            ("row", [0, 1, 2], np.int64),
            ("shape", [[2, 2]] * 3, np.uint16),
            ("pixels/2x2", np.arange(36).reshape(3, 2, 2, 3), np.uint8),
        ):
            full = (None, *np.shape(values)[1:])
            file.create_dataset(f"images/{name}", data=values, dtype=dtype, maxshape=full)
        group = file.create_group("subjects/A")
        group.attrs.update(dataset="d", scanner="3T", space="", digest="x")
        group["responses"] = np.float32([[1, 2], [3, 5], [2, 2]])
        group["session_moments"] = np.float32([[[2, 3]], [[1, 1]]])
        for column, values in (("image", [0, 1, 2]), ("session", [0] * 3), ("repeat", [0] * 3)):
            group[f"trials/{column}"] = np.int32(values)
        group.create_dataset("voxels/hemisphere", data=["L", "R"], dtype=text)
        group.create_dataset("voxels/areas", data=["V1", ""], dtype=text)
        group["voxels/ncsnr"] = np.float32([1, np.nan])


def test_a_file_of_schema_1_is_read_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    write_by_hand(path)
    with Crowd(path) as crowd:
        assert (crowd.schemes, crowd.scheme) == ([], "")
        np.testing.assert_array_equal(crowd["A"].responses("test"), [[0, -1]])
        with pytest.raises(UbrainError, match=r"no split scheme 'tau' in old\.h5; it has none"):
            crowd.with_scheme("tau")
    write_images(path, [(i, "train") for i in range(5)], "B")
    with h5py.File(path) as file:
        assert file.attrs["version"] == 1  # as long as there is nothing that schema 1 has not
    write_images(path, [(9, "train", "", {"tau": "test"})] * 2, "C")
    assert stored_scheme(path) == [255] * 8 + [2]
    with h5py.File(path) as file:
        assert file.attrs["version"] == 2


def test_a_scheme_is_another_set_of_splits_of_the_same_crowd(tmp_path: Path) -> None:
    path = tmp_path / "crowd.h5"
    said = ["test", "train", "", "train", "test", "val"]
    splits = ["train", "train", "val", "test", "test", "train"]
    write_images(path, [(i, splits[i], "", {"tau": s}) for i, s in enumerate(said)])
    with Crowd(path) as crowd:
        before = crowd.fingerprint
        tau = crowd.with_scheme("tau")
        assert (crowd.schemes, tau.scheme, crowd.scheme) == (["tau"], "tau", "")
        assert {s: tau["A"].image_rows(s).tolist() for s in ("train", "val", "test")} == {
            "train": [1, 3],
            "val": [5],
            "test": [0, 4],
        }
        for name in (None, ""):
            assert tau.with_scheme(name).fingerprint == before != tau.fingerprint
            assert crowd.with_scheme(name) is crowd
        np.testing.assert_array_equal(
            tau["A"].responses("test"), crowd["A"].responses_to(np.array([0, 4]))
        )
        few = crowd["A"].select({"test": [3]}, voxels=[1])  # of other splits: forgotten
        view = crowd.select(few).with_scheme("tau")
        assert (view.subjects, view["A"].n_voxels) == (["A"], 1)
        assert view["A"].image_rows("test").tolist() == [0, 4]
        with pytest.raises(UbrainError, match=r"no split scheme 'ood' in crowd\.h5; it has tau"):
            tau.with_scheme("ood")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ((1, "train", "", {"tau": "test"}), "images 'i1' and 'i1' are identical, but one is train"),
        ((2, "train", "coco:7 nsd:1", {"tau": "test"}), "images 'i1' and 'i2' are the same photog"),
    ],
)
def test_one_photograph_in_two_splits_of_a_scheme_is_refused(
    tmp_path: Path, refused, second: tuple, message: str
) -> None:
    out, first = tmp_path / "crowd.h5", (1, "train", "coco:7", {"tau": "train", "ood": "test"})
    with refused(out, f"{message}.* the other is test in scheme 'tau'"):
        write_images(out, [first, second])
    write_images(out, [first, (*second[:3], {"tau": "", "ood": "test"})])


def test_what_an_earlier_import_said_of_a_scheme_stays(tmp_path: Path) -> None:
    path = tmp_path / "crowd.h5"
    first = [("coco:1", "test"), ("coco:2", "train"), ("coco:3", "")]
    write_images(path, [(i, "train", key, {"tau": s}) for i, (key, s) in enumerate(first)])
    with write_crowd(path, append=True) as writer:
        for number, key, split in (
            (0, "coco:1", "train"),  # the same image: it keeps its split
            (11, "coco:2", "test"),  # another version of the photograph: so does it
            (12, "coco:3", "test"),  # of this nothing was said
            (2, "coco:3", "test"),
            (13, "coco:4", "val"),
            (14, "coco:1 coco:2", ""),  # turns out to be both
        ):
            pixels = np.full((2, 2, 3), number, np.uint8)
            writer.add_image(f"new{number}", pixels, "train", key, {"tau": split})
        splits = writer.schemes["tau"]
        assert (splits.kept, writer.splits.kept) == (2, 0)
        assert (splits.versions, writer.splits.versions) == (1, 0)
        assert splits.numbers == [2, 0, 2, 0, 2, 1, 255]
        assert list(writer.split_of([0, 6], "tau")) == ["test", ""]
    assert stored_scheme(path) == [2, 0, 2, 0, 2, 1, 255]
    write_images(path, [(i, "train") for i in (2, 30)], "B")  # who says nothing is in none
    assert stored_scheme(path) == [2, 0, 2, 0, 2, 1, 255, 255]


# --- files that are no crowd


def test_file_that_is_not_hdf5(tmp_path: Path, run_cli) -> None:
    (tmp_path / "notes.h5").write_text("no crowd")
    done = run_cli("info", tmp_path / "notes.h5")
    assert done.returncode == 1
    assert "notes.h5 is not an HDF5 file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("left", [4, 3000, 0.5, -1])
def test_truncated_file(recording: SimpleNamespace, tiny: Path, refused, left: float) -> None:
    data = tiny.read_bytes()
    tiny.write_bytes(data[: int(left * len(data))] if 0 < left < 1 else data[:left])
    with refused(tiny, r"tiny\.h5 (cannot be opened|is not an HDF5 file|is damaged)"):
        Crowd(tiny)
    with refused(tiny, r"tiny\.h5 (cannot be opened|is not an HDF5 file|is damaged)"):
        append(recording, tiny)


def external_link(file: h5py.File) -> None:
    file["subjects/A/voxels/area"] = h5py.ExternalLink("elsewhere.h5", "/data")


def soft_link(file: h5py.File) -> None:
    file["subjects/A/voxels/area"] = h5py.SoftLink("/subjects/A/voxels/areas")


def virtual_dataset(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((5,), np.float32)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "data", (5,))
    file.create_virtual_dataset("subjects/A/voxels/depth", layout)


def external_storage(file: h5py.File) -> None:
    file.create_dataset(
        "subjects/A/voxels/depth", (5,), np.uint8, external=[("/etc/hostname", 0, 5)]
    )


def change(name: str, index: object, value: object) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        file[name][index] = value

    damage.__name__ = f"{name}[{index}]={value}"
    return damage


def remove(name: str) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file[name]

    damage.__name__ = f"without {name}"
    return damage


def replace(name: str, value: np.ndarray) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    damage.__name__ = f"other {name}"
    return damage


def newer_version(file: h5py.File) -> None:
    file.attrs["version"] = 3


def other_format(file: h5py.File) -> None:
    for name in list(file):
        del file[name]
    del file.attrs["format"]
    file["betas"] = np.zeros((3, 4))


def duplicate_content(file: h5py.File) -> None:
    file["images/content"][5] = file["images/content"][2]


def duplicate_name(file: h5py.File) -> None:
    file["images/id"][5] = file["images/id"][2]


def scanner_missing(file: h5py.File) -> None:
    del file["subjects/A"].attrs["scanner"]


def absurd_size(file: h5py.File) -> None:
    del file["images/id"]
    file.create_dataset("images/id", (10**11,), h5py.string_dtype(), chunks=(4096,))


def no_text(file: h5py.File) -> None:
    file["images/id"][0] = b"\xff\xfe"


def unknown_normalisation(file: h5py.File) -> None:
    file["subjects/A"].attrs["normalise"] = "median"


def scheme(name: str, value: object) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        file[f"images/schemes{name}"] = value

    damage.__name__ = f"scheme {name} {np.shape(value)}"
    return damage


def settings_cut(file: h5py.File) -> None:
    file["subjects/A"].attrs["settings"] = '{"ubrain": "0.'


DAMAGE = [
    (newer_version, "crowd file of version 3; this ubrain reads versions 1 to 2"),
    (other_format, "not a crowd file"),
    (remove("images/split"), "images/split is missing"),
    (remove("images/pixels/8x8"), "images/pixels/8x8 is missing"),
    (remove("subjects/A"), "no subjects"),
    (remove("subjects/A/responses"), "subjects/A/responses is missing"),
    (remove("subjects/A/session_moments"), "subjects/A/session_moments is missing"),
    (remove("subjects/A/trials/session"), "subjects/A/trials/session is missing"),
    (remove("subjects/A/voxels/ncsnr"), "subjects/A/voxels/ncsnr is missing"),
    (scanner_missing, "subjects/A: attribute 'scanner' is missing"),
    (duplicate_content, "images/content: the same image is stored twice"),
    (duplicate_name, "images/id: two images have the same name"),
    (change("images/split", 0, 3), "images/split: expected 0, 1 or 2"),
    (change("images/row", 0, 12), "images/pixels/8x8: expected at least 13 images"),
    (change("images/row", 0, -1), "images/(row|pixels)"),
    (change("subjects/A/trials/image", 3, 12), "subjects/A/trials/image: .*outside the 12 images"),
    (change("subjects/A/trials/image", 3, -1), "subjects/A/trials/image: .*outside the 12 images"),
    (change("subjects/A/trials/session", 3, 1), "subjects/A/session_moments: expected"),
    (
        replace("subjects/A/responses", np.zeros((11, 5), np.float32)),
        r"subjects/A/trials/image: expected .* 11 rows",
    ),
    (replace("subjects/A/voxels/areas", np.zeros(5)), "subjects/A/voxels/areas: expected"),
    (external_link, "'area' is a link out"),
    (soft_link, "'area' is a link out"),
    (virtual_dataset, "voxels/depth: data in another file"),
    (external_storage, "voxels/depth: data in another file"),
    (absurd_size, r"images/id: \(100000000000,\) object are 800000000000 bytes, but there are 0"),
    (no_text, "is damaged: .*codec can't decode"),
    (unknown_normalisation, "'normalise': expected one of session, run, none, got 'median'"),
    (settings_cut, "is damaged: Unterminated string"),
    (
        scheme("/tau", np.full(12, 3, np.uint8)),
        "images/schemes/tau: expected 0, 1 or 2 for train, val, test, or 255 for none of them",
    ),
    (scheme("/tau", np.zeros(11, np.uint8)), "images/schemes/tau: expected .* 12 rows"),
    (scheme("/tau", np.zeros(12)), "images/schemes/tau: expected .* of kind 'iu'"),
    (scheme("/t u", np.zeros(12, np.uint8)), "split scheme name 't u': expected"),
    (scheme("", np.zeros(12, np.uint8)), "images/schemes: expected a group"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[d.__name__ for d, _ in DAMAGE])
def test_damaged_file_is_refused(
    recording: SimpleNamespace,
    tiny: Path,
    refused,
    damage: Callable[[h5py.File], None],
    message: str,
) -> None:
    with h5py.File(tiny, "r+") as file:
        damage(file)
    with refused(tiny, message):
        Crowd(tiny)
    with refused(tiny, message):
        append(recording, tiny)


@pytest.mark.parametrize("column", ["image", "session", "repeat"])
def test_whole_numbers_may_be_without_sign_but_not_too_large(
    tiny: Path, refused, column: str
) -> None:
    name = f"subjects/A/trials/{column}"
    with Crowd(tiny) as crowd, h5py.File(tiny) as file:
        expected, numbers = crowd["A"].responses(), file[name][:].astype(np.uint64)
    replace(name, numbers)(h5py.File(tiny, "r+"))
    with Crowd(tiny) as crowd:
        np.testing.assert_array_equal(crowd["A"].responses(), expected)
    numbers[0] = 2**63 + 5
    replace(name, numbers)(h5py.File(tiny, "r+"))
    with refused(tiny, f"{name}: .*(outside the 12 images|negative)"):
        Crowd(tiny)


@pytest.mark.parametrize(
    "name", ["images/pixels/8x8", "subjects/A/responses", "subjects/A/session_moments"]
)
def test_what_cannot_be_read_later_is_an_error_that_names_the_file(tiny: Path, name: str) -> None:
    with h5py.File(tiny, "r+") as file:
        values = file[name][:]
        del file[name]
        made = file.create_dataset(name, data=values, chunks=values.shape, compression="gzip")
        made.id.write_direct_chunk((0,) * values.ndim, b"not a chunk of gzip")
    with Crowd(tiny) as crowd, pytest.raises(UbrainError, match=r"tiny\.h5 cannot be read"):
        crowd.image("image0") if "pixels" in name else crowd["A"].responses()


@pytest.mark.parametrize("name", ["images/split", "images/pixels/8x8"])
def test_a_file_that_cannot_grow_is_not_appended_to(
    recording: SimpleNamespace, tiny: Path, refused, name: str
) -> None:
    with h5py.File(tiny, "r+") as file:
        values = file[name][:]
        del file[name]
        file[name] = values
    with refused(tiny, f"{name} cannot grow, so nothing can be appended"):
        append(recording, tiny)


def test_a_text_with_a_zero_byte_is_refused(tmp_path: Path, refused) -> None:
    out = tmp_path / "zero.h5"
    with refused(out, "voxel column 'areas': a text has a zero byte"), write_crowd(out) as writer:
        rows = [
            writer.add_image(f"i{i}", np.full((2, 2, 3), i, np.uint8), "train") for i in range(3)
        ]
        trials = pd.DataFrame({"image": rows, "session": 0})
        writer.add_subject(
            "A", trials, pd.DataFrame({"areas": ["V1", "V\0"]}), [np.eye(3, 2)], "d", "3T"
        )


# --- writing that goes wrong


@pytest.mark.parametrize("name", ["A", "", "..", "x" * 65])
def test_taken_and_impossible_subject_names(
    recording: SimpleNamespace, tiny: Path, refused, name: str
) -> None:
    with refused(tiny, f"subject '{name}' is already|subject name '{name}': expected"):
        import_arrays(recording.images, recording.responses, name, tiny, append=True)


def test_crowd_without_subjects_is_refused(tmp_path: Path, refused) -> None:
    out = tmp_path / "empty.h5"
    with refused(out, "at least one subject"), write_crowd(out):
        pass


def test_too_few_blocks_are_refused(tmp_path: Path, refused) -> None:
    out = tmp_path / "short.h5"
    with refused(out, "expected responses to 4 trials, got 3"), write_crowd(out) as writer:
        rows = [
            writer.add_image(f"i{i}", np.full((2, 2, 3), i, np.uint8), "train") for i in range(4)
        ]
        trials = pd.DataFrame({"image": rows, "session": 0})
        writer.add_subject("A", trials, pd.DataFrame(index=range(2)), [np.eye(3, 2)], "d", "3T")


@pytest.mark.parametrize(
    ("mode", "limit", "message"),
    [
        ("new", 200_000, "free some space, the same command continues"),  # in the work folder
        ("append", 1_000_000, "could not write"),
    ],
)
def test_write_that_fails(
    recording: SimpleNamespace, tiny: Path, run_cli, mode: str, limit: int, message: str
) -> None:
    """As on a full disk: no file may grow beyond a limit."""
    values = np.random.default_rng(0).normal(size=(12, 20_000)).astype(np.float32)
    np.save(recording.responses, values)
    out = tiny if mode == "append" else recording.folder / "out.h5"
    before = tiny.read_bytes()
    options = ["--images", recording.images, "--responses", recording.responses, "--subject", "B"]
    options += ["--out", out, *(["--append"] if mode == "append" else [])]
    done = run_cli(
        "import",
        "arrays",
        *options,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(recording.folder.glob("*.partial"))
    assert tiny.read_bytes() == before
    assert out.exists() == (mode == "append")


class Disk(io.FileIO):
    """A disk that holds `room` bytes of a file."""

    room = 10

    def write(self, data: memoryview) -> int:
        fits = self.room - self.tell()
        if fits <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[:fits])


class Full(Sink, Disk):
    """A sink on such a disk."""


def test_what_a_full_disk_did_not_take_is_read_back_nevertheless(tmp_path: Path) -> None:
    """HDF5 crashes on bytes that it did not write, as it keeps addresses in its files."""
    with Full(tmp_path / "a", "w+") as sink:
        assert sink.write(b"abcdefghijklmnop") == 16
        assert sink.tell() == 16
        sink.seek(20)
        sink.write(b"xyz")
        sink.seek(9)
        sink.write(b"JK")
        sink.seek(0)
        read = bytearray(b"?" * 30)
        assert sink.readinto(read) == sink.tell() == 30
        assert read == b"abcdefghiJKlmnop" + bytes(4) + b"xyz" + bytes(7)
        with pytest.raises(OSError, match="No space left"):
            sink.check()
    assert (tmp_path / "a").read_bytes() == b"abcdefghij"


def test_hdf5_outlives_a_disk_that_fills_up_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in range(0, 12_000, 250):
        monkeypatch.setattr(Disk, "room", room)
        path = tmp_path / f"{room}.h5"
        with Full(path, "w+") as sink:
            with h5py.File(sink, "w") as file:
                file.create_dataset("names", data=["abc"] * 300, dtype=h5py.string_dtype())
                file["numbers"] = np.arange(600)
                np.testing.assert_array_equal(file["names"][:], [b"abc"] * 300)
            with pytest.raises(OSError, match="No space left"):
                sink.check()


def test_folder_that_cannot_be_made(recording: SimpleNamespace, refused) -> None:
    out = recording.responses / "out.h5"  # a file is in the way
    with refused(out, "cannot write .*Not a directory"):
        import_arrays(recording.images, recording.responses, "A", out)


KILLED = """
import os, signal, sys
import numpy as np
from ubrain.data.crowdfile import write_crowd
with write_crowd(sys.argv[1]) as writer:
    for i in range(5):
        writer.add_image(f"i{i}", np.full((100, 100, 3), i, np.uint8), "train")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_writing(recording: SimpleNamespace) -> None:
    out = recording.folder / "crowd.h5"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, out], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert list(recording.folder.glob(".crowd.h5.*.partial"))
    import_arrays(recording.images, recording.responses, "A", out)
    with Crowd(out) as crowd:
        assert len(crowd.image_ids) == 12
    assert not list(recording.folder.glob(".crowd.h5.*"))


@pytest.mark.parametrize("left_behind", ["junk", "crowd"])
def test_partial_file_of_a_killed_process_with_the_same_id(
    tmp_path: Path, tiny: Path, left_behind: str
) -> None:
    """In a container process ids repeat, so the next process may find a partial file under its own
    name.
    """
    stale = tmp_path / f".out.h5.{os.getpid()}.partial"
    stale.write_bytes(tiny.read_bytes() if left_behind == "crowd" else b"junk" * 100)
    with write_crowd(tmp_path / "out.h5") as writer:
        row = writer.add_image("i", np.zeros((2, 2, 3), np.uint8), "train")
        trials = pd.DataFrame({"image": [row] * 3, "session": 0})
        writer.add_subject("B", trials, pd.DataFrame(index=range(2)), [np.eye(3, 2)], "d", "3T")
    with Crowd(tmp_path / "out.h5") as crowd:
        assert crowd.subjects == ["B"]
