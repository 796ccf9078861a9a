"""What people are told of bad input, and the exception of a run that cannot begin."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RunFailed(Exception):
    """A run that cannot even take its first steps, with the reason in one line."""


def nearest(given: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
