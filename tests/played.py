"""Timelines as ideal ranks would leave them: every action takes its time, every message its way. For tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ablate.schedules.action import Schedule
from ablate.schedules.check import with_transfers
from ablate.schedules.timeline import Span, Step, Timeline

Seconds = Callable[[str, int, int], float]  # kind, stage, micro-batch
ALIKE = {"F": 0.010, "B": 0.020, "I": 0.010, "W": 0.010}


def play(
    schedule: Schedule, seconds: Seconds, way: float = 0.0, waits: Mapping[str, float] | None = None, start: float = 0.0
) -> tuple[tuple[Span, ...], ...]:
    """One step of one pipeline from `start` on. `waits`: inside each forward and backward, by kind (D, C)."""
    table = with_transfers(schedule)
    clock, at = [start] * table.n_ranks, [0] * table.n_ranks
    found: list[list[Span]] = [[] for _ in table.ranks]
    sent: dict[Any, float] = {}
    while any(at[rank] < len(row) for rank, row in enumerate(table.ranks)):
        before = list(at)
        for rank, row in enumerate(table.ranks):
            while at[rank] < len(row):
                a = row[at[rank]]
                end = clock[rank]
                if a.kind in ("SF", "SB"):
                    sent[a.kind[1], a.stage + (1 if a.kind == "SF" else -1), a.micro] = clock[rank]
                elif a.kind in ("RF", "RB"):
                    if (a.kind[1], a.stage, a.micro) not in sent:
                        break
                    end = max(end, sent[a.kind[1], a.stage, a.micro] + way)
                else:
                    end += seconds(a.kind, a.stage, a.micro)
                    if a.kind != "W":
                        for kind, lasting in (waits or {}).items():
                            inside: Any = kind
                            found[rank].append(
                                Span(inside, a.stage, a.micro, a.direction, clock[rank], clock[rank] + lasting)
                            )
                found[rank].append(Span(a.kind, a.stage, a.micro, a.direction, clock[rank], end))
                clock[rank], at[rank] = end, at[rank] + 1
        assert at != before, "the table waits for ever"
    return tuple(map(tuple, found))


def alike(kind: str, stage: int, micro: int) -> float:
    """All stages and micro-batches take as long; F = I = W."""
    return ALIKE[kind]


def timeline(schedule: Schedule, seconds: Seconds = alike, **options: Any) -> Timeline:
    """Two steps of one pipeline, the second 100 s behind the first."""
    steps = tuple(Step(number=n, ranks=play(schedule, seconds, start=100.0 * n, **options)) for n in (0, 1))
    return Timeline(
        run_id="a" * 16, n_data_ranks=1, clock="host", clock_error_s=0.0001, n_cores=8, load=0.5, steps=steps
    )
