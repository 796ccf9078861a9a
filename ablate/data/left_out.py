"""What of a source is not in the corpus: counted by reason, and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablate.quantities import listed

NAMES_KEPT = 20  # of each reason
NAMES_SAID = 3


class Unusable(ValueError):
    """A file or a row that cannot be text: the reason it is counted under, and the sentence that says it all."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(slots=True)
class LeftOut:
    """Files and rows of a source that the corpus does not hold."""

    counts: dict[str, int] = field(default_factory=dict)  # by reason, such as "not UTF-8"
    names: dict[str, list[str]] = field(default_factory=dict)  # the first of each
    first: str = ""  # what was wrong with the first file or row that could not be text

    def add(self, reason: str, name: str) -> None:
        name = printable(name)
        self.counts[reason] = self.counts.get(reason, 0) + 1
        kept = self.names.setdefault(reason, [])
        if len(kept) < NAMES_KEPT:
            kept.append(name)

    def add_unusable(self, error: Unusable, name: str) -> None:
        self.add(error.reason, name)
        self.first = self.first or str(error)

    def __str__(self) -> str:
        """One line: every reason with its count and the first names; empty if nothing was left out."""
        return "; ".join(f"{self.counts[reason]:,} {reason} ({self._some(reason)})" for reason in sorted(self.counts))

    def _some(self, reason: str) -> str:
        said = self.names[reason][:NAMES_SAID]
        more = self.counts[reason] - len(said)
        return listed([*said, f"{more:,} more"] if more else said)

    def facts(self) -> dict[str, dict[str, Any]]:
        """As JSON: reason -> count and names."""
        return {reason: {"count": count, "names": self.names[reason]} for reason, count in self.counts.items()}


def printable(name: str) -> str:
    """A file's name as text, also where the file system has bytes that are none."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def left_out_from(facts: Mapping[str, Mapping[str, Any]]) -> LeftOut:
    """What `facts` was made of."""
    return LeftOut(
        counts={reason: each["count"] for reason, each in facts.items()},
        names={reason: list(each["names"]) for reason, each in facts.items()},
    )
