"""The site: sources for sphinx, made of what the repository holds, and a check of the built links.

`python -m ubrain.report.site sources FOLDER` copies pages, notebooks and figures as they lie
in the repository, so their links work, and writes the pages that follow from recorded numbers and
from docstrings. `python -m ubrain.report.site check FOLDER` reads the built pages.
"""

import html
import importlib
import inspect
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ubrain import paths
from ubrain.errors import UbrainError
from ubrain.report import claims
from ubrain.report.claims import pages
from ubrain.report.results import read_results
from ubrain.report.runs import README_RUN

COPIED = ("docs", "figures", "workshop", "ubrain", "benchmarks", "notebooks", "tests")
SUFFIXES = (".md", ".png", ".py", ".yaml", ".toml", ".json", ".cff", ".yml", ".lock")
MODULES = (
    *("model", "train", "transfer", "scores", "crowd", "backbone", "features", "predict"),
    *("config", "checkpoint", "report.lab", "report.kept", "report.packs", "report.explorer"),
)
CONTENTS = {
    "Read": ["docs/claims", "docs/fails", "docs/explorer", "docs/dashboard"],
    "Notebooks": ["notebooks/[0-9]*"],
    "Teach": ["workshop/README", "docs/glossary"],
    "Your data": ["docs/use", "docs/data", "docs/own_importer", "docs/voxels"],
    "Methods": [
        *("docs/faithfulness", "docs/intervals", "docs/scaling"),
        *("docs/rulers", "docs/robustness", "docs/reproducibility"),
    ],
    "Code": ["CONTRIBUTING", "docs/api", "CHANGELOG"],
}
FILTER = """<input type="search" placeholder="filter rows" oninput="
const words = this.value.toLowerCase().split(' ');
for (const row of this.nextElementSibling.tBodies[0].rows)
  row.hidden = !words.every(w => row.textContent.toLowerCase().includes(w))">"""


def sources(to: Path) -> None:
    """Write everything that sphinx needs into a folder; what it held of an earlier site is removed.

    Raises
    ------
    UbrainError
        If the folder holds something else.
    """
    root = paths.project_root()
    if to.exists() and not (to / "index.md").exists():
        raise UbrainError(f"{to} holds no sources of the site; give another folder")
    shutil.rmtree(to, ignore_errors=True)
    executed = sorted((root / "papermill_runs" / README_RUN).glob("*.ipynb"))
    files = [p for p in root.iterdir() if p.is_file() and p.suffix in SUFFIXES]
    files += [root / name for name in ("LICENSE", "Makefile")]
    for folder in COPIED:
        files += [p for p in (root / folder).rglob("*") if p.suffix in SUFFIXES and p.is_file()]
    for file in files:
        target = to / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            target.write_text(_linked(file.read_text(encoding="utf-8")), encoding="utf-8")
        elif file.relative_to(root).parts[0] != "workshop":
            shutil.copyfile(file, target)  # of the workshop's sources none: they hold solutions
    for file in executed:
        shutil.copyfile(file, to / "notebooks" / file.name)
    made = {
        "docs/fails": fails(),
        "docs/dashboard": dashboard(),
        "docs/api": api(),
        "docs/explorer": EXPLORER,
    }
    for name, text in made.items():
        (to / f"{name}.md").write_text(_linked(text), encoding="utf-8")
    home = to / "README.md"
    (to / "index.md").write_text(home.read_text(encoding="utf-8") + contents(to), encoding="utf-8")
    home.unlink()


def contents(to: Path) -> str:
    """Tables of contents for the sidebar, of what is there."""
    text = ""
    for title, names in CONTENTS.items():
        found = [
            p.relative_to(to).with_suffix("") for n in names for p in sorted(to.glob(f"{n}.*"))
        ]
        listed = dict.fromkeys(p.as_posix() for p in found)
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(listed) + "\n```\n"
    return text


def fails() -> str:
    """Page of the claims that fail somewhere."""
    shown = pages.columns(paths.run_dir(README_RUN))
    rows = [
        f"| {c.text} | {title} | {said} |"
        for c in claims.read()
        if c.rule
        for title, runs in shown.items()
        if (said := pages.cell(c, runs)).startswith(("fails", "holds in"))
    ]
    return f"{FAILS}\n| claim | data | |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


def dashboard() -> str:
    """Page of every recorded number: a table for each notebook, a column for each run."""
    root = paths.run_dir(README_RUN).parent
    folders = sorted(root.iterdir(), key=lambda f: (not f.name.startswith(README_RUN), f.name))
    runs = {f.name: read_results(f) for f in folders if any(f.glob("*.json"))}
    names = sorted({name for documents in runs.values() for name in documents})
    return DASHBOARD + "\n".join(_numbers(name, runs) for name in names)


def _numbers(notebook: str, runs: dict[str, dict[str, Any]]) -> str:
    """The table of one notebook; text comes from files and is escaped."""
    there = {run: documents[notebook] for run, documents in runs.items() if notebook in documents}
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for run, document in there.items():
        for r in document["results"]:
            key = tuple(str(r[part]) for part in ("name", "condition", "subject", "unit"))
            low, high = r["low"], r["high"]
            value = "–" if r["value"] is None else f"{r['value']:.3g}"
            ends = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
            rows.setdefault(key, {})[run] = value + ends
    header = ["number", "condition", "subject", "unit", *there]
    lines = [f"<tr>{''.join(f'<th>{html.escape(h)}</th>' for h in header)}</tr>"]
    body = [
        "<tr>"
        + "".join(f"<td>{html.escape(c)}</td>" for c in (*key, *(v.get(r, "") for r in there)))
        for key, v in rows.items()
    ]
    table = f"<table class='table'><thead>{lines[0]}</thead><tbody>\n" + "\n".join(body)
    return f"\n## {notebook}\n\n<div class='scroll'>{FILTER}\n{table}\n</tbody></table></div>\n"


def api() -> str:
    """Page of the public classes and functions of the core, from their docstrings."""
    text = [
        "# API",
        "",
        "From the docstrings. `import ubrain` gives the first names; the rest by module.",
    ]
    for name in MODULES:
        module = importlib.import_module(f"ubrain.{name}")
        about = (inspect.getdoc(module) or "").split("\n\n")[0].replace("\n", " ")
        text += ["", f"## ubrain.{name}", "", about, ""]
        for part, value in vars(module).items():
            if part.startswith("_") or getattr(value, "__module__", "") != module.__name__:
                continue
            if inspect.isclass(value):
                text += _described(part, value)
                for method, function in vars(value).items():
                    if not method.startswith("_") and inspect.isfunction(function):
                        text += _described(f"{part}.{method}", function, "####")
            elif inspect.isfunction(value):
                text += _described(part, value)
    return "\n".join(text) + "\n"


def _described(name: str, value: Any, level: str = "###") -> list[str]:
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):
        signature = "(...)"
    doc = inspect.getdoc(value) or ""
    return ["", f"{level} {name}", "", "```text", f"{name}{signature}", "", doc, "```"]


def _linked(text: str) -> str:
    """Links to executed notebooks lead to where the site has them, and to its kind of anchors."""

    def link(match: re.Match[str]) -> str:
        anchor = re.sub(r"[^\w\- ]", "", match[3].replace("-", " ").lower()).replace(" ", "-")
        return f"]({match[1]}notebooks/{match[2]}.ipynb" + (f"#{anchor}" if anchor else "") + ")"

    run = re.escape(f"papermill_runs/{README_RUN}/")
    text = re.sub(rf"\]\(((?:\.\./)*){run}(\w+)\.ipynb#?((?:[^()\s]|\([^()]*\))*)\)", link, text)
    return re.sub(r"\[([^\]]*)\]\((?:\.\./)*papermill_runs/[\w-]+/?\)", r"\1", text)


class _Page(HTMLParser):
    """Ids of a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            if (tag, name) in (("a", "href"), ("img", "src"), ("iframe", "src")) and value:
                self.links.append(value)


def check(site: Path) -> list[str]:
    """Links of built pages that lead nowhere within the site, as "page: link"."""
    found = {p.resolve(): _Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}
    broken = []
    for page, content in found.items():
        for link in dict.fromkeys(content.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in ("#", ""):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchor = unquote(parts.fragment)
            exists = target in found or target.is_file() or (target / "index.html").is_file()
            if not exists or (anchor and target in found and anchor not in found[target].ids):
                broken.append(f"{page.relative_to(site.resolve())}: {link}")
    return broken


FAILS = """# What is simulated, and what fails

The default crowd is **simulated**: scenes are rendered, and responses computed from functional
types, receptive fields and noise that are known. So a result there says that a method finds what is
there, not that brains are so. In the macaque's V4 neurons were recorded, no fMRI.

Claims that fail, or hold in some worlds only, as the recorded runs judge them;
[all claims](claims.md).
"""
DASHBOARD = """# Every number

What every notebook recorded in every published run: of the simulated crowd (seeds 0, 1, 2), of
other simulated crowds (with an earlier profile), and of one macaque's V4. In brackets 95 %
intervals. Columns of different data are not to be compared.
"""
EXPLORER = """# Voxel explorer

Click a voxel of any simulated subject: how well it is predicted, where it looks, which images it
prefers, and which voxels of the *other* subjects have nearly the same embedding.
<a href="../explorer.html">The page alone</a> is one file, and works without this site. For your own
crowd: [use.md](use.md#look-at-every-voxel).

<iframe class="explorer" src="../explorer.html" title="voxel explorer"></iframe>
"""


if __name__ == "__main__":
    what, folder = sys.argv[1:]
    if what == "sources":
        sources(Path(folder))
    elif broken := check(Path(folder)):
        sys.exit("links that lead nowhere:\n" + "\n".join(broken))
