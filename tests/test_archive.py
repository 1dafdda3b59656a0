"""What archives, checkers and robots read agrees with what is published."""

import json
import re
from pathlib import Path

import pytest
import yaml

from ubrain.report import archive
from ubrain.report.runs import README_RUN, find_notebooks

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def files(folder, ending):
    return {f.relative_to(ROOT).as_posix() for f in (ROOT / folder).glob(f"*.{ending}")}


def test_they_are_those_of_the_published_run():
    """Without the date, which comes from git and is unknown to a shallow clone."""
    for name, text in archive.texts(README_RUN).items():
        written, expected = read(name), yaml.safe_load(text)
        for document in (written, expected):
            for entity in document.get("@graph", []):
                entity.pop("datePublished", None)
        assert written == expected, f"{name} is stale; run `make report` and commit it"


def test_the_manifest_has_every_published_number_and_figure():
    text = (ROOT / "codecheck.yml").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    check = yaml.safe_load(text)
    listed = [entry["file"] for entry in check["manifest"]]
    assert len(listed) == len(set(listed))
    assert {*listed} == files(f"papermill_runs/{README_RUN}", "json") | files(
        f"figures/{README_RUN}", "png"
    )
    assert all(entry["comment"] for entry in check["manifest"])
    assert check["paper"]["reference"].startswith("https://doi.org/")


def test_every_entity_of_the_crate_is_described_and_every_file_exists():
    graph = json.loads((ROOT / "ro-crate-metadata.json").read_text(encoding="utf-8"))["@graph"]
    entities = {entity["@id"]: entity for entity in graph}
    assert len(entities) == len(graph)
    root = entities["./"]
    assert {"name", "description", "datePublished", "license", "conformsTo"} <= root.keys()
    parts = {part["@id"] for part in root["hasPart"]}
    assert parts == {i for i, e in entities.items() if e["@type"] == "File"}
    assert all((ROOT / part).is_file() for part in parts)
    actions = [entities[a["@id"]] for a in root["mentions"]]
    assert len(actions) == len(files(f"papermill_runs/{README_RUN}", "json"))
    for action in actions:
        assert action["@type"] == "CreateAction"
        assert entities[action["instrument"]["@id"]]["@type"] == "SoftwareApplication"
        assert {action["object"]["@id"], *(r["@id"] for r in action["result"])} <= parts


def test_the_citation_is_that_of_the_package():
    cite, meta = read("CITATION.cff"), json.loads((ROOT / "codemeta.json").read_text("utf-8"))
    assert cite["cff-version"] == "1.2.0"
    assert cite["version"] == meta["version"]
    assert [a["name"] for a in cite["authors"]] == [a["name"] for a in meta["author"]]
    assert meta["license"].endswith(f"/{cite['license']}")
    assert cite["keywords"] == meta["keywords"]
    paper = cite["preferred-citation"]
    assert {"title", "authors", "year", "journal", "doi", "url"} <= paper.keys()
    assert paper["doi"].rpartition("arXiv.")[2] == paper["url"].rpartition("/")[2]


def test_the_table_of_contents_has_every_notebook():
    project = read("myst.yml")["project"]
    listed = [e["file"] for part in project["toc"] for e in part.get("children", [part])]
    assert all((ROOT / file).is_file() for file in listed)
    assert {f"notebooks/{n.stem}.ipynb" for n in find_notebooks()} <= {*listed}
    assert project["title"] == read("CITATION.cff")["title"]


@pytest.mark.parametrize("file", ["ci.yml", "weekly.yml"])
def test_workflows_only_call_what_everybody_calls(file):
    flow = read(f".github/workflows/{file}")
    assert flow["name"] == file.removesuffix(".yml")
    (job,) = flow["jobs"].values()
    targets = set(re.findall("^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs
    for command in runs:
        assert command == "bash .ci/run" or command.removeprefix("make ") in targets
    for step in job["steps"]:
        assert "run" in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
