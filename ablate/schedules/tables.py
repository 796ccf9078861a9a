"""The schedules by name, with what they need of ranks and micro-batches and what they keep alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ablate.errors import nearest
from ablate.schedules.action import Action, Schedule
from ablate.schedules.folded import dualpipe, dualpipev, zero_bubble_v
from ablate.schedules.one_way import gpipe, interleaved, one_forward_one_backward, zero_bubble

TABLES: Mapping[str, Callable[..., Schedule]] = MappingProxyType(
    {
        "dualpipe": dualpipe,
        "1f1b": one_forward_one_backward,
        "gpipe": gpipe,
        "interleaved": interleaved,
        "zb1p": zero_bubble,
        "zbv": zero_bubble_v,
        "dualpipev": dualpipev,
    }
)
NAMES = tuple(TABLES)


def table(name: str, n_ranks: int, n_micro_batches: int, *, n_chunks: int = 2) -> Schedule:
    """The schedule of that name; `n_chunks`: stages a rank of `interleaved`, which alone reads it.

    ValueError for an unknown name and for numbers that the schedule cannot do.
    """
    if name not in TABLES:
        raise ValueError(f"unknown schedule {name!r}; {nearest(name, NAMES)}")
    for what, n in (("pipeline ranks", n_ranks), ("micro-batches", n_micro_batches), ("chunks a rank", n_chunks)):
        if n < 1:
            raise ValueError(f"{n} {what}; give at least 1")
    if name == "interleaved":
        return interleaved(n_ranks, n_micro_batches, n_chunks)
    return TABLES[name](n_ranks, n_micro_batches)


def peak_live_chunks(name: str, n_ranks: int, n_micro_batches: int, *, n_chunks: int = 2) -> int:
    """The most chunks alive at once on the rank that keeps most, in closed form.

    A chunk is a stage's share of the layers: in zbv and dualpipev half of a rank's, in interleaved 1 / n_chunks of it.
    """
    m, p = n_micro_batches, n_ranks
    return {
        "gpipe": m,
        "1f1b": min(m, p),
        "zb1p": min(m, p),
        "interleaved": min(m * n_chunks, 2 * (p - 1) + (n_chunks - 1) * p + 1),
        "zbv": min(2 * m, 2 * p),
        "dualpipev": 2 * p + 1,
        "dualpipe": p + 1,
    }[name]


def forwards(schedule: Schedule, n_micro_batches: int) -> Schedule:
    """Forward passes alone over the stages as the schedule's first direction places them: evaluation.

    Stage s does micro-batch i at time s + i, so no rank waits for what comes later on any other.
    """
    ranks: list[list[Action]] = [[] for _ in schedule.ranks]
    for time in range(n_micro_batches + schedule.last_stage):
        for stage in range(schedule.n_stages):
            if 0 <= time - stage < n_micro_batches:
                ranks[schedule.rank_of(stage, 0)].append(Action("F", stage, time - stage))
    return Schedule(
        name="forwards",
        n_micro_batches=n_micro_batches,
        placement=schedule.placement[:1],
        ranks=tuple(map(tuple, ranks)),
    )
