"""A schedule's table executed with seconds instead of devices: who waits for whom, for all draws at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Execution:
    """Seconds of one optimizer step's pipeline, (S,) for S draws; `busy` and `idle` are of each rank."""

    makespan: Floats
    busy: tuple[dict[str, Floats], ...]  # rank -> kind of work -> seconds
    groups: tuple[dict[Signature, int], ...]  # rank -> how many of each

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
    schedule: Schedule, seconds: Callable[[Group], Floats], transfer: Callable[[Action], Floats] | None = None
) -> Execution:
    """Every rank works its actions off in their order; each starts when the rank is free and its inputs have come.

    `seconds`: of a group, (S,). `transfer`: the way of an action's input from another rank, which keeps neither busy;
    None: it takes no time. A pair starts when both inputs are there, and both results are there when it ends.
    ValueError if the schedule waits for ever.
    """
    lines = [[tuple(group) for group in pairs(actions)] for actions in schedule.ranks]
    zero = np.zeros_like(seconds(lines[0][0]))
    made: dict[tuple[bool, int, int], Floats] = {}
    free, at = [zero] * len(lines), [0] * len(lines)
    busy = [dict.fromkeys((FORWARD, BACKWARD, WEIGHT, OVERLAPPED), zero) for _ in lines]
    counts: list[dict[Signature, int]] = [{} for _ in lines]
    left = sum(map(len, lines))
    while left:
        before = left
        for rank, line in enumerate(lines):
            while at[rank] < len(line):
                group = line[at[rank]]
                inputs = _inputs(schedule, group, made, transfer)
                if inputs is None:
                    break
                start = free[rank]
                for come in inputs:
                    start = np.maximum(start, come)
                end = start + seconds(group)
                for action in group:
                    if action.kind != "W":
                        made[action.kind == "F", action.stage, action.micro] = end
                key = signature(group)
                counts[rank][key] = counts[rank].get(key, 0) + 1
                free[rank], at[rank], left = end, at[rank] + 1, left - 1
        if left == before:
            raise ValueError(f"the schedule {schedule.name} waits for ever; `check` says where")
    for rank, line in enumerate(lines):
        firsts = {signature(group): group for group in line}
        for key, n in counts[rank].items():
            kind = OVERLAPPED if len(key) > 1 else KINDS[key[0][0]]
            busy[rank][kind] = busy[rank][kind] + n * seconds(firsts[key])
    return Execution(makespan=_latest(free), busy=tuple(busy), groups=tuple(counts))


def _inputs(
    schedule: Schedule,
    group: Group,
    made: dict[tuple[bool, int, int], Floats],
    transfer: Callable[[Action], Floats] | None,
) -> list[Floats] | None:
    """When each input has come; None while one is not made."""
    found = []
    for action in group:
        if action.kind == "W":
            continue
        forward = action.kind == "F"
        stage = action.stage + (-1 if forward else 1)
        if not 0 <= stage < schedule.n_stages:
            continue
        come = made.get((forward, stage, action.micro))
        if come is None:
            return None
        if transfer is not None and schedule.source(action) is not None:
            come = come + transfer(action)
        found.append(come)
    return found


def _latest(ends: Sequence[Floats]) -> Floats:
    latest = ends[0]
    for end in ends[1:]:
        latest = np.maximum(latest, end)
    return latest
