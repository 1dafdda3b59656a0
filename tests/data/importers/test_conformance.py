"""What every importer promises, held against every form of every dataset (`published`)."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from published import EXACT, Dataset, Form, flip, forms, move_out

from ubrain import cli
from ubrain.crowd import Crowd
from ubrain.data.crowdfile import write_crowd
from ubrain.data.importers.pipeline import import_recordings
from ubrain.data.importers.recording import Block
from ubrain.errors import UbrainError

FORMS = forms()


def cases(of: Callable[[Form], object]) -> list[object]:
    """Pairs of a form and what it has of something."""
    return [
        pytest.param(name, key, id=f"{name}: {key}")
        for name, form in FORMS.items()
        for key in of(form)
    ]


class Shelf:
    """Each form is written once, and imported once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, dict[str, Dataset]()

    def get(self, name: str) -> Dataset:
        """As published; not to be changed."""
        if name not in self.made:
            self.made[name] = FORMS[name].make(self.folder / name)
        return self.made[name]

    def copy(self, name: str, root: Path) -> Dataset:
        """To be damaged."""
        shutil.copytree(self.get(name).root, root)
        return self.get(name).at(root)

    def crowd(self, name: str) -> Path:
        """The crowd file; not to be changed."""
        path = self.folder / f"{name}.h5"
        if not path.exists():
            FORMS[name].act(self.get(name).root, path)
        return path


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("published"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Whatever a test does, a crowd file that is there can be read."""
    (tmp_path / "out").mkdir()
    yield tmp_path / "out/crowd.h5"
    if (tmp_path / "out/crowd.h5").exists():
        Crowd(tmp_path / "out/crowd.h5").close()


def same(a: Path, b: Path) -> bool:
    """Whether two crowd files have the same in them."""
    with Crowd(a) as first, Crowd(b) as second:
        return first.fingerprint == second.fingerprint


@pytest.mark.parametrize("name", FORMS)
def test_what_is_published_arrives(shelf: Shelf, name: str) -> None:
    """Value by value and trial by trial; pictures, and which of them are test images, too."""
    published, truth = shelf.get(name), shelf.get(name).truth()
    with Crowd(shelf.crowd(name)) as crowd, h5py.File(shelf.crowd(name)) as file:
        assert crowd.subjects == list(truth)
        for subject, expected in truth.items():
            mine, group = crowd[subject], file[f"subjects/{subject}"]
            assert list(crowd.image_ids[mine.trials.image]) == expected.shown
            np.testing.assert_allclose(group["responses"][:], expected.values, rtol=1e-5, atol=1e-6)
            assert set(mine.images("test")) == expected.test
            assert mine.trials.normalise == expected.normalise
            if expected.units is not None:
                units = mine.trials.unit
                pairs = set(zip(units.tolist(), expected.units.tolist(), strict=True))
                assert len(pairs) == len(set(units.tolist())) == len(set(expected.units.tolist()))
        for image in crowd.image_ids[:: max(1, len(crowd.image_ids) // 25)]:
            np.testing.assert_array_equal(crowd.image(image), published.pixels_of(image))


@pytest.mark.parametrize("name", FORMS)
def test_what_macos_leaves_behind_is_ignored(
    shelf: Shelf, root: Path, out: Path, name: str
) -> None:
    shelf.copy(name, root)
    for path in [root / "folder", *root.rglob("*")]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07" + bytes(60))
        path.with_name(".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    FORMS[name].act(root, out)
    assert same(out, shelf.crowd(name))


@pytest.mark.parametrize("name", FORMS)
def test_names_of_files_and_folders_may_be_in_capitals(
    shelf: Shelf, root: Path, out: Path, name: str
) -> None:
    shelf.copy(name, root)
    given = FORMS[name].more(root).values()  # what an option names has the name that it gives
    for path in sorted(root.rglob("*"), reverse=True):
        if path not in given:
            path.rename(path.with_name(path.name.upper()))
    FORMS[name].act(root, out)
    with Crowd(out) as mine, Crowd(shelf.crowd(name)) as theirs:
        assert mine.subjects == theirs.subjects
        for subject in mine.subjects:
            a, b = mine[subject], theirs[subject]
            np.testing.assert_array_equal(a.group["responses"][:], b.group["responses"][:])
            pd.testing.assert_frame_equal(a.voxels, b.voxels)


@pytest.mark.parametrize(("name", "kind"), cases(lambda form: form.damages))
def test_damage_is_refused_in_a_sentence(
    shelf: Shelf, root: Path, out: Path, refused, name: str, kind: str
) -> None:
    spoil, message = FORMS[name].damages[kind]
    spoil(shelf.copy(name, root))
    with refused(out, message):
        FORMS[name].act(root, out)


@pytest.mark.parametrize(("name", "file"), cases(lambda form: form.needed))
def test_a_missing_file_is_named(
    shelf: Shelf, root: Path, out: Path, refused, name: str, file: str
) -> None:
    shelf.copy(name, root)
    shutil.rmtree(root / file) if (root / file).is_dir() else (root / file).unlink()
    everyone = replace(EXACT, subjects=list(shelf.get(name).truth()))
    with refused(out, re.escape(Path(file).name)):
        FORMS[name].act(root, out, everyone)


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.checked])
def test_flipped_bytes_never_make_a_wrong_crowd_file(
    shelf: Shelf, root: Path, out: Path, name: str
) -> None:
    """In files with checksums: they are refused, or the byte did not matter."""
    shelf.copy(name, root)
    path, refusals, rng = root / FORMS[name].checked, 0, np.random.default_rng(0)
    whole = path.read_bytes()
    for at in [1, 5, *rng.integers(0, len(whole), 8)]:
        path.write_bytes(whole)
        flip(path, (at + 0.5) / len(whole))
        try:
            FORMS[name].act(root, out)
        except UbrainError:
            refusals += 1
            assert not out.exists()
            shutil.rmtree(out.with_name(f".{out.name}.import"), ignore_errors=True)
        else:
            assert same(out, shelf.crowd(name))
            out.unlink()
    assert refusals > 4


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.link])
def test_links_out_of_the_folder_need_consent(
    shelf: Shelf, root: Path, out: Path, refused, name: str
) -> None:
    shelf.copy(name, root)
    move_out(root / FORMS[name].link, root)
    with refused(out, "is a link to .*allow it with --follow-links"):
        FORMS[name].act(root, out)
    FORMS[name].act(root, out, replace(EXACT, follow_links=True))
    assert same(out, shelf.crowd(name))


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, i) for name, form in FORMS.items() for i in range(len(form.options))],
)
def test_options_that_make_no_sense(
    shelf: Shelf, out: Path, refused, name: str, number: int
) -> None:
    more, message = FORMS[name].options[number]
    with refused(out, message):
        FORMS[name].act(shelf.get(name).root, out, **more)


@pytest.mark.parametrize("name", FORMS)
def test_who_is_asked_for_must_be_there(shelf: Shelf, out: Path, refused, name: str) -> None:
    with refused(out, r"no subject 'nobody'; found \w+"):
        FORMS[name].act(shelf.get(name).root, out, replace(EXACT, subjects=["nobody"]))


@pytest.mark.parametrize("name", FORMS)
def test_a_dry_run_writes_nothing(shelf: Shelf, out: Path, name: str) -> None:
    text = FORMS[name].act(shelf.get(name).root, out, replace(EXACT, dry_run=True))
    assert all(f"{subject} (" in text for subject in shelf.get(name).truth())
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("name", FORMS)
def test_voxels_that_cannot_be_used_are_refused_on_request(
    shelf: Shelf, out: Path, refused, name: str
) -> None:
    dropped = [truth.dropped for truth in shelf.get(name).truth().values() if truth.dropped]
    options, root = replace(EXACT, bad_voxels="refuse"), shelf.get(name).root
    if dropped:
        with refused(out, rf"{dropped[0]} of \d+ voxels cannot be used"):
            FORMS[name].act(root, out, options)
    else:
        FORMS[name].act(root, out, options)
        assert same(out, shelf.crowd(name))


@pytest.mark.parametrize("name", FORMS)
def test_subjects_are_added_to_a_crowd_once(shelf: Shelf, out: Path, refused, name: str) -> None:
    with write_crowd(out) as writer:
        row = writer.add_image("another", np.full((4, 4, 3), 7, np.uint8), "train")
        trials = pd.DataFrame({"image": [row] * 3, "session": 0})
        writer.add_subject(
            "other", trials, pd.DataFrame(index=range(2)), [np.eye(3, 2)], "other", "7T"
        )
    append = replace(EXACT, append=True)
    FORMS[name].act(shelf.get(name).root, out, append)
    with Crowd(out) as crowd:
        assert crowd.subjects == ["other", *shelf.get(name).truth()]
    with refused(out, r"is already in .*crowd\.h5"):
        FORMS[name].act(shelf.get(name).root, out, append)


@pytest.mark.parametrize("name", FORMS)
def test_an_interrupted_import_continues_to_the_same_file(
    shelf: Shelf, out: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    form, root, read = FORMS[name], shelf.get(name).root, list[str]()

    def watched(block: Block, stop: bool) -> Block:
        def parts() -> Iterator:
            read.append(block.name)
            for part in block.read():
                if stop:
                    raise KeyboardInterrupt
                yield part

        return replace(block, read=parts)

    def interrupted(recordings: list, *arguments: object, stop: bool) -> str:
        last = recordings[-1]
        blocks = [watched(b, stop and b is last.blocks[-1]) for r in recordings for b in r.blocks]
        each = iter(blocks)
        changed = [replace(r, blocks=[next(each) for _ in r.blocks]) for r in recordings]
        return import_recordings(changed, *arguments)

    module = form.run.__module__
    for stop in (True, False):
        monkeypatch.setattr(
            f"{module}.import_recordings", lambda *a, stop=stop: interrupted(*a, stop=stop)
        )
        if stop:
            with pytest.raises(KeyboardInterrupt):
                form.act(root, out)
            assert not out.exists()
            last = read[-1]
            read.clear()
        else:
            form.act(root, out)
    assert read == [last]
    assert same(out, shelf.crowd(name))
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("normalise", ["session", "run"])
@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if not form.sessions])
def test_sessions_that_are_not_known_are_not_made_up(
    shelf: Shelf, out: Path, refused, name: str, normalise: str
) -> None:
    """Averages over sessions, and trials of which the session is not published."""
    with refused(out, f"--normalise {normalise}: .*sessions"):
        FORMS[name].act(shelf.get(name).root, out, replace(EXACT, normalise=normalise))


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.command])
def test_command_line(
    shelf: Shelf,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    name: str,
) -> None:
    form, root = FORMS[name], shelf.get(name).root
    own = [
        text
        for key, value in form.more(root).items()
        for text in (f"--{key.replace('_', '-')}", str(value))
    ]
    command = ["ubrain", "import", form.command, "--root", str(root), "--out", str(out), *own]
    monkeypatch.setattr(sys, "argv", [*command, "--dtype", "float32", "--val-fraction", "0.2"])
    with suppress(SystemExit):
        cli.main()
    said = capsys.readouterr()
    for subject in shelf.get(name).truth():
        assert f"{subject} (" in said.out, said.err
    assert same(out, shelf.crowd(name))
