"""Pictures are found by name, and photographs known by the names that collections give them."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ubrain.crowd import open_crowd, reading
from ubrain.data.importers.read import Folder, load_npy, read_rgb, rgb_shape
from ubrain.data.importers.recording import Pictures, photograph_key
from ubrain.errors import UbrainError


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)


def test_pictures_are_found_at_any_depth_in_any_case_and_by_stem(tmp_path: Path) -> None:
    save(
        tmp_path / "a/b/One.JPEG",
        tmp_path / "two.png",
        tmp_path / "._two.png",
        tmp_path / "two.txt.png",
    )
    pictures = Pictures(Folder(tmp_path), ["one.jpeg", "two", "three"])
    assert pictures.find("one.jpeg") == tmp_path / "a/b/One.JPEG"
    assert pictures.find("ONE") == pictures.find("one.png") == tmp_path / "a/b/One.JPEG"
    assert pictures.find("zero", "two") == tmp_path / "two.png"
    assert pictures.find("three") is None


def test_the_name_with_its_suffix_goes_before_the_stem(tmp_path: Path) -> None:
    save(tmp_path / "a/one.png", tmp_path / "b/one.jpg")
    assert Pictures(Folder(tmp_path), ["one.jpg"]).find("one.jpg") == tmp_path / "b/one.jpg"


def test_two_pictures_of_one_name_are_refused_unless_a_folder_decides(tmp_path: Path) -> None:
    save(tmp_path / "a/one.png", tmp_path / "B/one.png")
    pictures = Pictures(Folder(tmp_path), ["one"])
    assert pictures.find("one", prefer=["b"]) == tmp_path / "B/one.png"
    with pytest.raises(
        UbrainError,
        match=r"'one' is there twice, as .*one\.png and as .*one\.png; name the right folder",
    ):
        pictures.find("one", prefer=["c"])


def test_links_out_of_the_folder_are_refused_unless_allowed(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/one.png", tmp_path / "in/two.png")
    (tmp_path / "in/one.png").symlink_to(tmp_path / "elsewhere/one.png")
    with pytest.raises(UbrainError, match="is a link to"):
        Pictures(Folder(tmp_path / "in"), ["one"])
    assert (
        Pictures(Folder(tmp_path / "in", follow_links=True), ["one"]).find("one")
        == tmp_path / "in/one.png"
    )
    assert Pictures(Folder(tmp_path / "in"), ["two"]).find("two") == tmp_path / "in/two.png"


def test_only_the_pictures_that_are_wanted_are_kept(tmp_path: Path) -> None:
    save(*(tmp_path / f"n{i}/{i}.png" for i in range(20)))
    folder = Folder(tmp_path)
    assert folder.search(r".*\.txt") == []
    assert [path.name for path in folder.pictures(["7.PNG", "12", "absent"])] == ["7.png", "12.png"]
    assert not any(files for _, files in folder._files), "names of pictures are kept"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("000000420713.jpg", "coco:420713"),
        ("COCO_train2014_000000420713.jpg", "coco:420713"),
        ("COCO_val2014_000000000009", "coco:9"),
        ("n01443537_22563.JPEG", "imagenet:n01443537_22563"),
        ("N01443537_022563", "imagenet:n01443537_22563"),
        ("001.jpg", ""),
        ("airport1.jpg", ""),
        ("n0144_1.JPEG", ""),
        ("0000004207133.jpg", ""),
    ],
)
def test_keys_of_photographs(name: str, key: str) -> None:
    assert photograph_key(name) == key


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [*range(10), "6", None])
def test_pictures_are_upright_as_exif_says(
    tmp_path: Path, suffix: str, orientation: int | str | None
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    exif, path = Image.Exif(), tmp_path / f"x.{suffix}"
    if isinstance(orientation, int):
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, lossless=True)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_rgb(path), expected)
    assert rgb_shape(path) == expected.shape[:2]
    if orientation == 6 and suffix != "jpg":
        np.testing.assert_array_equal(expected, np.rot90(pixels, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_turns_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_rgb(tmp_path / "x.jpg").shape[:2] == rgb_shape(tmp_path / "x.jpg") == (2, 4)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [pipe, listening, device])
def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch, make) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    make(Path("x.npy"))

    def look(path: Path) -> None:
        with reading(path):
            pytest.fail("was opened")

    for use in (look, load_npy, read_rgb, rgb_shape, open_crowd):
        with pytest.raises(UbrainError, match=r"x\.npy is a pipe or a device; expected a file"):
            use(Path("x.npy"))
