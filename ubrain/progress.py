"""Progress of long work: a bar where somebody watches, plain log lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
log = logging.getLogger("ubrain")
SECONDS_BETWEEN_LINES = 15


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Pass `items` through and show how far they are: a bar in a terminal or notebook, log lines in batch jobs."""
    if os.environ.get("UBRAIN_PROGRESS") != "lines" and (sys.stderr.isatty() or "ipykernel" in sys.modules):
        yield from tqdm(items, total=total, desc=label, leave=False)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            left = (now - start) / max(done, 1) * (total - done)
            log.info("%s: %d of %d, about %.0f s left", label, done, total, left)
            last = now
        yield item
