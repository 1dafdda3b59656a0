"""Pictures are found by name, and photographs known by the names that collections give them."""

from pathlib import Path

import pytest
from PIL import Image

from ubrain.data.importers.read import Folder
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
