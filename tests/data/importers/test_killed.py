"""Imports that are killed at any moment: the same command ends in the same file, and leaves
nothing else. `UBRAIN_KILLS=50 pytest tests/data/importers/test_killed.py` tries 50 moments of each.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fuzz import DATASETS, contents, differences, usual_options

from ubrain import cli

KILLS = int(os.environ.get("UBRAIN_KILLS", 2))


def run(words: list[str], end: signal.Signals | None = None, after: float = 0.0) -> int:
    """Exit status of the command in a process of its own, which may be ended after a while."""
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        sys.argv = ["ubrain", *words]
        try:
            cli.main()
        except SystemExit as error:
            os._exit(int(error.code or 0))
        os._exit(99)
    time.sleep(after)
    if end is not None:
        os.kill(pid, end)
    return os.waitpid(pid, 0)[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("name", ["nsd-nifti", "arrays-csv"])
def test_killed_at_any_moment(tmp_path: Path, name: str, end: signal.Signals) -> None:
    DATASETS[name][0](tmp_path / "data")
    command, given = usual_options(name, tmp_path / "data")
    words = ["import", command or "nsd", *(f"{k}={v}" for k, v in given.items())]
    start = time.monotonic()
    assert run([*words, f"--out={tmp_path / 'whole.h5'}"]) == 0
    seconds, whole = time.monotonic() - start, contents(tmp_path / "whole.h5")
    killed = 0
    for number, moment in enumerate(np.random.default_rng(0).random(KILLS)):
        out = tmp_path / str(number) / "crowd.h5"
        out.parent.mkdir()
        again = [*words, f"--out={out}"]
        killed += run(again, end, moment * seconds) != 0
        was_there = out.exists()
        assert (run(again) == 0) != was_there
        assert not differences(whole, contents(out))
        assert list(out.parent.iterdir()) == [out]
    assert killed or KILLS < 10
