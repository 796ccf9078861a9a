"""Sends and receives put into a schedule, and what must hold of it before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from ablate.schedules.action import ENDS_A_CHUNK, Action, Schedule

Channel = tuple[int, int, int, str]  # from rank, to rank, direction, F or B


def with_transfers(schedule: Schedule) -> Schedule:
    """The schedule with sends and receives: receives right before what reads them, sends right after what made them.

    A pair receives for both before it starts. Where the next stage is on the same rank nothing travels.
    """
    ranks = []
    for actions in schedule.ranks:
        lowered: list[Action] = []
        for group in pairs(actions):
            lowered += [_transfer(a, "R") for a in group if schedule.source(a) is not None]
            lowered += group
            lowered += [_transfer(a, "S") for a in group if schedule.target(a) is not None]
        ranks.append(tuple(lowered))
    return replace(schedule, ranks=tuple(ranks))


def pairs(actions: Iterable[Action]) -> Iterable[list[Action]]:
    """The compute actions of a rank, one by one or in pairs that run together."""
    group: list[Action] = []
    for action in actions:
        group.append(action)
        if not action.paired:
            yield group
            group = []
    assert not group, "a forward is paired with the backward behind it"


def _transfer(action: Action, end: str) -> Action:
    what = "F" if action.kind == "F" else "B"
    return replace(action, kind=end + what, paired=False)  # type: ignore[arg-type]


def channel(schedule: Schedule, rank: int, transfer: Action) -> Channel:
    """The channel of a transfer at `rank`: first in, first out, whatever stages it is of."""
    peer = schedule.peer(transfer)
    ends = (rank, peer) if transfer.kind[0] == "S" else (peer, rank)
    return (*ends, transfer.direction, transfer.kind[1])


def check(schedule: Schedule) -> tuple[int, ...]:
    """The most chunks that are alive at once on each rank: with a forward done and not all of the backward.

    ValueError says what is wrong: work missing, done twice or on another rank than the placement's, a part before the
    one it needs, a channel read in another order than it is written, a deadlock. `schedule`: with transfers or without.
    """
    _check_work(schedule)
    lowered = schedule if any(not a.is_compute for row in schedule.ranks for a in row) else with_transfers(schedule)
    n = lowered.n_ranks
    at, live, peak = [0] * n, [0] * n, [0] * n
    flying: dict[Channel, list[tuple[int, int]]] = {}
    ready: set[tuple[str, int, int]] = set()
    while any(at[rank] < len(lowered.ranks[rank]) for rank in range(n)):
        before = list(at)
        for rank, actions in enumerate(lowered.ranks):
            while at[rank] < len(actions) and _advance(lowered, rank, actions[at[rank]], flying, ready):
                action = actions[at[rank]]
                live[rank] += (action.kind == "F") - (action.kind in ENDS_A_CHUNK)
                peak[rank] = max(peak[rank], live[rank])
                at[rank] += 1
        if at == before:
            stuck = [f"rank {r} at {row[at[r]]}" for r, row in enumerate(lowered.ranks) if at[r] < len(row)]
            raise ValueError(f"the schedule {schedule.name} waits for ever: {', '.join(stuck)}")
    return tuple(peak)


def _advance(
    schedule: Schedule,
    rank: int,
    action: Action,
    flying: dict[Channel, list[tuple[int, int]]],
    ready: set[tuple[str, int, int]],
) -> bool:
    """Whether a rank can do its next action now; then it is done."""
    kind, stage, micro = action.kind, action.stage, action.micro
    if kind[0] == "S":
        _need(schedule, (f"made {kind[1]}", stage, micro), ready, rank, action)
        reader = stage + (1 if kind == "SF" else -1)
        flying.setdefault(channel(schedule, rank, action), []).append((reader, micro))
    elif kind[0] == "R":
        arriving = flying.get(channel(schedule, rank, action))
        if not arriving:
            return False
        if (found := arriving.pop(0)) != (stage, micro):
            raise ValueError(
                f"the schedule {schedule.name} reads a channel in another order than it is written: rank {rank} "
                f"expects {action} and finds what is for stage {found[0]}, micro-batch {found[1]}"
            )
        ready.add((f"input {kind[1]}", stage, micro))
    else:
        _compute(schedule, rank, action, ready)
    return True


def _compute(schedule: Schedule, rank: int, action: Action, ready: set[tuple[str, int, int]]) -> None:
    kind, stage, micro = action.kind, action.stage, action.micro
    if kind == "W":
        return _need(schedule, ("input part", stage, micro), ready, rank, action)
    what, end = ("F", 0) if kind == "F" else ("B", schedule.last_stage)
    if kind != "F":
        _need(schedule, ("made F", stage, micro), ready, rank, action)
    if stage != end:
        before = stage + (-1 if kind == "F" else 1)
        needed = (f"made {what}", before, micro) if schedule.source(action) is None else (f"input {what}", stage, micro)
        _need(schedule, needed, ready, rank, action)
    ready.add((f"made {what}", stage, micro))
    if kind == "I":
        ready.add(("input part", stage, micro))
    return None


def _need(
    schedule: Schedule, needed: tuple[str, int, int], ready: set[tuple[str, int, int]], rank: int, action: Action
) -> None:
    if needed not in ready:
        raise ValueError(
            f"the schedule {schedule.name} is in the wrong order: rank {rank} does {action} without "
            f"{needed[0]!r} of stage {needed[1]}, micro-batch {needed[2]}"
        )


def _check_work(schedule: Schedule) -> None:
    """Every stage does every micro-batch's forward and backward exactly once, where the placement has them."""
    done: Counter[tuple[str, int, int]] = Counter()
    for rank, actions in enumerate(schedule.ranks):
        for action in actions:
            if action.is_compute:
                if action.direction != schedule.direction_of(action.micro):
                    raise ValueError(f"the schedule {schedule.name} sends {action} in another micro-batch's direction")
                if schedule.rank_of(action.stage, action.direction) != rank:
                    raise ValueError(
                        f"the schedule {schedule.name} does {action} on rank {rank}, which has no such stage"
                    )
                done[action.kind, action.stage, action.micro] += 1
    for stage in range(schedule.n_stages):
        for micro in range(schedule.n_micro_batches):
            f, b, i, w = (done[kind, stage, micro] for kind in ("F", "B", "I", "W"))
            if (f, b + i, b + w) != (1, 1, 1):
                raise ValueError(
                    f"the schedule {schedule.name} does stage {stage} of micro-batch {micro} {f} times forward, "
                    f"{b + i} times backward for the inputs and {b + w} times for the weights; each is done once"
                )
