"""Files of anybody's are opened as files, or refused at once."""

import os
import stat
from pathlib import Path

import pytest

from ubrain.errors import UbrainError
from ubrain.paths import open_regular, regular


def test_a_file_is_opened_up_to_its_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert regular(tmp_path / "link", 5) == 5
    with open_regular(tmp_path / "link", 5) as file:
        assert file.read() == b"12345"
    with pytest.raises(UbrainError, match="file has 5 bytes; expected at most 4"):
        open_regular(tmp_path / "file", 4)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "No such file"),
        ("folder", "is a folder; expected a file"),
        ("pipe", "is a pipe or a device; expected a file"),
        ("/dev/zero", "is a pipe or a device; expected a file"),
        ("broken", "No such file"),
        ("n" * 300, "File name too long"),
        ("a\0b", "null"),
    ],
)
def test_what_is_no_file_is_refused_in_one_sentence(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UbrainError, match=message):
        open_regular(tmp_path / name)


def test_a_file_that_may_not_be_read_is_not_said_to_be_damaged(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"1")
    monkeypatch.setattr(os, "access", lambda path, mode: stat.S_ISDIR(Path(path).stat().st_mode))
    with pytest.raises(UbrainError, match="cannot be read: Permission denied"):
        open_regular(tmp_path / "file")
