"""The site's sources: links that work there, tables of what was recorded, no solution."""

from pathlib import Path

import jupytext
import pytest

from ubrain.errors import UbrainError
from ubrain.report import site

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (
            "[x](../papermill_runs/simulated-fast/01_crowd_gains.ipynb#Is-the-gain-real?)",
            "[x](../notebooks/01_crowd_gains.ipynb#is-the-gain-real)",
        ),
        (
            "[x](papermill_runs/simulated-fast/07_a.ipynb#More:-ours,-(again))",
            "[x](notebooks/07_a.ipynb#more-ours-again)",
        ),
        (
            "[x](papermill_runs/simulated-fast/08_your_brain.ipynb).",
            "[x](notebooks/08_your_brain.ipynb).",
        ),
        ("[neurons](papermill_runs/macaque_v4-fast), x", "neurons, x"),
        (
            "[a figure](../figures/simulated-fast/x.png)",
            "[a figure](../figures/simulated-fast/x.png)",
        ),
    ],
)
def test_links_lead_to_where_the_site_has_its_notebooks(link, expected):
    assert site._linked(link) == expected


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        folder = tmp_path_factory.mktemp("site") / "sources"
        folder.mkdir()
        with pytest.raises(UbrainError, match="holds no sources of the site"):
            site.sources(folder)
        for name in ("index.md", "old.md"):
            (folder / name).touch()
        site.sources(folder)
    return folder


def test_every_page_is_in_the_contents_once(sources):
    home = (sources / "index.md").read_text(encoding="utf-8")
    listed = [line for line in home.splitlines() if (sources / f"{line}.md").exists() and line]
    notebooks = sorted(p.stem for p in (ROOT / "notebooks").glob("*.py"))
    assert [n for n in home.splitlines() if n.startswith("notebooks/")] == [
        f"notebooks/{n}" for n in notebooks
    ]
    pages = {p.relative_to(sources).with_suffix("").as_posix() for p in sources.rglob("*.md")}
    assert {p for p in pages if p != "index"} == set(listed)
    assert len(listed) == len(set(listed))
    assert not (sources / "old.md").exists()


def test_no_solution_of_the_workshop_is_on_the_site(sources):
    files = sorted((ROOT / "workshop").glob("*.py"))
    cells = [c for f in files for c in jupytext.read(f).cells]
    solutions = [c.source for c in cells if "exercise" in c.metadata.get("tags", [])]
    lines = {line.strip() for s in solutions for line in s.splitlines() if "###" not in line}
    text = "\n".join(p.read_text(encoding="utf-8") for p in (sources / "workshop").rglob("*.*"))
    assert not [line for line in lines if len(line) > 25 and line in text]
    assert not list((sources / "workshop").glob("*.py"))


def test_the_dashboard_has_every_number_and_escapes_names(sources):
    text = (sources / "docs/dashboard.md").read_text(encoding="utf-8")
    assert text.count("<tr><td>") > 2600
    document = {"results": [dict.fromkeys(("low", "high", "value"), None)]}
    names = {"name": "<b>", "condition": "a & b", "subject": "<script>", "unit": "r"}
    document["results"][0] |= names
    table = site._numbers("01", {"run": {"01": document}})
    assert "&lt;script&gt;" in table
    assert "<b>" not in table


def test_the_api_has_what_the_core_offers(sources):
    text = (sources / "docs/api.md").read_text(encoding="utf-8")
    for name in ("UniversalEncoder", "Crowd", "Subject.responses", "fit", "correlation", "Lab"):
        assert f"# {name}\n" in text


def test_broken_links_and_anchors_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="there">x</h1><a href="https://x.org/none">out</a>')
    links = ["b.html", "b.html#there", "#top", "none.html", "b.html#none", "#none", "../x.png"]
    text = "".join(f'<a href="{link}">x</a>' for link in links)
    (tmp_path / "a.html").write_text(f'<p id="top"></p>{text}<img src="none.png">')
    broken = site.check(tmp_path)
    expected = ["none.html", "b.html#none", "#none", "../x.png", "none.png"]
    assert broken == [f"a.html: {link}" for link in expected]
