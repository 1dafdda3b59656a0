"""Progress of long work: a bar where somebody watches, plain log lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
log = logging.getLogger("ubrain")
SECONDS_BETWEEN_LINES = 15


def track(
    items: Iterable[T], total: int, label: str, size: Callable[[T], int] | None = None
) -> Iterator[T]:
    """Pass `items` through and show how far they are: a bar for people, log lines in batch jobs.

    With `size`, the bytes of an item, `total` is in bytes, too, and the rate is shown.
    """
    if os.environ.get("UBRAIN_PROGRESS") != "lines" and (
        sys.stderr.isatty() or "ipykernel" in sys.modules
    ):
        # what a bar leaves of stderr is a red stripe in JupyterLab
        file = sys.stdout if "ipykernel" in sys.modules else None
        unit = "it" if size is None else "B"
        with tqdm(
            total=total, desc=label, file=file, leave=False, unit=unit, unit_scale=size is not None
        ) as bar:
            for item in items:
                yield item
                bar.update(size(item) if size else 1)
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            left = (now - start) / max(done, 1) * (total - done)
            if size:
                log.info(
                    "%s: %.1f of %.1f GB at %.0f MB/s, about %.0f s left",
                    label,
                    done / 1e9,
                    total / 1e9,
                    done / 1e6 / (now - start),
                    left,
                )
            else:
                log.info("%s: %d of %d, about %.0f s left", label, done, total, left)
            last = now
        yield item
        done += size(item) if size else 1
