"""A class at once: so many kernels execute the workshop's solution notebooks, each all of them.

    python -m benchmarks.workshop_load --kernels 8 --out load/

Prints seconds and peak memory of each notebook over the kernels, the slowest cells, and failures: a
cell that raises, or a check that does not pass. Exit code 1 if there is one. Give it the cache that
the class will have (`UBRAIN_CACHE`), and threads as the class will have them (OMP_NUM_THREADS=1).
"""

import argparse
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from ubrain.report import workshop

PEAK = "import resource\nprint('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def execute(kernel: int, path: Path, profile: str, limit: int) -> dict[str, Any]:
    """Execute one notebook in a kernel of its own: seconds, peak memory, slow cells, failures."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace('profile = "fast"', f"profile = {profile!r}")
            cell.source = cell.source.replace("pair = 1 ", f"pair = {kernel + 1} ")
    notebook.cells.append(nbformat.v4.new_code_cell(PEAK))
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=limit, resources=where, kernel_name="python3")
    start, error = time.monotonic(), ""
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as raised:
        error = str(raised).strip().splitlines()[-1]
    cells = [(c, seconds_of(c)) for c in notebook.cells if c.cell_type == "code"]
    printed = "".join(o.get("text", "") for c, _ in cells for o in c.get("outputs", []))
    error = error or "; ".join(x for x in printed.splitlines() if ", not yet: " in x)
    peak = re.search(r"peak (\d+)", printed)
    slow = {c.source.splitlines()[0][:50]: round(s, 1) for c, s in cells if s > 1}
    return {
        "notebook": path.stem.removesuffix("_solution"),
        "kernel": kernel,
        "seconds": time.monotonic() - start,
        "slowest cell": max(s for _, s in cells),
        "peak GB": int(peak[1]) / (1e9 if sys.platform == "darwin" else 1e6) if peak else None,
        "slow cells": slow,
        "failure": error,
    }


def seconds_of(cell: Any) -> float:
    """How long a cell ran."""
    times = cell.metadata.get("execution", {})
    ends = [times.get(k) for k in ("iopub.execute_input", "shell.execute_reply")]
    if None in ends:
        return 0.0
    start, end = (datetime.fromisoformat(t.replace("Z", "+00:00")) for t in ends)
    return (end - start).total_seconds()


def learner(kernel: int, out: Path, profile: str, limit: int) -> list[dict[str, Any]]:
    """All notebooks, one after the other, as one learner would run them."""
    folder = out / f"learner-{kernel}"
    paths = workshop.build(str(folder), solutions=True)
    return [execute(kernel, path.resolve(), profile, limit) for path in paths]


def main() -> None:
    """Run the class and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kernels", type=int, default=2, help="learners at once")
    parser.add_argument("--out", type=Path, required=True, help="folder for their notebooks")
    parser.add_argument("--profile", default="fast", help="smoke or fast")
    parser.add_argument("--limit", type=int, default=600, help="seconds a cell may take")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.monotonic()
    with ThreadPoolExecutor(given.kernels) as pool:
        classes = pool.map(
            lambda k: learner(k, given.out, given.profile, given.limit), range(given.kernels)
        )
        rows = [row for done in classes for row in done]
    (given.out / "load.json").write_text(json.dumps(rows, indent=1))
    table = pd.DataFrame(rows)
    by = table.groupby("notebook")[["seconds", "slowest cell", "peak GB"]]
    print(by.agg(["median", "max"]).round(2).to_string())
    slow: dict[str, list[float]] = {}
    for row in rows:
        for cell, seconds in row["slow cells"].items():
            slow.setdefault(f"{row['notebook']}: {cell}", []).append(seconds)
    print("\ncells above one second, the longest over kernels:")
    for cell, seconds in slow.items():
        print(f"{max(seconds):6.1f} s  {cell}")
    failed = table[table["failure"] != ""]
    print(f"\n{given.kernels} kernels, {time.monotonic() - start:.0f} s, {len(failed)} failures")
    for row in failed.itertuples():
        print(f"learner {row.kernel}, {row.notebook}: {row.failure}")
    sys.exit(len(failed) > 0)


if __name__ == "__main__":
    main()
