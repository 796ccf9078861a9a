"""What was planned in a study's folder and when its results were read: a chain of sealed files that only grows.

An entry has the seal of the one before it, so that none can be taken out or changed unnoticed. What was looked at
counts, whoever gives which command again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from ablate.documents import SEAL, read_json, read_sealed_document
from ablate.files import commit_once, sealed
from ablate.spec.decoding import FORBID_UNKNOWN, decode

WHAT, CURE = "the history of the study", "put the folder back from a copy, or choose another with --out"

# Of a number of seeds: asked for by the user; computed from known noise; a pilot's, which tells the noise; computed
# from a pilot's noise; planned beforehand as a look or a stage of a design.
Origin = Literal["given", "known noise", "pilot", "pilot's noise", "look"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A plan that was made, or a reading of the results of one."""

    kind: Literal["plan", "look"]
    n_runs: int  # of the plan
    n_seeds: int  # the plan's seeds, over all variants
    stages: int  # readings that share alpha
    confidence: float  # of each interval
    n_records: int  # runs of this study that had ended: results that could be seen
    origin: Origin = "given"  # of a plan
    reason: str = ""  # in words
    verdicts: Mapping[str, str] = field(default_factory=dict)  # of a look: effect -> verdict
    looks: tuple[int, ...] = ()  # seeds at which readings are planned; runs, of a staged design
    precision: str = ""  # that the seeds were planned for
    time_s: float = 0.0  # since the epoch
    before: str = ""  # seal of the entry before

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN


@dataclass(frozen=True, slots=True)
class History:
    """The entries in a study's folder."""

    folder: Path

    @property
    def place(self) -> Path:
        return self.folder / "history"

    def entries(self) -> tuple[Entry, ...]:
        """All of them in order. ValueError where one is missing, damaged, altered or does not follow the one before."""
        found, before = [], ""
        paths = sorted(self.place.glob("*.json"))
        for i, path in enumerate(paths):
            entry = decode(Entry, read_sealed_document(path, WHAT, CURE), str(path))
            if path.name != _name(i) or entry.before != before:
                raise ValueError(f"cannot use {WHAT} {self.place}: an entry before {path.name} is missing; {CURE}")
            found.append(entry)
            before = _seal(path)
        return tuple(found)

    def append(self, entry: Entry) -> None:
        """Put an entry at the end, durable when it returns; another process's that was faster stays before it."""
        while True:
            n = len(self.entries())
            before = _seal(self.place / _name(n - 1)) if n else ""
            document = asdict(entry) | {"before": before, "time_s": entry.time_s or time.time()}
            if commit_once(self.place / _name(n), sealed(document), WHAT):
                return


def _name(i: int) -> str:
    return f"{i:04d}.json"


def _seal(path: Path) -> str:
    found: str = read_json(path, WHAT, CURE)[SEAL]
    return found


def plans(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if entry.kind == "plan")


def looks(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if entry.kind == "look")


def unplanned(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Plans whose number of seeds was chosen when results could have been seen, and which no plan foresaw."""
    made = plans(entries)
    return tuple(now for before, now in pairwise(made) if now.n_records and not _foresaw(before, now))


def _foresaw(before: Entry, now: Entry) -> bool:
    if now.origin == "pilot's noise":
        return before.origin == "pilot"
    return now.origin == "look" and bool(now.looks) and before.looks == now.looks
