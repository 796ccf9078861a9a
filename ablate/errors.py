"""What people are told of bad input, and the exception of a run that cannot begin."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class RunFailed(Exception):
    """A run that cannot even take its first steps, with the reason in one line."""


def nearest(given: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"


def check_at_least(node: Any, path: str, least: int, *names: str) -> None:
    """ValueError, with the path of the field, unless each named field of `node` is a number of at least `least`."""
    for name in names:
        value = getattr(node, name)
        if not value >= least:  # also for what is not a number
            raise ValueError(f"{path}.{name} is {value}; it must be at least {least}")
