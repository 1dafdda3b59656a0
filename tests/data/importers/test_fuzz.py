"""Damaged files of every dataset: a clear error, or a crowd file that is right. Never a crash, and
never much memory.

What is damaged and how an import is judged is in `damage.py` and `fuzz.py`. The suite takes a few
cases of each dataset; `UBRAIN_FUZZ=300 pytest -s tests/data/importers/test_fuzz.py` takes 300, and
prints what came of them, one by one and in numbers.
"""

import json
import os
import selectors
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz import DATASETS, OPTIONS

CASES = int(os.environ.get("UBRAIN_FUZZ", 3))
FIRST = int(os.environ.get("UBRAIN_FUZZ_FROM", 0))
# that a case may take if it waits for something; it has half a minute of the processor
SECONDS = 120


class Importer:
    """Imports in a process of its own, which is started again when it dies."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None

    def case(self, name: str, number: int) -> dict[str, Any]:
        """What came of a case."""
        if self.process is None:
            command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), str(self.folder)]
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.process.stdin.write(f"{name} {number}\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as answer:
            answer.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if answer.select(SECONDS) else "hangs"
        if line.startswith("{"):
            return json.loads(line)
        self.stop()
        return {
            "dataset": name,
            "case": number,
            "outcome": "wrong",
            "detail": line or "the process died",
        }

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


@pytest.fixture(scope="module")
def importer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Importer]:
    importer = Importer(tmp_path_factory.mktemp("fuzz"))
    yield importer
    importer.stop()


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", [*DATASETS, *OPTIONS])
def test_damaged_files_end_in_a_clear_error_or_do_no_harm(importer: Importer, name: str) -> None:
    found = [importer.case(name, number) for number in range(FIRST, FIRST + CASES)]
    for case in found:
        print(json.dumps(case))
    print(name, dict(Counter(case["outcome"] for case in found)))
    wrong = [case for case in found if case["outcome"] == "wrong"]
    assert not wrong, "\n".join(map(json.dumps, wrong))
