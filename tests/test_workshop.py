"""The workshop: solutions pass, stubs and the likely mistakes get a message of their own, and no
solution is in what learners get.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ubrain import scores
from ubrain.errors import UbrainError
from ubrain.report import workshop
from ubrain.report.workshop import checks, sources

SOURCES = sorted((Path(__file__).parents[1] / "workshop").glob("[0-9][0-9]_*.py"))
STUBS = {
    "E0": "n_voxels is still empty",
    "E1": "voxel_r gives nothing back yet",
    "E2": "ceiling_r gives nothing back yet",
    "E3": "spatial gives nothing back yet",
    "E3b": "functional gives nothing back yet",
    "E3c": "nowhere is still empty",
    "E4": "gain is still empty",
    "E5": "bootstrap gives nothing back yet",
    "E6": "break_link gives nothing back yet",
    "E7": "match gives nothing back yet",
    "E8": "cluster 1 has no name yet",
    "E9": "the field 'claim' is empty",
}


def run(source: Path, solutions: bool) -> None:
    """Run the code cells of a notebook of the workshop here, in the smoke profile."""
    names: dict[str, Any] = {}
    for cell in sources.notebook(source, solutions).cells:
        if cell.cell_type == "code":
            code = cell.source.replace('profile = "fast"', 'profile = "smoke"')
            exec(code.replace("[25, 50, 100]", "[12, 20]"), names)
    plt.close("all")


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_solutions_pass_and_stubs_are_told_what_is_missing(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exercises = [e for e in STUBS if f'"check", "{e}"' in source.read_text(encoding="utf-8")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UBRAIN_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(plt, "show", lambda: None)
    run(source, solutions=True)
    lines = capsys.readouterr().out.splitlines()
    assert [e for e in exercises if any(x.startswith(f"{e} ✓ ") for x in lines)] == exercises
    run(source, solutions=False)
    lines = capsys.readouterr().out.splitlines()
    for exercise in exercises:
        assert any(x.startswith(f"{exercise}, not yet: {STUBS[exercise]}") for x in lines)


def test_every_exercise_is_in_one_notebook_with_hints_and_in_the_tests() -> None:
    for exercise in checks.CHECKS:
        cells = [p for p in SOURCES if f'"exercise", "{exercise}"' in p.read_text("utf-8")]
        assert len(cells) == 1
    assert list(STUBS) == list(checks.CHECKS)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_no_line_of_a_solution_is_in_the_student_version(source: Path) -> None:
    student = [c.source for c in sources.notebook(source, solutions=False).cells]
    left = {line.strip() for text in student for line in text.splitlines()}
    hidden = {
        line.strip()
        for text in source.read_text("utf-8").split("### BEGIN SOLUTION")[1:]
        for line in text.split("### END SOLUTION")[0].splitlines()[1:]
        if "###" not in line
    }
    assert not {line for line in hidden & left if len(line) > 8}
    assert not any("SOLUTION" in text or "Instructor" in text for text in student)


def test_the_command_makes_notebooks_that_can_be_asked_for_help(
    run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    done = run_cli("workshop", "--out", tmp_path / "class")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(SOURCES)
    monkeypatch.chdir(tmp_path / "class")
    monkeypatch.setattr(sources, "_given", type(sources._given)())
    for number in (1, 2, 2):
        workshop.hint("E1")
        assert f"E1, hint {number} of 2: " in capsys.readouterr().out
    workshop.show("E1")
    assert "def voxel_r" in (shown := capsys.readouterr().out)
    assert "SOLUTION" not in shown
    with pytest.raises(UbrainError, match="no exercise 'E99'; there are E0, E1, "):
        workshop.hint("E99")


# --- likely wrong answers, and the mistakes behind them

RNG = np.random.default_rng(0)
P, M = RNG.normal(size=(40, 12)), RNG.normal(size=(40, 12))
REPEATS = RNG.normal(size=(50, 3, 4))
Q, K, X = RNG.normal(size=(6, 4)), RNG.normal(size=(9, 4)), RNG.normal(size=(9, 3))
ATTENTION = checks._softmax(RNG.normal(size=(100, 1)) ** 2 * RNG.normal(size=(100, 64)))
R = {name: RNG.normal(mean, 1, 101) for name, mean in (("short", 0), ("alone", 1), ("crowd", 3))}


def centred(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, m: f(p - p.mean(0), m - m.mean(0))


def overall(p: Any, m: Any) -> Any:
    p, m = p - p.mean(), m - m.mean()
    return (p * m).sum(0) / np.sqrt((p**2).sum(0) * (m**2).sum(0))


def ceiling(noise: Any, k: int, square: bool = False, floor: float = 0) -> Any:
    signal = np.maximum(1 - noise, floor)
    with np.errstate(invalid="ignore"):
        found = signal / (signal + noise / k)
        return found if square else np.sqrt(found)


def noise(x: Any) -> Any:
    return x.var(1, ddof=1).mean(0)


def resampled(draw: Callable[[int, Any], Any], paired: bool = True, axis: int = 0) -> Callable:
    def bootstrap(crowd: Any, alone: Any, measured: Any, n: int, rng: Any) -> Any:
        gains = []
        for _ in range(n):
            i = draw(measured.shape[axis], rng)
            j = i if paired else draw(measured.shape[axis], rng)
            a, b, m, again = (
                np.take(x, which, axis)
                for x, which in ((crowd, i), (alone, j), (measured, i), (measured, j))
            )
            r = scores.correlation(a, m), scores.correlation(b, again)
            gains.append(np.median(r[0]) - np.median(r[1]))
        return np.array(gains)

    return bootstrap


def drawn(n: int, rng: Any) -> Any:
    return rng.integers(n, size=n)


def matched(weigh: Callable[[Any], Any]) -> Callable[..., Any]:
    def match(f: Any, y: Any, crowd: Any) -> Any:
        f, y = f - f.mean(0), y - y.mean(0)
        return weigh((y / np.linalg.norm(y, axis=0)).T @ (f / np.linalg.norm(f, axis=0))) @ crowd

    return match


E7 = (lambda match: 0.4, 0.1)
WRONG: list[tuple[str, tuple, str]] = [
    ("E1", (lambda p, m: p.T @ m, P, M), r"shape \(12, 12\): you correlated every voxel with eve"),
    ("E1", (lambda p, m: np.corrcoef(p.T, m.T), P, M), "np.corrcoef puts both arrays together"),
    ("E1", (lambda p, m: (p * m).sum(1), P, M), "one r per image: you correlated over voxels"),
    ("E1", (lambda p, m: np.corrcoef(p.ravel(), m.ravel())[0, 1], P, M), "all numbers of all"),
    ("E1", (lambda p, m: (p * m).sum(0) / np.sqrt((p**2).sum(0) * (m**2).sum(0)), P, M), "subtrac"),
    ("E1", (centred(lambda p, m: (p * m).mean(0)), P, M), "that is the covariance"),
    ("E1", (lambda p, m: scores.correlation(p, m) ** 2, P, M), "that is r²"),
    (
        "E1",
        (centred(lambda p, m: (p * m).mean(0) / p.std(0, ddof=1) / m.std(0, ddof=1)), P, M),
        "divides by n",
    ),
    ("E1", (lambda p, m: p @ m, P, M), "voxel_r stopped with ValueError"),
    (
        "E1",
        (overall, P, M),
        "one mean of everything",
    ),
    ("E2", (lambda x: ceiling(x.var(1, ddof=1), 3), REPEATS), "a value for each image"),
    ("E2", (lambda x: ceiling(x.var(0), 3), REPEATS), "you took the variance over images"),
    ("E2", (lambda x: ceiling(x.var(1).mean(0), 3), REPEATS), "ddof=1"),
    ("E2", (lambda x: ceiling(noise(x), 1), REPEATS), "the ceiling of a single repeat"),
    ("E2", (lambda x: ceiling(noise(x), 3, square=True), REPEATS), "take the square root"),
    ("E2", (lambda x: ceiling(noise(x), 3, floor=-9), REPEATS), "cannot be negative"),
    ("E3", (lambda q, k, x: (q @ k.T, q @ k.T @ x), Q, K, X, P), "softmax over tokens is missing"),
    ("E3", (lambda q, k, x: (np.exp(q @ k.T), 0), Q, K, X, P), "must sum to 1"),
    ("E3", (lambda q, k, x: (checks._softmax((q @ k.T).T).T, 0), Q, K, X, P), "over voxels"),
    ("E3", (lambda q, k, x: (checks._softmax(q @ k.T / 2), 0), Q, K, X, P), "you divided"),
    ("E3", (lambda q, k, x: (checks._softmax(q @ k.T).T, 0), Q, K, X, P), "turn them"),
    ("E3", (lambda q, k, x: checks._softmax(q @ k.T), Q, K, X, P), "must return two things"),
    (
        "E3",
        (lambda q, k, x: (np.exp(q @ k.T) / np.exp(q @ k.T).sum(1, keepdims=True), x), Q, K, X, P),
        "exp overflows",
    ),
    ("E3b", (lambda e, f, h: (e @ f) @ h.T, Q, [X], [P], P), "you let every voxel read"),
    ("E3b", (lambda e, f, h: (e @ f) * h, Q, [X], [P], P), "a number per channel"),
    ("E3b", (lambda e, f, h: ((e @ f) * h).sum(0), Q, [X], [P], P), "you summed over voxels"),
    ("E3b", (lambda e, f, h: (checks._softmax(e @ f) * h).sum(1), Q, [X], [P], P), "no softmax"),
    ("E3c", (int(ATTENTION.max(1).argmax()), ATTENTION), "the other end"),
    ("E3c", (ATTENTION[0], ATTENTION), r"nowhere has shape \(64,\); expected one number"),
    ("E3c", ("V1", ATTENTION), "nowhere is 'V1'; expected a number"),
    ("E3c", (1000, ATTENTION), "expected the number of a voxel, 0 to 99"),
    ("E4", (np.median(R["crowd"]) - np.median(R["short"]), R), "mixes two causes"),
    ("E4", (np.median(R["alone"]) - np.median(R["short"]), R), "no crowd took part"),
    ("E4", (np.median(R["alone"]) - np.median(R["crowd"]), R), "sign is the wrong way"),
    ("E4", ((R["crowd"] - R["alone"]).mean(), R), "you took means"),
    ("E4", (np.median(R["crowd"] - R["alone"]), R), "the median of the voxels' gains"),
    ("E4", (R["crowd"] - R["alone"], R), r"gain has shape \(101,\)"),
    ("E5", (resampled(drawn, paired=False), P, P, M), "not paired"),
    ("E5", (resampled(lambda n, rng: rng.permutation(n)), P, P, M), "all gains are the same"),
    ("E5", (resampled(drawn, axis=1), P, P, M), "you drew voxels"),
    ("E5", (lambda a, b, m, n, rng: resampled(drawn)(b, a, m, n, rng), P, P, M), "sign is the"),
    (
        "E5",
        (lambda a, b, m, n, rng: resampled(drawn)(a, b, rng.permutation(m), n, rng), P, P, M),
        "did you take the drawn images",
    ),
    ("E5", (lambda *x: np.percentile(resampled(drawn)(*x), [2.5, 97.5]), P, P, M), "not the inter"),
    ("E6", (lambda i, rng: rng.permutation(i),), "repeats of one image now have different"),
    ("E6", (lambda i, rng: i.copy(),), "nothing has changed"),
    (
        "E6",
        (lambda i, rng: rng.choice(np.unique(i), 12)[np.unique(i, return_inverse=True)[1]],),
        "some images were drawn twice",
    ),
    ("E6", (lambda i, rng: i.__setitem__(slice(None), rng.permutation(i)) or i,), "changes the"),
    ("E6", (lambda i, rng: rng.permutation(np.unique(i)),), "expected an image per trial"),
    ("E7", (matched(lambda r: checks._softmax(r)), *E7), "Are the weights too flat"),
    ("E7", (matched(lambda r: np.exp(20 * r)), *E7), "must sum to 1"),
    (
        "E7",
        (
            lambda f, y, crowd: (
                checks._softmax(
                    20 * (y / np.linalg.norm(y, axis=0)).T @ (f / np.linalg.norm(f, axis=0))
                )
                @ crowd
            ),
            *E7,
        ),
        "Are the means over images subtr",
    ),
    ("E7", (matched(lambda r: checks._softmax(20 * r.T).T), *E7), "weights must sum to 1, over"),
    ("E7", (matched(lambda r: checks._softmax(40 * r**2)), *E7), "the opposite way"),
    (
        "E7",
        (lambda f, y, crowd: matched(lambda r: checks._softmax(20 * r))(f, y, np.eye(200)), *E7),
        "those are the weights",
    ),
    ("E7", (lambda f, y, crowd: np.tile(crowd.mean(0), (y.shape[1], 1)), *E7), "the same emb"),
    (
        "E7",
        (
            lambda f, y, crowd: (
                matched(lambda r: checks._softmax(20 * r))(f, y, crowd)
                * (np.nan if f.dtype == np.float32 else 1)  # as exp does where numbers are short
            ),
            lambda match: match(np.float32(P), np.float32(M), np.ones((12, 4))),
            0.1,
        ),
        "own responses there are nan or inf",
    ),
    ("E8", ({1: "face"}, np.array([0, 1]), ["face", "V1"]), "cluster 2 has no name yet"),
    ("E8", ({1: "dog", 2: "early"}, np.array([0, 1]), ["face", "V1"]), "'dog' is none of"),
    ("E8", ({1: "face", 2: "word"}, np.array([0, 1]), ["face", "V1"]), "1 of 2 .* only strong"),
    ("E8", (["face"], np.array([0, 1]), ["face", "V1"]), "expected a dictionary"),
    ("E9", (dict.fromkeys(checks.CARD, "it is so"),), "the number needs its interval"),
    ("E9", (dict.fromkeys(checks.CARD, "+0.03 [0.01, 0.05]"),), "the data are simulated"),
    ("E9", (dict.fromkeys(checks.CARD, ".3, 95 % interval .1 to .5"),), "the data are simulated"),
    ("E9", (dict.fromkeys(checks.CARD, "−.03 (−.05–−.01)"),), "the data are simulated"),
    ("E9", (dict.fromkeys(checks.CARD, "0.5 [0.02, 0.04]"),), "0.5 does not lie in its interval"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), WRONG)
def test_a_likely_mistake_is_named(
    exercise: str, answer: tuple, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.check(exercise, *answer)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"{exercise}, not yet: ")
    assert re.search(message, said), said
    assert not workshop.passed(exercise)


# --- the class


def test_results_of_the_class_are_pooled(tmp_path: Path) -> None:
    lines = [workshop.result_line(pair, "S5", 25, 0.1 * pair, 0.4) for pair in (1, 2, 2, 3)]
    table = workshop.pool("\n".join(lines)).set_index("method")
    assert table.loc["ridge", "value"] == pytest.approx(0.2)
    assert table.loc["ridge", "n"] == 3
    with pytest.raises(UbrainError, match="'7, hello' is no result"):
        workshop.pool("7, hello")


@pytest.mark.parametrize("fault", workshop.FAULTS)
def test_a_spoilt_file_differs_in_its_fault_only(
    fault: str, small_crowd: Path, tmp_path: Path
) -> None:
    workshop.sabotage(small_crowd, tmp_path / "m.h5", fault)
    with h5py.File(small_crowd) as clean, h5py.File(tmp_path / "m.h5") as spoilt:
        pixels = [f["images/pixels/112x112"][:] for f in (clean, spoilt)]
        responses = [f["subjects/S1/responses"][:] for f in (clean, spoilt)]
        if fault == "transpose":
            pixels[1] = pixels[1].transpose(0, 2, 1, 3)
        else:
            session = clean["subjects/S1/trials/session"][:]
            for s in np.unique(session):
                responses[1][session == s] = np.roll(responses[1][session == s], -1, axis=0)
        np.testing.assert_array_equal(*pixels)
        np.testing.assert_array_equal(*responses)
    with pytest.raises(UbrainError, match="unknown fault 'mirror'"):
        workshop.sabotage(small_crowd, tmp_path / "m.h5", "mirror")
