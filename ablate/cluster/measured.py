"""What the recorded spans of a pipeline say: where its seconds went, beside the closed form and the simulator.

The simulator runs the schedule's table twice: with the seconds that each single action took, which leaves out what a
send costs and waiting that is not of the schedule; and with the mean seconds of each kind of action at each stage,
which leaves out too that equal actions do not last equally long. Each step of each pipeline is run with its own
seconds, and with the way of an input that a rank was waiting for.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ablate.cluster.events import Group, execute
from ablate.cluster.inputs import Floats
from ablate.schedules.action import COMPUTE, ENDS_A_CHUNK, Action, Schedule
from ablate.schedules.bubble import closed_form
from ablate.schedules.check import pairs
from ablate.schedules.timeline import BEHIND, INSIDE, Span, SpanKind, Timeline, durations, link

Ranks = tuple[tuple[Span, ...], ...]  # of one pipeline in one step
Part = tuple[str, int]  # kind, stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """Seconds of a rank in a step, on average: those without a forward or backward, and what it waited for in one.

    bubble_s: neither forward nor backward, as in `cluster.events.Execution`. Of it transfer_s are for messages that
    had been made already: sends, and receives from the moment that both ends were there. dispatch_s, combine_s:
    inside forwards and backwards, for rows that others send.
    """

    bubble_s: float
    transfer_s: float
    dispatch_s: float
    combine_s: float

    @property
    def exposed_s(self) -> float:
        """Communication that nothing hides."""
        return self.transfer_s + self.dispatch_s + self.combine_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """What the simulator makes of the measured seconds of each action; seconds as in `Measured`.

    even_step_s: the step if all actions of a kind and stage took their mean.
    """

    step_s: float
    even_step_s: float
    bubble_s: float

    @property
    def bubble_share(self) -> float:
        return self.bubble_s / self.step_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Means over the recorded steps and the pipelines. A step is from its first action on any rank to its last.

    What a rank does behind them is in `behind` alone, its seconds by kind: nothing in a timeline without such spans.

    parts: seconds of one action by kind and stage, waiting for rows included. by_kind: seconds of a rank in a step by
    kind of action, without such waiting. peak_live_chunks: of each rank of the pipeline, the most of all steps.
    closed_form_s: the published bubble from the mean seconds of a forward, a backward and its weight part.
    """

    schedule: Schedule
    n_steps: int
    step_s: float
    parts: Mapping[Part, float]
    by_kind: Mapping[str, float]
    lost: Lost
    peak_live_chunks: tuple[int, ...]
    closed_form_s: float | None
    simulated: Simulated
    behind: Mapping[str, float]

    @property
    def bubble_share(self) -> float:
        """Of a rank's time in a step."""
        return self.lost.bubble_s / self.step_s

    @property
    def closed_form_share(self) -> float | None:
        """The bubble of the closed form in a step that takes as long as it and the work of a rank."""
        if self.closed_form_s is None:
            return None
        return self.closed_form_s / (self.step_s - self.lost.bubble_s + self.closed_form_s)

    @property
    def simulated_difference(self) -> float:
        """The simulated step minus the measured one, as a share of this."""
        return self.simulated.step_s / self.step_s - 1

    @property
    def unevenness(self) -> float:
        """What it costs that equal actions do not last equally long: share of the step, simulated."""
        return self.simulated.step_s / self.simulated.even_step_s - 1

    @property
    def imbalance(self) -> float:
        """The stage that takes longest, over the mean of all: the closed forms hold where it is 1."""
        parts, stages = self.parts, range(self.schedule.n_stages)
        backward = [parts.get(("B", s)) or parts["I", s] + parts["W", s] for s in stages]
        both = [parts["F", s] + backward[s] for s in stages]
        return max(both) / statistics.fmean(both)


def measure(timeline: Timeline, schedule: Schedule) -> Measured:
    """What a run's timeline says of the schedule that it followed; ValueError if that is not the order of its spans."""
    whole = list(timeline.pipelines())
    recorded = [_checked(_of_the_schedule(ranks), schedule, timeline.run_id) for ranks in whole]
    lengths = [_length(ranks) for ranks in recorded]
    parts = [_parts(ranks) for ranks in recorded]
    lost = [_lost(ranks, length) for ranks, length in zip(recorded, lengths, strict=True)]
    ways = np.array([_way(ranks) for ranks in recorded])
    run = execute(schedule, _each(recorded), ways, alike=_identity)
    even = execute(schedule, _lasting(parts), ways)
    mean = {part: statistics.fmean(each[part] for each in parts) for part in parts[0]}
    peaks = [[_peak(spans) for spans in ranks] for ranks in recorded]
    return Measured(
        schedule=schedule,
        n_steps=len(timeline.steps),
        step_s=statistics.fmean(lengths),
        parts=mean,
        by_kind=_by_kind([spans for ranks in recorded for spans in ranks]),
        lost=Lost(**{name: statistics.fmean(getattr(each, name) for each in lost) for name in Lost.__slots__}),
        peak_live_chunks=tuple(max(of_rank) for of_rank in zip(*peaks, strict=True)),
        closed_form_s=closed_form(schedule, *_means(mean)),
        simulated=Simulated(
            step_s=float(run.makespan.mean()),
            even_step_s=float(even.makespan.mean()),
            bubble_s=float(run.bubble.mean()),
        ),
        behind=_behind([spans for ranks in whole for spans in ranks]),
    )


def _of_the_schedule(ranks: Ranks) -> Ranks:
    return tuple(tuple(span for span in spans if span.kind not in BEHIND) for spans in ranks)


def _behind(ranks: Sequence[Sequence[Span]]) -> dict[str, float]:
    """Seconds of a rank in a step by kind of what lies behind its actions."""
    found = {kind: sum(s.seconds for spans in ranks for s in spans if s.kind == kind) for kind in BEHIND}
    return {kind: seconds / len(ranks) for kind, seconds in found.items() if seconds}


def _checked(ranks: Ranks, schedule: Schedule, run_id: str) -> Ranks:
    for rank, (spans, actions) in enumerate(zip(ranks, schedule.ranks, strict=False)):
        done = iter(durations(spans))
        as_planned = all(sorted(islice(done, len(group))) == sorted(_identity(group)) for group in pairs(actions))
        if len(ranks) != schedule.n_ranks or not as_planned or next(done, None) is not None:
            raise ValueError(
                f"the timeline of run {run_id} is not of its schedule {schedule.name} (rank {rank} did other work); "
                "move it away: the report does without"
            )
    return ranks


def _length(ranks: Ranks) -> float:
    every = [span for spans in ranks for span in spans]
    return max(s.end_s for s in every) - min(s.start_s for s in every)


def _parts(ranks: Ranks) -> dict[Part, float]:
    """Mean seconds of an action by kind and stage."""
    found: dict[Part, list[float]] = defaultdict(list)
    for spans in ranks:
        for (kind, stage, _), seconds in durations(spans).items():
            found[kind, stage].append(seconds)
    return {part: statistics.fmean(seconds) for part, seconds in found.items()}


def _identity(group: Iterable[Action]) -> tuple[tuple[SpanKind, int, int], ...]:
    """An action's own name: no two of a step last alike."""
    return tuple((action.kind, action.stage, action.micro) for action in group)


def _each(recorded: Sequence[Ranks]) -> Callable[[Group], Floats]:
    """Seconds of a group as it was, (S,) for S steps of pipelines: a pair is done in turn."""
    found = [durations(span for spans in ranks for span in spans) for ranks in recorded]
    return lambda group: np.array([sum(seconds[key] for key in _identity(group)) for seconds in found])


def _lasting(parts: Sequence[Mapping[Part, float]]) -> Callable[[Group], Floats]:
    """Seconds of a group, (S,) for S steps of pipelines: a pair is done in turn."""
    found = {part: np.array([each[part] for each in parts]) for part in parts[0]}
    return lambda group: np.asarray(sum(found[action.kind, action.stage] for action in group))


def _way(ranks: Ranks) -> float:
    """Seconds from a send to the end of a receive that waited for it, median; 0 where none did."""
    ways = [came.end_s - sent.start_s for sent, came in _messages(ranks) if came.start_s <= sent.start_s]
    return max(0.0, statistics.median(ways)) if ways else 0.0


def _messages(ranks: Ranks) -> Iterable[tuple[Span, Span]]:
    """Each send with its receive."""
    every = [span for spans in ranks for span in spans]
    sent = {link(span): span for span in every if span.kind in ("SF", "SB")}
    return [(sent[link(span)], span) for span in every if span.kind in ("RF", "RB")]


def _lost(ranks: Ranks, length: float) -> Lost:
    n, every = len(ranks), [span for spans in ranks for span in spans]
    under_way = [max(0.0, came.end_s - max(came.start_s, sent.start_s)) for sent, came in _messages(ranks)]
    sends = sum(span.seconds for span in every if span.kind in ("SF", "SB"))
    return Lost(
        bubble_s=length - sum(span.seconds for span in every if span.is_compute) / n,
        transfer_s=(sends + sum(under_way)) / n,
        dispatch_s=sum(span.seconds for span in every if span.kind == "D") / n,
        combine_s=sum(span.seconds for span in every if span.kind == "C") / n,
    )


def _by_kind(ranks: Sequence[Sequence[Span]]) -> dict[str, float]:
    """Seconds of a rank in a step by kind of action. What lies inside an action has ended before it."""
    found: dict[str, float] = dict.fromkeys(COMPUTE, 0.0)
    for spans in ranks:
        waited = 0.0
        for span in spans:
            if span.kind in INSIDE:
                waited += span.seconds
            elif span.is_compute:
                found[span.kind] += span.seconds - waited
                waited = 0.0
    return {kind: seconds / len(ranks) for kind, seconds in found.items() if seconds}


def _peak(spans: Sequence[Span]) -> int:
    """A chunk is alive from its forward's first turn to the last one of what ends it."""
    done = [(span.kind, span.stage, span.micro) for span in spans if span.is_compute]
    first, last = {key: i for i, key in reversed(list(enumerate(done)))}, {key: i for i, key in enumerate(done)}
    live = peak = 0
    for i, key in enumerate(done):
        live += key[0] == "F" and first[key] == i
        peak = max(peak, live)
        live -= key[0] in ENDS_A_CHUNK and last[key] == i
    return peak


def _means(parts: Mapping[Part, float]) -> tuple[float, float, float]:
    """Mean seconds over the stages of a forward, a whole backward, and the weight part; 0 where none is done apart."""
    of = {kind: [seconds for (k, _), seconds in parts.items() if k == kind] for kind in COMPUTE}
    mean = {kind: statistics.fmean(seconds) for kind, seconds in of.items() if seconds}
    return mean["F"], mean.get("B", mean.get("I", 0.0) + mean.get("W", 0.0)), mean.get("W", 0.0)
