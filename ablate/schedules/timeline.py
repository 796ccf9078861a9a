"""What ranks did when: the spans of a few optimizer steps, as one value; and the same for trace viewers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ablate.schedules.action import COMPUTE, Kind

# D, C: what a rank waits for inside an action: rows on their way to experts (dispatch) and back (combine).
# G, O: behind a rank's last action, of the whole rank: gradients, counts and losses summed over ranks; the optimizer.
SpanKind = Kind | Literal["D", "C", "G", "O"]
INSIDE, BEHIND = ("D", "C"), ("G", "O")
NAMES = {
    "F": "forward", "B": "backward", "I": "backward, inputs", "W": "backward, weights", "SF": "send", "SB": "send",
    "RF": "receive", "RB": "receive", "D": "dispatch", "C": "combine", "G": "all-reduce", "O": "optimizer",
}  # fmt: skip
SPAN = re.compile(r"(\d+)(F|B|I|W|SF|RF|SB|RB|D|C|G|O)(\d+) (\d+)\+(\d+)", re.IGNORECASE)
MICROSECONDS, NANOSECOND = 1e6, 1e-9


@dataclass(frozen=True, slots=True)
class Span:
    """A rank was at `kind` of a stage and micro-batch from `start_s` to `end_s`, on the clock of all ranks.

    Of two actions that take turns each has a span for every turn. The kinds are those of actions, of which a receive is
    the waiting for it; D and C, which lie inside one; and G and O, whose stage and micro-batch are 0.
    """

    kind: SpanKind
    stage: int
    micro: int
    direction: int
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    @property
    def is_compute(self) -> bool:
        """Whether it is a forward, a backward or a part of one."""
        return self.kind in COMPUTE

    @property
    def name(self) -> str:
        """As an action's: stage, kind, micro-batch, small letters for the second direction."""
        return f"{self.stage}{self.kind.lower() if self.direction else self.kind}{self.micro}"

    def __str__(self) -> str:
        """As in a file: `2F5 1200+340`, the start and how long, in whole microseconds."""
        start = round(self.start_s * MICROSECONDS)
        return f"{self.name} {start}+{round(self.end_s * MICROSECONDS) - start}"


def durations(spans: Iterable[Span]) -> dict[tuple[SpanKind, int, int], float]:
    """Seconds of each forward, backward or part of one, all its turns together, in the order of their beginning.

    Keys: kind, stage, micro-batch. Two actions that are a pair take turns, and each turn is a span.
    """
    found: dict[tuple[SpanKind, int, int], float] = {}
    for span in spans:
        if span.is_compute:
            key = span.kind, span.stage, span.micro
            found[key] = found.get(key, 0.0) + span.seconds
    return found


def read_span(text: str) -> Span:
    """The span that was written so; ValueError if it is none."""
    found = SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is no span; one is written as 2F5 1200+340")
    stage, kind, micro, start, lasting = found.groups()
    ends = int(start), int(start) + int(lasting)
    upper: Any = kind.upper()
    return Span(upper, int(stage), int(micro), int(kind.islower()), *(end / MICROSECONDS for end in ends))


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimizer step: the spans of every rank of the world, in the order in which they ended."""

    number: int  # from 0
    ranks: tuple[tuple[Span, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """Some steps of a run. Seconds are on the first rank's clock, from right before the first of the steps."""

    run_id: str
    n_data_ranks: int  # rank = pipeline rank x data ranks + data rank
    clock: Literal["host", "device"]
    clock_error_s: float  # at most so far is any rank's clock from the first one's
    n_cores: int  # of the first rank's machine
    load: float  # mean number of its runnable processes over the minute before
    steps: tuple[Step, ...]

    @property
    def n_ranks(self) -> int:
        return len(self.steps[0].ranks)

    def pipelines(self) -> Iterator[tuple[tuple[Span, ...], ...]]:
        """The spans of each step and each pipeline, rank by rank."""
        for step in self.steps:
            for data_rank in range(self.n_data_ranks):
                yield step.ranks[data_rank :: self.n_data_ranks]


@dataclass(frozen=True, slots=True)
class Recording:
    """What one rank has recorded, on its own clock. meetings: when it came to some barriers and when it left them."""

    steps: dict[int, tuple[Span, ...]]
    meetings: tuple[tuple[float, float], ...]


def aligned(ranks: Sequence[Recording]) -> tuple[tuple[Step, ...], float]:
    """The steps that all ranks recorded, on the first one's clock, and how far any other's is from it at most."""
    clocks = [offset(ranks[0].meetings, each.meetings) for each in ranks]
    steps = tuple(
        Step(number=n, ranks=tuple(_later(r.steps[n], -off) for r, (off, _) in zip(ranks, clocks, strict=True)))
        for n in ranks[0].steps
    )
    return steps, max(error for _, error in clocks)


def offset(first: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """How far another clock is ahead of the first one, and the error of that at most.

    Nobody leaves a barrier before all have come: each meeting gives two bounds, and the offset lies between the
    tightest (as with the round trips of NTP, RFC 5905). Of one and the same clock it is 0.
    """
    if first is other:
        return 0.0, 0.0
    low = max(theirs[0] - mine[1] for mine, theirs in zip(first, other, strict=True))
    high = min(theirs[1] - mine[0] for mine, theirs in zip(first, other, strict=True))
    return (low + high) / 2, (high - low) / 2


def _later(spans: Sequence[Span], by_s: float) -> tuple[Span, ...]:
    return tuple(replace(span, start_s=span.start_s + by_s, end_s=span.end_s + by_s) for span in spans)


def middle(n_steps: int, n_recorded: int) -> range:
    """Which steps of a run are recorded: those in its middle. ValueError if there are not so many behind the first."""
    if not 0 < n_recorded < n_steps:
        raise ValueError(
            f"--timeline is {n_recorded}; it takes 1 to {n_steps - 1} steps of a run of {n_steps}, the first of which "
            "is never recorded"
        )
    start = max(1, (n_steps - n_recorded) // 2)
    return range(start, start + n_recorded)


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The trace event format that Perfetto and chrome://tracing read: a process a pipeline, a thread a rank.

    What is waited for inside an action lies inside it; an arrow leads from each send to its receive.
    """
    events: list[dict[str, Any]] = []
    for rank in range(timeline.n_ranks):
        place, pipeline = divmod(rank, timeline.n_data_ranks)
        where = {"ph": "M", "pid": pipeline, "tid": place}
        if place == 0:
            events.append({**where, "name": "process_name", "args": {"name": f"pipeline {pipeline}"}})
        events.append({**where, "name": "thread_name", "args": {"name": f"rank {rank}"}})
    arrows: dict[tuple[Any, ...], int] = {}
    for step in timeline.steps:
        for rank, spans in enumerate(step.ranks):
            place, pipeline = divmod(rank, timeline.n_data_ranks)
            for span in spans:
                where = {"pid": pipeline, "tid": place}
                events.append({**where, **_slice(span), "args": _about(span, step.number)})
                if span.kind in ("SF", "SB", "RF", "RB"):
                    key = pipeline, step.number, link(span)
                    events.append({**where, **_arrow(span), "id": arrows.setdefault(key, len(arrows))})
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"run": timeline.run_id}}


def _slice(span: Span) -> dict[str, Any]:
    category = "compute" if span.is_compute or span.kind == "O" else "transfer"
    name, start, lasting = f"{NAMES[span.kind]} {span.name}", span.start_s * MICROSECONDS, span.seconds * MICROSECONDS
    return {"ph": "X", "name": name, "cat": category, "ts": round(start, 3), "dur": round(lasting, 3)}


def _about(span: Span, step: int) -> dict[str, int]:
    return {"step": step, "stage": span.stage, "micro_batch": span.micro, "direction": span.direction}


def _arrow(span: Span) -> dict[str, Any]:
    """Its tail at the start of a send, its head right before the end of a receive: inside the slices that it joins."""
    sends = span.kind[0] == "S"
    at = span.start_s if sends else span.end_s - NANOSECOND
    end = {"ph": "s"} if sends else {"ph": "f", "bp": "e"}
    return {**end, "name": "transfer", "cat": "transfer", "ts": round(at * MICROSECONDS, 3)}


def link(span: Span) -> tuple[str, int, int]:
    """What a send and its receive have in common: F or B, the stage that reads it, the micro-batch."""
    ahead = {"SF": 1, "SB": -1}.get(span.kind, 0)
    return span.kind[-1], span.stage + ahead, span.micro
