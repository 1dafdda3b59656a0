"""Importers of other packages: the one of docs/own_importer.md, and broken ones."""

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ubrain import cli
from ubrain.crowd import Crowd
from ubrain.data.importers import BUILT_IN, GROUP

PAGE = Path(__file__).parents[3] / "docs/own_importer.md"
IMPORTER = "def f({}):\n    '''Ours.'''\n"
Run = Callable[..., tuple[int, str, str]]


def of_page(language: str) -> str:
    """The block of the page in a language."""
    return re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for packages, in which they are found."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    return tmp_path / "site"


def install(site: Path, name: str, points: str, **modules: str) -> None:
    """As pip does."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)


@pytest.fixture
def ubrain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """A command: its exit code, and what it printed."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ubrain", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_the_importer_of_the_page_is_a_command(tmp_path: Path, site: Path, ubrain: Run) -> None:
    project = tomllib.loads(of_page("toml"))["project"]
    points = "".join(f"{k} = {v}" for k, v in project["entry-points"][GROUP].items())
    install(site, project["name"], points, ourlab=of_page("python"))
    rng, root, out = np.random.default_rng(0), tmp_path / "data", tmp_path / "crowd.h5"
    pixels, values = rng.integers(0, 256, (20, 8, 8, 3), np.uint8), rng.normal(3, 2, (40, 5))
    order = rng.permutation(np.repeat(np.arange(20), 2))
    (root / "images").mkdir(parents=True)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(root / f"images/im{i}.png")
    with h5py.File(root / "sub-01_betas.h5", "w") as file:
        file["betas"] = values.astype(np.float32)
    rows = "".join(f"im{i},{n // 20},{n // 10}\n" for n, i in enumerate(order))
    (root / "sub-01_trials.csv").write_text("image,session,run\n" + rows)

    shown = " ".join(ubrain("import", "ourlab", "--help")[1].split())
    for text in ("Betas of our lab, one file", "package ourlab-betas 1.0.", "by their content"):
        assert text in shown
    given = ("--root", root, "--out", out, "--dtype", "float32", "--test-fraction", "0.3")
    planned = ubrain("import", "ourlab", *given, "--dry-run")[1]
    assert "ourlab-sub-01 (ourlab, 3T): 40 trials of 20 images in 2 session(s)" in planned
    assert not out.exists()
    assert ubrain("import", "ourlab", *given)[0] == 0
    with Crowd(out) as crowd:
        subject = crowd["ourlab-sub-01"]
        np.testing.assert_array_equal(subject.group["responses"][:], values.astype(np.float32))
        assert list(crowd.image_ids[subject.trials.image]) == [f"im{i}" for i in order]
        assert 0 < len(subject.image_rows("test")) < 12
        np.testing.assert_array_equal(crowd.image("im7"), pixels[7])
    (root / "images/im3.png").unlink()
    code, printed, said = ubrain("import", "ourlab", "--root", root, "--out", tmp_path / "b.h5")
    assert (code, printed, said.count("\n")) == (1, "", 1)
    assert "sub-01 was shown 'im3', which is not in images" in said


BROKEN = {
    "import nothing_of_this_name": "ModuleNotFoundError: No module",
    "raise SystemExit(3)": "SystemExit: 3",
    "def f(": "SyntaxError",
    "": "AttributeError",
    "f = 3": "TypeError: 3 is not a callable",
    IMPORTER.format("folder, out"): "expected root, out, options",
    IMPORTER.format("root, out, options, x: Typo = 1"): "NameError",
}


def test_a_broken_one_costs_a_sentence_where_it_is_used(site: Path, ubrain: Run) -> None:
    modules = {f"broken{i}": text for i, text in enumerate(BROKEN)}
    points = [f"ours{i} = {module}:f" for i, module in enumerate(modules)]
    install(site, "their-package", "\n".join(points), **modules)
    code, printed, said = ubrain("import", "--help")
    assert (code, said) == (0, "")
    assert printed.count("From the package their-package 1.0.") == len(BROKEN)
    for i, reason in enumerate(BROKEN.values()):
        for words in (["--help"], ["--root", "x", "--out", "y"]):
            code, printed, said = ubrain("import", f"ours{i}", *words)
            assert (code, printed, said.count("\n")) == (1, "", 1)
            assert said.startswith(f"ubrain: import ours{i}: broken{i}:f of the package their-pack")
            assert reason in said
    assert ubrain("import", "vim1", "--help")[::2] == (0, "")


def test_a_name_is_given_once(site: Path, ubrain: Run, caplog) -> None:
    """A built-in importer is not replaced; of two packages, the first that is found has a name."""
    points = "nsd = one:f\narrays = one:f\n--x = one:f\nours = one:f"
    install(site, "their-package", points, one=IMPORTER.format("root, out, options"))
    install(site, "another", "ours = two:f\nother = two:f")
    install(site, "broken", "a line without a value")
    code, printed, _ = ubrain("import", "--help")
    assert code == 0
    for name in [*BUILT_IN, "arrays", "ours", "other"]:
        assert len(re.findall(rf"^  {name} ", printed, re.MULTILINE)) == 1, name
    for said in (
        "importer 'nsd' of their-package 1.0 is left out: ubrain has one",
        "importer 'arrays' of their-package 1.0 is left out: ubrain has one",
        "importer '--x' of their-package 1.0 is left out: no name of a command",
        "broken-1.0.dist-info: entry points cannot be read",
    ):
        assert said in caplog.text
    assert caplog.text.count("importer 'ours'") == 1
    assert "Natural Scenes Dataset" in ubrain("import", "nsd", "--help")[1]
