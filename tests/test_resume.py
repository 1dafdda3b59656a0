"""Work folders: one process at a time, the same settings, and nothing half-written stays."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ubrain.errors import UbrainError
from ubrain.resume import (
    LOCK,
    SETTINGS,
    locked,
    refuse_others,
    remove_partials,
    same_settings,
    work,
)

ADDS = """
import sys, time
from pathlib import Path
from ubrain.paths import write_text
from ubrain.resume import work

out = Path(sys.argv[1])
with work(out.with_name("work"), {"n": 6}, f"the numbers of {out}") as folder:
    for i in range(6):
        part = folder / f"{i}.txt"
        if not part.exists():
            time.sleep(float(sys.argv[2]))
            (folder / f".{i}.txt.1.partial").write_text("half")
            write_text(part, f"{i * i}\\n")
            (folder / f".{i}.txt.1.partial").unlink()
    write_text(out, "".join((folder / f"{i}.txt").read_text() for i in range(6)))
"""


def test_killed_at_any_moment_the_same_command_ends_in_the_same_file(tmp_path):
    out, folder = tmp_path / "numbers.txt", tmp_path / "work"
    for done in range(1, 6):
        victim = subprocess.Popen([sys.executable, "-c", ADDS, str(out), "0.02"])
        while victim.poll() is None and not (folder / f"{done}.txt").exists():
            time.sleep(0.002)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    subprocess.run([sys.executable, "-c", ADDS, str(out), "0"], check=True)
    assert out.read_text().split() == ["0", "1", "4", "9", "16", "25"]
    assert os.listdir(tmp_path) == ["numbers.txt"]


def test_two_at_once_one_is_refused_and_the_other_goes_on(tmp_path):
    with work(tmp_path / "w", {}, "the import of a.h5"):
        with (
            pytest.raises(UbrainError, match=r"another process is busy with the import of a\.h5"),
            work(tmp_path / "w", {}, "the import of a.h5"),
        ):
            pass
        assert (tmp_path / "w" / SETTINGS).exists()
    assert not (tmp_path / "w").exists()


def test_other_settings_are_refused_by_name_and_keep_what_is_there(tmp_path):
    def begin(settings):
        with suppress(ZeroDivisionError), work(tmp_path / "w", settings, "the training") as folder:
            (folder / "part").write_text("precious")
            raise ZeroDivisionError

    begin({"seed": 0, "training": {"epochs": 2, "levels": (1, 2)}})
    begin({"seed": 0, "training": {"epochs": 2, "levels": (1, 2)}})
    message = r"the training was begun with other settings \(seed was 0, is 1; training.epochs was"
    with (
        pytest.raises(UbrainError, match=message + r" 2, is 3\).*or delete .*w to start anew"),
        work(
            tmp_path / "w", {"seed": 1, "training": {"epochs": 3, "levels": [1, 2]}}, "the training"
        ),
    ):
        pass
    assert (tmp_path / "w" / "part").read_text() == "precious"
    assert not (tmp_path / "w" / LOCK).exists()


def test_an_error_before_anything_was_done_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), work(tmp_path / "w", {"a": 1}, "it"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_folder_may_stay_without_its_lock(tmp_path):
    with work(tmp_path / "w", {"a": 1}, "it", keep=True) as folder:
        (folder / "result").touch()
    assert sorted(os.listdir(tmp_path / "w")) == ["result", SETTINGS]


def test_what_killed_processes_left_half_written_is_removed(tmp_path):
    for name in (".a.h5.17.partial", "..a.h5.17.partial.17.partial", ".b.a.h5.17.partial"):
        (tmp_path / name).touch()
    (tmp_path / "..a.h5.17.partial.work").mkdir()
    (tmp_path / "a.h5").touch()
    remove_partials(tmp_path, "a.h5")
    assert {p.name for p in tmp_path.iterdir()} == {"a.h5", ".b.a.h5.17.partial"}
    with locked(tmp_path, "it"):
        assert {p.name for p in tmp_path.iterdir()} == {"a.h5", LOCK}


def test_who_is_killed_while_a_folder_is_emptied_is_not_refused(tmp_path, monkeypatch):
    """The settings go last: without them, what is left would be of nobody."""
    unlink = Path.unlink

    def stop(path, **options):
        if path.name == "z":
            raise OSError("killed")
        unlink(path, **options)

    def begin():
        with work(tmp_path / "w", {"a": 1}, "it") as folder:
            for name in ("0", "part", "z"):
                (folder / name).touch()

    monkeypatch.setattr(Path, "unlink", stop)
    with pytest.raises(OSError, match="killed"):
        begin()
    monkeypatch.setattr(Path, "unlink", unlink)
    begin()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\x00"])
def test_settings_that_cannot_be_read_are_said(tmp_path, text):
    (tmp_path / SETTINGS).write_text(text)
    (tmp_path / "part").touch()
    with pytest.raises(UbrainError, match=r"settings.json cannot be read: .*delete .* to start"):
        same_settings(tmp_path, {"a": 1}, "it")


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UbrainError, match=r"cannot write .*file/w: Not a directory"),
        locked(tmp_path / "file" / "w", "it"),
    ):
        pass


def test_settings_count_as_they_come_back_from_json(tmp_path):
    refuse_others(json.loads('{"a": {"b": [1]}}'), {"a": {"b": (1,)}}, "it", tmp_path)
    with pytest.raises(UbrainError, match=r"a\.c was None, is 2"):
        refuse_others({"a": {"b": [1]}}, {"a": {"b": (1,), "c": 2}}, "it", tmp_path)


def test_work_of_an_earlier_version_is_not_lost_without_a_word(tmp_path):
    (tmp_path / "00003.pt").touch()
    with pytest.raises(UbrainError, match=r"holds the training, begun by an earlier version; del"):
        same_settings(tmp_path, {"a": 1}, "the training")
    assert (tmp_path / "00003.pt").exists()


def test_settings_without_any_work_are_replaced(tmp_path):
    same_settings(tmp_path, {"a": 1}, "it")
    same_settings(tmp_path, {"a": 2}, "it")
    assert json.loads((tmp_path / SETTINGS).read_text()) == {"a": 2}


def test_the_lock_is_the_last_that_goes(tmp_path, monkeypatch):
    """Whoever comes while a folder is emptied is refused, and keeps no lock that is taken away."""
    seen, unlink = [], Path.unlink

    def watch(path, *rest, **options):
        if path.name == "part":
            with pytest.raises(UbrainError, match="another process"), locked(tmp_path / "w", "it"):
                pass
            seen.append(path)
        unlink(path, *rest, **options)

    monkeypatch.setattr(Path, "unlink", watch)
    with work(tmp_path / "w", {}, "it") as folder:
        (folder / "part").touch()
    assert seen
    assert not folder.exists()
