"""A schedule's table executed with seconds instead of devices: who waits for whom, for all draws at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.cluster.inputs import Floats
from ablate.schedules.action import Action, Schedule
from ablate.schedules.check import pairs

FORWARD, BACKWARD, WEIGHT, OVERLAPPED = "forward", "backward", "weight", "overlapped"
KINDS = {"F": FORWARD, "B": BACKWARD, "I": BACKWARD, "W": WEIGHT}
Group = tuple[Action, ...]  # one action, or a forward and the backward that runs together with it
Signature = tuple[tuple[str, int], ...]  # kind and stage of each action of a group: what its seconds depend on


def signature(group: Group) -> Signature:
    return tuple((action.kind, action.stage) for action in group)


Made = tuple[bool, int, int]  # whether forward, stage, micro-batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A group with what it waits for, and whether that comes from another rank, and what it makes."""

    group: Group
    signature: Signature
    inputs: tuple[tuple[Made, bool], ...]
    outputs: tuple[Made, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Execution:
    """Seconds of one optimizer step's pipeline, (S,) for S draws; `busy` and `idle` are of each rank."""

    makespan: Floats
    busy: tuple[dict[str, Floats], ...]  # rank -> kind of work -> seconds
    groups: tuple[Mapping[Signature, int], ...]  # rank -> how many of each

    @property
    def idle(self) -> tuple[Floats, ...]:
        return tuple(self.makespan - sum(kinds.values()) for kinds in self.busy)

    def mean(self, kind: str) -> Floats:
        """Seconds that a rank spends in a kind of work, on average over the ranks."""
        return np.asarray(sum(kinds[kind] for kinds in self.busy) / len(self.busy))

    @property
    def bubble(self) -> Floats:
        """Seconds that a rank waits, on average."""
        return np.asarray(sum(self.idle) / len(self.idle))


def execute(
    schedule: Schedule,
    seconds: Callable[[Group], Floats],
    transfer: Floats | None = None,
    *,
    alike: Callable[[Group], Hashable] = signature,
) -> Execution:
    """Every rank works its actions off in their order; each starts when the rank is free and its inputs have come.

    `seconds`: of a group, (S,); asked once for all groups of which `alike` gives the same. `transfer`: the way of an
    input from another rank, which keeps neither busy; None: it takes no time. A pair starts when both inputs are there,
    and both results are there when it ends.
    ValueError if the schedule waits for ever.
    """
    lines = [[_planned(schedule, tuple(group)) for group in pairs(actions)] for actions in schedule.ranks]
    groups = {alike(planned.group): planned.group for line in lines for planned in line}
    lasting = {key: seconds(group) for key, group in groups.items()}
    made: dict[Made, Floats] = {}
    free = [np.zeros_like(next(iter(lasting.values())))] * len(lines)
    at, left = [0] * len(lines), sum(map(len, lines))
    while left:
        before = left
        for rank, line in enumerate(lines):
            while at[rank] < len(line):
                planned = line[at[rank]]
                start = free[rank]
                for needed, travels in planned.inputs:
                    come = made.get(needed)
                    if come is None:
                        break
                    start = np.maximum(start, come if transfer is None or not travels else come + transfer)
                else:
                    end = start + lasting[alike(planned.group)]
                    made.update(dict.fromkeys(planned.outputs, end))
                    free[rank], at[rank], left = end, at[rank] + 1, left - 1
                    continue
                break
        if left == before:
            raise ValueError(f"the schedule {schedule.name} waits for ever; `check` says where")
    counts = tuple(Counter(planned.signature for planned in line) for line in lines)
    busy = tuple(_busy(Counter(alike(planned.group) for planned in line), groups, lasting) for line in lines)
    return Execution(makespan=_latest(free), busy=busy, groups=counts)


def _planned(schedule: Schedule, group: Group) -> Planned:
    inputs: list[tuple[Made, bool]] = []
    outputs: list[Made] = []
    for action in group:
        if action.kind == "W":
            continue
        forward = action.kind == "F"
        stage = action.stage + (-1 if forward else 1)
        if 0 <= stage < schedule.n_stages:
            inputs.append(((forward, stage, action.micro), schedule.source(action) is not None))
        outputs.append((forward, action.stage, action.micro))
    return Planned(group=group, signature=signature(group), inputs=tuple(inputs), outputs=tuple(outputs))


def _busy(
    counts: Mapping[Hashable, int], groups: Mapping[Hashable, Group], lasting: Mapping[Hashable, Floats]
) -> dict[str, Floats]:
    """Seconds by kind of work."""
    busy = dict.fromkeys((FORWARD, BACKWARD, WEIGHT, OVERLAPPED), np.zeros_like(next(iter(lasting.values()))))
    for key, n in counts.items():
        kind = OVERLAPPED if len(groups[key]) > 1 else KINDS[groups[key][0].kind]
        busy[kind] = busy[kind] + n * lasting[key]
    return busy


def _latest(ends: Sequence[Floats]) -> Floats:
    latest = ends[0]
    for end in ends[1:]:
        latest = np.maximum(latest, end)
    return latest
