"""Small files that would fill the memory are refused before they do; links out of a folder are not
walked.
"""

import gzip
import io
import os
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from damage import mat_zeros, npy_header
from PIL import Image
from published.god import Original

from ubrain.data.importers import read as files
from ubrain.data.importers import recording
from ubrain.data.importers.god import open_bdata
from ubrain.data.importers.read import Folder
from ubrain.data.importers.recording import array_block, open_images
from ubrain.errors import UbrainError

MB = 1 << 20


def packed(n: int, begin: bytes = b"") -> bytes:
    """Some bytes and zeros, as zlib compresses them."""
    pack = zlib.compressobj(1)
    return b"".join(
        [pack.compress(begin), *(pack.compress(bytes(MB)) for _ in range(n // MB)), pack.flush()]
    )


@pytest.fixture
def memory() -> Iterator[Callable[[], float]]:
    """Most memory, in MB, that was taken since `tracemalloc.reset_peak`."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1] / MB
    tracemalloc.stop()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can exceed in little time."""
    for name in ("MAX_BYTES", "MAX_VOLUME", "MAX_CHUNK"):
        monkeypatch.setattr(files, name, 8 * MB, raising=False)
    monkeypatch.setattr(files, "MAX_TABLE", MB, raising=False)
    monkeypatch.setattr(files, "MAX_TEXT", MB, raising=False)


# --- memory


def mat_too_large(path: Path) -> None:
    mat_zeros(path, {"x": (1024, 2048)})


def mat_two_arrays(path: Path) -> None:
    mat_zeros(path, {"x": (1024, 600), "y": (1024, 600)})


def mat_of_another_size(path: Path) -> None:
    mat_zeros(path, {"x": (2, 2)}, size=64 * MB)


def mat_of_a_long_name(path: Path) -> None:
    mat_zeros(path, {"x" * (64 * MB): (2, 2)})


def mat_of_cells(path: Path) -> None:
    mat_zeros(path, {"x": (1000, 8000)}, kind=1)  # each is read as an object


def mat_not_compressed(path: Path) -> None:
    mat_zeros(path, {"x": (2, 2)}, size=64 * MB, compressed=False)


def mat_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in "xy":
            file.create_dataset(name, (1024, 600), "f8", chunks=(16, 16))


def mat_large_chunk(path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "x", (3, 3), "f8", maxshape=(None, None), chunks=(4096, 4096), compression="gzip"
        )
        data.id.write_direct_chunk((0, 0), packed(128 * MB))


MAT = [
    mat_too_large,
    mat_two_arrays,
    mat_of_another_size,
    mat_of_a_long_name,
    mat_of_cells,
    mat_not_compressed,
    mat_hdf5,
    mat_large_chunk,
]


@pytest.mark.parametrize("make", MAT)
def test_matlab_files_that_unpack_to_too_much(
    tmp_path: Path, memory: Callable[[], float], make: Callable
) -> None:
    make(tmp_path / "x.mat")
    tracemalloc.reset_peak()
    with pytest.raises(UbrainError, match=r"x\.mat.*(too large|header|not an array of num)"):
        files.read_mat(tmp_path / "x.mat", ["x", "y"])
    assert memory() < 40


def test_matlab_files_below_the_limit_are_read(tmp_path: Path) -> None:
    mat_zeros(tmp_path / "x.mat", {"x": (1000, 900)})
    np.testing.assert_array_equal(
        files.read_mat(tmp_path / "x.mat", ["x"])["x"], np.zeros((1000, 900))
    )


def test_a_volume_of_ones_is_no_mask(tmp_path: Path) -> None:
    nib.save(
        nib.Nifti1Image(np.ones((128, 128, 128), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz"
    )
    with pytest.raises(
        UbrainError, match=r"mask\.nii\.gz: .* are too large to be what is expected here"
    ):
        files.read_volume(tmp_path / "mask.nii.gz")


def test_an_extension_of_a_header_is_not_read(tmp_path: Path, memory: Callable[[], float]) -> None:
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "mask.nii")
    data = bytearray((tmp_path / "mask.nii").read_bytes())
    data[108:112], data[348:360] = (
        struct.pack("<f", 64 * MB + 352),
        struct.pack("<4B2i", 1, 0, 0, 0, 64 * MB, 6),
    )
    (tmp_path / "mask.nii.gz").write_bytes(gzip.compress(bytes(data) + bytes(65 * MB), 1))
    tracemalloc.reset_peak()
    files.open_volume(tmp_path / "mask.nii.gz")
    assert memory() < 10


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_volume_with_more_numbers_than_its_header_says(tmp_path: Path, suffix: str) -> None:
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4)), tmp_path / f"mask.{suffix}")
    opener = gzip.open if suffix == "nii.gz" else open
    with opener(tmp_path / f"mask.{suffix}", "ab") as file:
        file.write(bytes(16))
    with pytest.raises(UbrainError, match="more numbers than the header says"):
        files.read_volume(tmp_path / f"mask.{suffix}")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.marker,)


def test_pickles_in_npy_files_are_not_executed(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "x.npy"
    np.save(path, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(UbrainError, match=r"x\.npy cannot be read as a \.npy array"):
        files.load_npy(path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)
    assert marker.exists()  # the file was indeed armed


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        npy_header((3, 2)) + bytes(48),  # 24 are right
        npy_header((3, 2)) + bytes(12),
        archive(),
        b"1,2,3",
        b"",
        None,
    ],
)
def test_npy_files_that_are_none(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(UbrainError, match=r"x\.npy cannot be read"):
        files.load_npy(tmp_path / "x.npy")


# --- pictures


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


NOISE = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
BAD_PICTURES = {
    "empty": (b"", "cannot be read"),
    "cut": (NOISE[:60], "cannot be read"),
    "almost whole": (NOISE[: int(0.9 * len(NOISE))], "cannot be read"),
    "text": (b"not an image", "cannot be read: cannot identify"),
    "16 bits": (
        png(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 257)),
        "has more than 8 bits a channel",
    ),
    "huge": (
        png(Image.new("1", (8193, 1))),
        r"is \(8193, 1\) pixels; sides above 8192 are refused",
    ),
    "a format for which Pillow runs a program": (EPS, "cannot be read: cannot identify"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_pictures_that_are_refused(tmp_path: Path, monkeypatch, kind: str) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("was run"))
    data, message = BAD_PICTURES[kind]
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(UbrainError, match=r"image .*x\.png " + message):
        files.read_rgb(tmp_path / "x.png")


# --- arrays


def mapped() -> float:
    """MB of mapped files that this process has in memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux says how much of the memory is of mapped files")
    return int(re.findall(r"RssFile:\s+(\d+)", status.read_text())[0]) / 1024


def images_of(path: Path) -> Iterator[np.ndarray]:
    images = open_images(path)
    return (images.pixels(i) for i in range(len(images)))


def responses_of(path: Path) -> Iterator[np.ndarray]:
    block = array_block("all", files.load_npy(path).reshape(96, -1), [path])
    return (part.values for part in block.read())


@pytest.mark.parametrize("read", [images_of, responses_of])
def test_what_has_been_read_of_a_large_array_is_not_kept_in_memory(
    tmp_path: Path, monkeypatch, read: Callable
) -> None:
    np.save(tmp_path / "x.npy", np.ones((96, 512, 512, 3), np.uint8))  # 75 MB
    monkeypatch.setattr(recording, "PART_BYTES", 3 * MB)
    before, taken = mapped(), []
    for values in read(tmp_path / "x.npy"):
        assert values.min() == 1
        taken.append(mapped() - before)
    assert max(taken) < 20


def long_header() -> Iterator[bytes]:
    yield b"\x93NUMPY\x02\x00" + struct.pack("<I", 64 * MB)
    yield from (b" " * MB for _ in range(65))


def test_headers_of_arrays_are_short(tmp_path: Path, memory: Callable[[], float]) -> None:
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as stream,
    ):
        stream.writelines(long_header())
    (tmp_path / "x.npy").write_bytes(b"".join(long_header()))
    tracemalloc.reset_peak()
    for read in (
        lambda: files.open_npz(tmp_path / "x.npz", "a"),
        lambda: files.load_npy(tmp_path / "x.npy"),
    ):
        with pytest.raises(UbrainError, match=r"expected version 1\.0"):
            read()
    assert memory() < 10


def test_the_arrays_of_an_npz_file_have_a_limit_together(tmp_path: Path) -> None:
    members = {name: np.zeros(MB // 2) for name in "abc"}
    np.savez_compressed(tmp_path / "packed.npz", **members)
    np.savez(tmp_path / "plain.npz", **members)
    with pytest.raises(UbrainError, match=r"packed\.npz is compressed and unpacks to"):
        files.load_npz(tmp_path / "packed.npz", "a")
    assert isinstance(files.load_npz(tmp_path / "plain.npz", "a"), np.memmap)


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (files.read_lines, b"a\n" * MB),
        (files.read_lines, b"x" * 2000),
        (lambda p: files.read_table(p, ["a"]), b"a\n" * MB),
        (lambda p: files.read_table(p, ["a"]), b"a," * 10000 + b"a\n"),
    ],
)
def test_text_has_a_limit(tmp_path: Path, read: Callable, data: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(UbrainError, match=r"x\.txt.* too large to be what is expected here"):
        read(tmp_path / "x.txt")


def test_texts_of_hdf5_have_a_limit(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["long"] = ["x" * (3 * MB)] * 2
        file["fixed"] = np.array([b"x"]).astype(f"S{2 * MB}")
        file.create_dataset("many", (10**10,), h5py.string_dtype(), chunks=True)
        file["good"] = ["a", "bc"]
    with files.open_hdf5(tmp_path / "x.h5") as file:
        assert files.hdf5_texts(file, "good") == ["a", "bc"]
        for name in ("long", "fixed", "many"):
            with pytest.raises(UbrainError, match=rf"{name}.*too (large|many)"):
                files.hdf5_texts(file, name)


def keys(file: h5py.File, n: int, columns: int) -> None:
    del file["dataset"], file["metadata/key"], file["metadata/value"]
    file.create_dataset("dataset", (20, columns), "f8", chunks=(20, 100))
    file.create_dataset("metadata/key", (n,), h5py.string_dtype(), chunks=(1000,))
    file.create_dataset("metadata/value", (n, columns), "f8", chunks=(1000, 100))


@pytest.mark.parametrize(("n", "columns"), [(1000, 60_000_000), (3000, 60_000), (1000, 100_000)])
def test_keys_times_columns_of_bdata_have_a_limit(tmp_path: Path, n: int, columns: int) -> None:
    Original(1).write_h5(tmp_path / "Subject1.h5")
    with h5py.File(tmp_path / "Subject1.h5", "r+") as file:
        keys(file, n, columns)
    with (
        pytest.raises(UbrainError, match=r"Subject1\.h5.*too large"),
        open_bdata(tmp_path / "Subject1.h5"),
    ):
        pass


def test_trials_of_bdata_have_a_limit(tmp_path: Path) -> None:
    Original(1).write_h5(tmp_path / "Subject1.h5")
    with h5py.File(tmp_path / "Subject1.h5", "r+") as file:
        columns = file["dataset"].shape[1]
        del file["dataset"]
        file.create_dataset("dataset", (10**6, columns), "f8", chunks=(1000, 1))
    with (
        pytest.raises(UbrainError, match="1000000 trials are too many"),
        open_bdata(tmp_path / "Subject1.h5"),
    ):
        pass


def test_long_names_of_areas_are_refused() -> None:
    assert files.area_name(" V1,V2 ", "file") == "V1-V2"
    with pytest.raises(UbrainError, match=r"file: 'xxx.* is too long for the name of an area"):
        files.area_name("x" * 100, "file")


# --- links


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """A folder beside another one, each with a file and a subfolder with a file."""
    for place in ("inside/a", "outside/b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.txt").write_text(place)
        (tmp_path / place / "../y.txt").write_text(place)
    return tmp_path / "inside"


def test_links_out_of_a_folder_are_not_walked(
    inside: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    (inside / "away").symlink_to(inside.parent / "outside")
    seen: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: (seen.append(os.path.realpath(path)), scan(path))[1]
    )
    assert Folder(inside).search(".*") == [inside / "a/x.txt", inside / "y.txt"]
    assert str(inside.parent / "outside/b") not in seen
    assert "outside, out of" in caplog.text
    assert "--follow-links" in caplog.text
    allowed = Folder(inside, follow_links=True).search(".*")
    assert allowed == [
        inside / "a/x.txt",
        inside / "away/b/x.txt",
        inside / "away/y.txt",
        inside / "y.txt",
    ]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("follow", [False, True])
def test_links_that_go_round_in_circles_are_walked_once(inside: Path, follow: bool) -> None:
    for name in ("1", "2", "a/1", "a/2"):  # earlier names than those of the real folders
        (inside / name).symlink_to(inside)
    assert Folder(inside, follow).search(".*") == [inside / "a/x.txt", inside / "y.txt"]


def test_links_within_a_folder_are_followed(inside: Path) -> None:
    (inside / "a").rename(inside / ".hidden")
    (inside / "again").symlink_to(inside / ".hidden")
    assert Folder(inside).search("x.txt") == [inside / ".hidden/x.txt"]


def test_streams_of_arrays_have_the_header_that_numpy_writes() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 2), np.float32))
    assert np.load(io.BytesIO(npy_header((3, 2)) + bytes(24))).shape == (3, 2)
    assert files._npy_header(io.BytesIO(buffer.getvalue())) == ((3, 2), False, np.dtype("<f4"))


@pytest.mark.parametrize(
    "use",
    [
        lambda root: Folder(root / ("x" * 5000)),
        lambda root: Folder(root).find("x" * 5000),
        lambda root: Folder(root).need("a/" * 3000),
        lambda root: Folder(root).glob("x" * 5000),
        lambda root: Folder(root).glob("a**b"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, use: Callable[[Path], object]) -> None:
    with suppress(UbrainError):
        assert use(tmp_path) in (None, [])


@pytest.mark.parametrize(
    "use", [lambda f: f.search("x"), lambda f: f.find("x"), lambda f: f.pictures(["x"])]
)
def test_folders_that_cannot_be_read_are_not_taken_for_empty_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Folder], object]
) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    folder = Folder(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UbrainError, match=f"{tmp_path.name}.*[Pp]ermission denied"):
        use(folder)
