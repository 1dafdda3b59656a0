"""Imports of damaged datasets: `python fuzz.py FOLDER` reads lines "DATASET NUMBER" and answers
each with a line of JSON.

Every case copies a small dataset in its published layout, damages one file (`damage.spoil`, the
number of the case is the seed), imports it, and says what came of it:

refused   an error that names a file, a folder or an image of the dataset; nothing is left behind
same      the crowd file has the same numbers and pictures as without the damage
less      ... or some of them (a subject or some voxels are not there, areas have no names, ...)
other     ... or other ones, where the damage was another number in an array or a table of the same
shape wrong     anything else

With "options" behind the name of the dataset, as in "nsd-hdf5:options", its files are whole, and
one or two options of the command have values that nobody means.
"""

import io
import json
import logging
import os
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import h5py
import nibabel as nib
import numpy as np
import scipy.io

sys.path.insert(0, str(Path(__file__).parent))

from damage import Damage, pick, spoil
from PIL import Image
from published import forms

from ubrain import cli
from ubrain.crowd import Crowd
from ubrain.data.crowdfile import write_crowd
from ubrain.data.importers.arrays import import_arrays
from ubrain.errors import UbrainError

MEMORY = 1500 << 20  # bytes that a case may take: the files have a few MB
SECONDS = 30  # of the processor
# Values of options; the last four stand for what is made
STRANGE = ["", " ", "0", "-1", "1", "1e400", "nan", "-inf", "9" * 30, "1,2,3", "3-1", "1-999999"]
STRANGE += ["none", "ALL", "auto", ",", ",,x", "a**b", "**", "*", "[", "(", "{0}", "{x}", "%s"]
STRANGE += ["é", "\udcff", "x" * 300, "x" * 5000, "x/" * 3000, ".", "..", "../..", "\\", "1:30"]
STRANGE += ["/dev/zero", "PIPE", "DATA", "OUT", "FILE"]
PLACE = ["hemisphere", "vertex", "i", "j", "k", "x", "y", "z"]


# --- datasets


def arrays(root: Path, kind: str) -> None:
    rng, csv = np.random.default_rng(3), kind == "csv"
    root.mkdir()
    pixels, values = (
        rng.integers(0, 256, (12, 8, 8, 3), np.uint8),
        rng.normal(2, 3, (24, 5)).astype(np.float32),
    )
    if csv:
        (root / "images").mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(root / f"images/image{i}.png")
        np.savetxt(root / "responses.csv", values, delimiter=",")
    else:
        np.save(root / "images.npy", pixels)
    if kind == "npy":
        np.save(root / "responses.npy", values)
    elif kind == "mat":
        scipy.io.savemat(root / "responses.mat", {"betas": values})
    elif kind == "h5":
        with h5py.File(root / "responses.h5", "w") as file:
            file["betas"] = values
    elif kind == "nii":
        grid = np.zeros((5, 3, 4, 24), np.float32)
        grid[:, 2, 3] = values.T
        nib.save(nib.Nifti1Image(grid, None), root / "responses.nii")
    names = [f"image{i}" if csv else str(i) for i in range(12)]
    rows = "".join(f"{names[i % 12]},{i // 12},{i // 12}\n" for i in range(24))
    (root / "trials.csv").write_text("image,session,repeat\n" + rows)
    (root / "voxels.csv").write_text(
        "hemisphere,i,j,k,areas,ncsnr\n" + "".join(f"L,{i},2,3,V1,0.5\n" for i in range(5))
    )
    (root / "test.txt").write_text("".join(f"{name}\n" for name in names[:4]))


def run_arrays(root: Path, out: Path, kind: str) -> None:
    import_arrays(
        root / ("images" if kind == "csv" else "images.npy"),
        root / f"responses.{kind}",
        "A",
        out,
        trials=root / "trials.csv",
        voxels=root / "voxels.csv",
        test_images=root / "test.txt",
        bad_voxels="drop",
    )


def crowd_file(root: Path) -> None:
    arrays(root.with_name("source"), "npy")
    root.mkdir()
    run_arrays(root.with_name("source"), root / "crowd.h5", "npy")


def read_crowd(root: Path, out: Path) -> None:
    """Read all that is in a crowd file, and append to it."""
    contents(root / "crowd.h5")
    with write_crowd(root / "crowd.h5", append=True) as writer:
        writer.add_image("new", np.zeros((4, 4, 3), np.uint8), "train")
    shutil.copy(root / "crowd.h5", out)


Dataset = tuple[
    Callable[[Path], object], Callable[[Path, Path], object]
]  # how it is made, how it is imported
DATASETS: dict[str, Dataset] = {
    **{name: (form.make, form.act) for name, form in forms().items()},
    **{
        f"arrays-{kind}": (partial(arrays, kind=kind), partial(run_arrays, kind=kind))
        for kind in ("npy", "csv", "h5", "mat", "nii")
    },
    "crowd-file": (crowd_file, read_crowd),
}


OPTIONS = [f"{name}:options" for name, form in forms().items() if form.command]
OPTIONS += ["arrays-csv:options"]


def usual_options(name: str, root: Path) -> tuple[str, dict[str, str]]:
    """The command that imports a dataset, and its options."""
    if name == "arrays-csv":
        files = {"images": "images", "responses": "responses.csv", "trials": "trials.csv"}
        files |= {"voxels": "voxels.csv", "test-images": "test.txt"}
        paths = {f"--{option}": str(root / file) for option, file in files.items()}
        return "arrays", {"--subject": "A", **paths}
    form = forms()[name]
    more = {f"--{k.replace('_', '-')}": str(v) for k, v in form.more(root).items()}
    return form.command, {"--root": str(root), **more}


def run_options(name: str, number: int, folder: Path) -> dict[str, Any]:
    """One import of a whole dataset with strange options."""
    of = name.removesuffix(":options")
    root, work = folder / of / "whole" / "data", folder / "strange"
    if not root.exists():
        root.parent.mkdir(parents=True)
        DATASETS[of][0](root)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    os.mkfifo(work / "pipe")
    rng, out = np.random.default_rng([number, len(name), *name.encode()]), work / "crowd.h5"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    made = {"PIPE": work / "pipe", "DATA": root, "OUT": out, "FILE": pick(files, rng)}
    word, given = usual_options(of, root)
    given["--out"] = str(out)
    command = cli.app.commands["import"].commands[word]
    params = [p.opts[0] for p in command.get_params(click.Context(command)) if not p.is_flag]
    for option in [pick(params, rng) for _ in range(int(rng.integers(1, 3)))]:
        value = pick(STRANGE, rng)
        given[option] = str(made.get(value, value))
    words = ["import", word, *(f"{option}={value}" for option, value in given.items())]
    with chdir(work):
        outcome, detail = judge_options(words, Path(given["--out"]))
    left = [p.name for p in work.rglob("*.partial") if ".import" not in str(p)]
    strange = {k: v[:60] for k, v in given.items() if not v.startswith(str(root))}
    return {
        "dataset": name,
        "case": number,
        "options": strange,
        "outcome": "wrong" if left else outcome,
        "detail": f"left behind: {left}" if left else detail[:400],
    }


def judge_options(words: list[str], out: Path) -> tuple[str, str]:
    """What came of a command, in a word and in detail."""
    said, sys.argv = io.StringIO(), ["ubrain", *words]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            cli.main()
    except SystemExit as error:
        lines = said.getvalue().splitlines()
        if error.code:
            sentence = len(lines) == 1 and lines[0].startswith("ubrain: ") and len(lines[0]) < 10000
            return ("refused" if sentence else "wrong"), said.getvalue()
    except Exception as error:
        place = [f for f in traceback.extract_tb(error.__traceback__) if "ubrain" in f.filename]
        return "wrong", f"{type(error).__name__}: {error} ({place[-1].filename}:{place[-1].lineno})"
    if out.is_file():
        contents(out)
    return "accepted", ""


# --- judgement


def contents(path: Path) -> dict[str, Any]:
    """All that is in a crowd file, read as its users read it."""
    with Crowd(path) as crowd:
        images = {
            str(i): (crowd.content[row], int(crowd._split[row]), crowd.image(i).tobytes())
            for row, i in enumerate(crowd.image_ids)
        }
        assert crowd.fingerprint
        subjects = {}
        for name in crowd.subjects:
            subject = crowd[name]
            for split in ("train", "val", "test"):
                if len(subject.image_rows(split)):
                    assert np.isfinite(subject.responses(split)).all(), (
                        f"{name}: responses that are not finite"
                    )
                    assert len(subject.noise_ceiling(split)) == subject.n_voxels
            rows = np.asarray(subject.group["responses"][:], np.float32)
            shown = crowd.image_ids[subject.trials.image]
            subjects[name] = (subject.voxels, [str(i) for i in shown], subject.trials.session, rows)
    return {"images": images, "subjects": subjects}


undamaged = cache(contents)


def differences(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """What differs: other numbers or pictures (`values`, `images`), or only less of them."""
    found = set()
    if before["images"].keys() != after["images"].keys():
        found.add("fewer images")
    for name, image in after["images"].items():
        known = before["images"].get(name)
        if known is None or (image[0], image[2]) != (known[0], known[2]):
            found.add("images")
        elif image[1] != known[1]:
            found.add("splits")
    if before["subjects"].keys() != after["subjects"].keys():
        found.add(
            "fewer subjects" if after["subjects"].keys() < before["subjects"].keys() else "subjects"
        )
    for name, subject in after["subjects"].items():
        if name in before["subjects"]:
            found |= subject_differences(before["subjects"][name], subject)
    return found


def subject_differences(before: tuple, after: tuple) -> set[str]:
    (voxels, shown, sessions, rows), (new_voxels, new_shown, new_sessions, new_rows) = before, after
    found = set()
    both = voxels, new_voxels
    shared = [
        column
        for column in PLACE
        if all(
            column in table and (table[column] != "").any() and table[column].notna().all()
            for table in both
        )
    ]
    where, new_where = places(voxels, shared), places(new_voxels, shared)
    if where is not None and new_where is not None:
        at = {place: column for column, place in enumerate(where)}
        common = [column for column, place in enumerate(new_where) if place in at]
        found |= (
            {"voxels"}
            if len(common) < len(new_where)
            else {"fewer voxels"}
            if len(common) < len(where)
            else set()
        )
        columns = [at[new_where[column]] for column in common]
    elif len(voxels) == len(new_voxels):
        found |= {"no places"} if {*voxels} != {*new_voxels} else set()
        common = columns = list(range(len(voxels)))
    else:
        at = {rows[:, c].tobytes(): c for c in range(rows.shape[1])}
        columns = [at.get(new_rows[:, c].tobytes(), -1) for c in range(new_rows.shape[1])]
        return {"fewer voxels"} if len(new_rows) == len(rows) and min(columns) >= 0 else {"values"}
    known = {(image, rows[t, columns].tobytes()) for t, image in enumerate(shown)}
    new = {
        (image, np.ascontiguousarray(new_rows[t, common]).tobytes())
        for t, image in enumerate(new_shown)
    }
    found |= {"values"} if not new <= known else {"fewer trials"} if new != known else set()
    found |= (
        {"sessions"} if len(new_shown) == len(shown) and (sessions != new_sessions).any() else set()
    )
    for column in ("areas", "ncsnr", "hemisphere"):
        mine, theirs = voxels[column].to_numpy()[columns], new_voxels[column].to_numpy()[common]
        equal = (
            np.array_equal(mine, theirs)
            if column != "ncsnr"
            else np.allclose(mine, theirs, equal_nan=True)
        )
        found |= set() if equal else {column}
    return found


def places(voxels: Any, columns: list[str]) -> list[tuple] | None:
    """Where each voxel is; None if that does not tell voxels apart."""
    found = list(voxels[columns].fillna(-1).itertuples(index=False, name=None))
    return found if len(set(found)) == len(found) else None


def judge(
    damage: Damage, before: dict[str, Any], work: Path, act: Callable[[Path, Path], object]
) -> tuple[str, str]:
    """What came of an import, in a word and in detail."""
    root, out = work / "data", work / "out/crowd.h5"
    try:
        act(root, out)
    except UbrainError as error:
        names = {
            str(work),
            *(p.stem.split(".")[0] for p in [damage.file, *root.rglob("*")]),
            *before["images"],
        }
        if not any(name in str(error) for name in names):
            return "wrong", f"the error names no file: {error}"
        left = [p.name for p in out.parent.iterdir() if p.name != f".{out.name}.import"]
        left += [
            p.name
            for p in out.parent.rglob("*.partial")
            if not p.parent.parent.name.endswith(".import")
        ]
        return ("wrong", f"left behind: {left}") if left else ("refused", str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)
        mine = [f"{Path(f.filename).name}:{f.lineno}" for f in place if "ubrain" in f.filename][-3:]
        return "wrong", f"{type(error).__name__}: {error} ({' < '.join(reversed(mine))})"
    try:
        found = differences(before, contents(out))
    except Exception as error:
        return "wrong", f"the crowd file is not valid: {type(error).__name__}: {error}"
    more = {"voxels"} if "fewer trials" in found else set()  # those that some trial had no value of
    if not (found - more) & {"values", "images", "subjects", "voxels"}:
        return ("less" if found else "same"), ", ".join(sorted(found))
    return ("other" if damage.plausible else "wrong"), f"differ: {', '.join(sorted(found))}"


# --- cases


def run_case(name: str, number: int, folder: Path) -> dict[str, Any]:
    """One import of a dataset that is damaged in the way of this number."""
    if name in OPTIONS:
        return run_options(name, number, folder)
    make, act = DATASETS[name]
    original = folder / name / "data"
    if not original.exists():
        original.parent.mkdir(parents=True)
        make(original)
        act(original, original.parent / "crowd.h5")
    work = folder / name / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "out").mkdir(parents=True)
    shutil.copytree(original, work / "data", copy_function=os.link)
    damage = spoil(work / "data", np.random.default_rng([number, len(name), *name.encode()]))
    memory = peak(reset=True)
    outcome, detail = judge(damage, undamaged(original.parent / "crowd.h5"), work, act)
    if outcome != "wrong" and peak() - memory > MEMORY:
        outcome, detail = "wrong", f"took {(peak() - memory) >> 20} MB: {outcome}: {detail}"
    file = str(damage.file.relative_to(work / "data"))
    return {
        "dataset": name,
        "case": number,
        "file": file,
        "damage": damage.what,
        "plausible": damage.plausible,
        "outcome": outcome,
        "detail": detail.replace(str(work), "")[:400],
    }


def peak(reset: bool = False) -> int:
    """Most memory that this process has had, in bytes; on Linux since it was reset."""
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def main(folder: str) -> None:
    """Answer line by line, in a process that cannot have more than 8 GB, nor a minute of the
    processor for a case.
    """
    warnings.simplefilter("ignore")
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    for line in sys.stdin:
        name, number = line.split()
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, resource.RLIM_INFINITY)
        )
        print(json.dumps(run_case(name, int(number), Path(folder))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
