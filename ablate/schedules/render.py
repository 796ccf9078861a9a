"""A schedule for people and for programs: as text, with what it needs, and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ablate.schedules.action import Action, Schedule
from ablate.schedules.check import check, pairs, with_transfers


def render(schedule: Schedule, *, transfers: bool = False) -> str:
    """One line a rank and a few below about the whole; `transfers`: with sends and receives."""
    peak = check(schedule)
    shown = with_transfers(schedule) if transfers else schedule
    where = ["-".join(map(str, schedule.stages_of(rank))) for rank in range(schedule.n_ranks)]
    lines = [
        f"{schedule.name}: {schedule.n_ranks} ranks, {schedule.n_stages} stages, "
        f"{schedule.n_micro_batches} micro-batches a step"
    ]
    width = max(map(len, where))
    lines += [f"rank {r} [{where[r]:{width}}] {_line(row)}" for r, row in enumerate(shown.ranks)]
    n_pairs = [sum(a.paired for a in row) for row in schedule.ranks]
    lines += [
        f"live chunks at most, by rank: {_by_rank(peak)}",
        f"forwards paired with a backward, by rank: {_by_rank(n_pairs)}",
        "stage, kind, micro-batch: F forward, B backward, I and W its input and weight parts"
        + ("; small letters: up the ranks" if schedule.n_directions > 1 else "")
        + ("; S and R: sent and received" if transfers else "")
        + ("; & joins a pair" if any(n_pairs) else ""),
    ]
    return "\n".join(lines)


def _line(actions: Sequence[Action]) -> str:
    return " ".join("".join(map(str, group)) for group in pairs(actions))


def _by_rank(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else ", ".join(map(str, numbers))


def facts(schedule: Schedule) -> dict[str, Any]:
    """The schedule as plain data, actions with their transfers."""
    return {
        "schedule": schedule.name,
        "n_ranks": schedule.n_ranks,
        "n_stages": schedule.n_stages,
        "n_micro_batches": schedule.n_micro_batches,
        "placement": [list(row) for row in schedule.placement],
        "peak_live_chunks": list(check(schedule)),
        "ranks": [[asdict(action) for action in row] for row in with_transfers(schedule).ranks],
    }
