"""What ubrain raises for what a user can mend."""

import json
from collections.abc import Iterable
from typing import Any

MOST, LISTED, WORD = 2000, 12, 100  # characters of a message, members of a list, characters of one


class UbrainError(ValueError):
    """Something in the input is wrong; says what, where, what was expected and what to do.

    What a stranger's file says may be part of it, so the middle of a long message is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(cut(message, MOST))


class MissingError(UbrainError):
    """A file that is needed is not there; nothing is said against those that are."""


def cut(text: str, most: int = WORD) -> str:
    """A text without its middle, if it is long."""
    return text if len(text) <= most else f"{text[: most * 3 // 4]} … {text[-most // 4 :]}"


def some(names: Iterable[Any]) -> str:
    """The first of some names, and how many more; they may be long, or hold control characters."""
    every = sorted(map(str, names))
    found = [json.dumps(cut(name), ensure_ascii=False)[1:-1] for name in every[:LISTED]]
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(found) + more
