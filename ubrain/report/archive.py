"""What archives and checkers read, written from the published run, pyproject.toml and CITATION.cff:
`codecheck.yml` (CODECHECK specification 2.0), `ro-crate-metadata.json` (RO-Crate 1.1, profile
Process Run Crate 0.5: one action per notebook) and `codemeta.json` (CodeMeta 3.0).
"""

import json
import tomllib
from pathlib import Path
from typing import Any

import yaml

from ubrain import paths
from ubrain.report import results

PROCESS_RUN = "https://w3id.org/ro/wfrun/process/0.5"
TYPES = {
    ".json": "application/json",
    ".ipynb": "application/x-ipynb+json",
    ".png": "image/png",
    ".py": "text/x-python",
}


def write(run: str) -> list[Path]:
    """Write the three files beside CITATION.cff; without one, or before the run is published,
    nothing.

    Parameters
    ----------
    run : the published run that they describe, such as `simulated-fast`.
    """
    root = paths.project_root()
    if not (root / "CITATION.cff").exists() or not paths.run_dir(run).exists():
        return []
    files = {root / name: text for name, text in texts(run).items()}
    for file, text in files.items():
        paths.write_text(file, text)
    return list(files)


def texts(run: str) -> dict[str, str]:
    """The files as they should be: name -> text."""
    cite = yaml.safe_load((paths.project_root() / "CITATION.cff").read_text(encoding="utf-8"))
    return {
        "codecheck.yml": _codecheck(run, cite),
        "ro-crate-metadata.json": _json(_crate(run, cite)),
        "codemeta.json": _json(_codemeta(cite)),
    }


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _outputs(run: str, pattern: str = "*") -> list[str]:
    """Published numbers and figures, relative to the top folder."""
    root = paths.project_root()
    numbers = sorted(paths.run_dir(run).glob(f"{pattern}.json"))
    figures = sorted(paths.figure_dir(run).glob(f"{pattern}.png"))
    return [f.relative_to(root).as_posix() for f in numbers + figures]


def _codecheck(run: str, cite: dict[str, Any]) -> str:
    """What a codechecker is to get again. Who checked, when, and the certificate, are theirs."""
    manifest = []
    for file in _outputs(run):
        notebook, _, figure = Path(file).stem.partition("__")
        what = f"figure {figure} of" if figure else "numbers of"
        comment = f"{what} notebooks/{notebook}.ipynb"
        if notebook == "overview":
            comment = "drawn from the numbers of all notebooks"
        manifest.append({"file": file, "comment": comment})
    paper = cite["preferred-citation"]
    document = {
        "version": "https://codecheck.org.uk/spec/config/2.0/",
        "paper": {
            "title": paper["title"],
            "authors": [{"name": _name(a)} for a in paper["authors"]],
            "reference": f"https://doi.org/{paper['doi']}",
        },
        "manifest": manifest,
    }
    return (
        "---\n# Written by `ubrain publish` and `make report`. The paper is the one that is"
        " reproduced; `make reproduce` makes the files.\n"
        + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    )


def _name(author: dict[str, str]) -> str:
    return author.get("name") or f"{author['given-names']} {author['family-names']}"


def _crate(run: str, cite: dict[str, Any]) -> dict[str, Any]:
    """The published run: which notebook, at which commit, made which files."""
    actions: list[dict[str, Any]] = []
    files: list[str] = []
    dates = []
    for name, document in results.read_results(paths.run_dir(run)).items():
        dates.append(results.git("show", "-s", "--format=%cs", document["commit"] or "HEAD"))
        source = f"notebooks/{name}.py"
        made = [f"papermill_runs/{run}/{name}.ipynb", f"papermill_runs/{run}/{name}.json"]
        made += [f for f in _outputs(run, f"{name}__*") if f.endswith(".png")]
        files += [source, *made]
        settings = f"--profile {document['profile']} --seed {document['seed']}"
        versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
        actions.append(
            {
                "@id": f"#{name}",
                "@type": "CreateAction",
                "name": f"ubrain run {name} {settings}",
                "description": f"commit {document['commit']}, {document['seconds']} s on"
                f" {document['device']}; {versions}",
                "instrument": {"@id": "#ubrain"},
                "object": {"@id": source},
                "result": [{"@id": f} for f in made],
            }
        )
    root = {
        "@id": "./",
        "@type": "Dataset",
        "conformsTo": {"@id": PROCESS_RUN},
        "name": f"{cite['title']}: the run {run}",
        "description": "Executed notebooks, numbers and figures, and the notebooks they come from.",
        "license": {"@id": f"https://spdx.org/licenses/{cite['license']}"},
        "hasPart": [{"@id": f} for f in files],
        "mentions": [{"@id": action["@id"]} for action in actions],
    }
    if known := [d for d in dates if d]:
        root["datePublished"] = max(known)
    software = {
        "@id": "#ubrain",
        "@type": "SoftwareApplication",
        "name": "ubrain",
        "softwareVersion": str(cite["version"]),
    }
    profile = {"@id": PROCESS_RUN, "@type": "CreativeWork", "name": "Process Run Crate"}
    descriptor = {
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    parts = [
        {"@id": f, "@type": "File", "name": Path(f).name, "encodingFormat": TYPES[Path(f).suffix]}
        for f in files
    ]
    return {
        "@context": "https://w3id.org/ro/crate/1.1/context",
        "@graph": [descriptor, root, profile | {"version": "0.5"}, software, *actions, *parts],
    }


def _codemeta(cite: dict[str, Any]) -> dict[str, Any]:
    """The software, its authors and licence, and the paper that it reproduces."""
    toml = (paths.project_root() / "pyproject.toml").read_text(encoding="utf-8")
    project, paper = tomllib.loads(toml)["project"], cite["preferred-citation"]
    return {
        "@context": "https://w3id.org/codemeta/3.0",
        "@type": "SoftwareSourceCode",
        "name": project["name"],
        "description": project["description"],
        "version": project["version"],
        "license": f"https://spdx.org/licenses/{project['license']}",
        "author": [{"@type": "Organization", "name": a["name"]} for a in project["authors"]],
        "keywords": project["keywords"],
        "programmingLanguage": f"Python {project['requires-python']}",
        "softwareRequirements": project["dependencies"],
        "referencePublication": {
            "@type": "ScholarlyArticle",
            "name": paper["title"],
            "@id": f"https://doi.org/{paper['doi']}",
            "author": [
                {
                    "@type": "Person",
                    "givenName": a["given-names"],
                    "familyName": a["family-names"],
                }
                for a in paper["authors"]
            ],
        },
    }
