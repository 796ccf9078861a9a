"""Schedules that put the first and the last stage on one rank: dualpipe in two directions, dualpipev and zbv in a V.

The order of DualPipe and DualPipeV is that of DeepSeek's published DualPipe (https://github.com/deepseek-ai/DualPipe,
MIT; arXiv:2412.19437, section 3.2.1 and figure 5), that of ZB-V from Zero Bubble (arXiv:2401.10241, section 6).
"""

from __future__ import annotations

from collections import Counter

from ablate.schedules.action import Action, Kind, Schedule


class _Line:
    """The actions of one rank as they are put down: micro-batches in order, weight parts oldest first."""

    def __init__(self, stages: tuple[int, int], directions: tuple[int, int], first: tuple[int, int]) -> None:
        """Of either flow through the rank: its stage, its direction, and the first of its micro-batches."""
        self.stages, self.directions, self.first = stages, directions, first
        self.actions: list[Action] = []
        self._count: Counter[tuple[bool, int]] = Counter()
        self._owed: list[Action] = []

    def do(self, kind: Kind, flow: int, paired: bool = False) -> None:
        """The flow's next forward or backward."""
        done = self._count[kind == "F", flow]
        self._count[kind == "F", flow] += 1
        action = Action(kind, self.stages[flow], self.first[flow] + done, self.directions[flow], paired)
        self.actions.append(action)
        if kind == "I":
            self._owed.append(action)

    def weights(self) -> None:
        """The oldest weight part that is still owed."""
        owed = self._owed.pop(0)
        self.actions.append(Action("W", owed.stage, owed.micro, owed.direction))


def _fold(line: _Line, near: int, half: int, n: int) -> None:
    """DeepSeek's eight phases on a rank that is `near` ranks from the end of a fold of `half`; n micro-batches a flow.

    Flow 0 is the one whose first stage is nearer.
    """
    rest = half - 1 - near
    for _ in range(2 * rest):
        line.do("F", 0)
    for _ in range(near + 1):
        line.do("F", 0)
        line.do("F", 1)
    for _ in range(rest):
        line.do("I", 1)
        line.weights()
        line.do("F", 1)
    for i in range(n - 2 * half + near + 1):
        line.do("F", 0, paired=i > 0 or rest > 0)  # the innermost rank's first backward waits for its forward
        line.do("B", 1)
        line.do("F", 1, paired=True)
        line.do("B", 0)
    for _ in range(rest):
        line.do("B", 1)
        line.do("F", 1, paired=True)
        line.do("B", 0)
    for i in range(2 * (near + 1)):
        line.do("B" if i <= near else "I", 1 - i % 2)
    for _ in range(rest):
        line.weights()
        line.do("I", 0)
    for _ in range(near + 1):
        line.weights()


def dualpipe(n_ranks: int, n_micro_batches: int) -> Schedule:
    """DualPipe: half of the micro-batches goes down the ranks, half up, so each rank has two stages' weights.

    ValueError unless ranks and micro-batches are even, and micro-batches at least twice the ranks.
    """
    if n_ranks % 2 or n_micro_batches % 2 or n_micro_batches < 2 * n_ranks:
        raise ValueError(
            f"dualpipe on {n_ranks} pipeline ranks with {n_micro_batches} micro-batches a step: both must be even and "
            f"micro-batches at least 2 x {n_ranks}, as half of them enters at each end; change the ranks, the batch or "
            "the micro-batch, or choose dualpipev or 1f1b"
        )
    half, last, n = n_ranks // 2, n_ranks - 1, n_micro_batches // 2
    ranks = []
    for rank in range(n_ranks):
        upper = rank >= half
        flows = (1, 0) if upper else (0, 1)
        stages = (last - rank, rank) if upper else (rank, last - rank)
        line = _Line(stages, flows, (flows[0] * n, flows[1] * n))
        _fold(line, min(rank, last - rank), half, n)
        ranks.append(tuple(line.actions))
    placement = (tuple(range(n_ranks)), tuple(range(last, -1, -1)))
    return Schedule(name="dualpipe", n_micro_batches=n_micro_batches, placement=placement, ranks=tuple(ranks))


def _v(n_ranks: int) -> tuple[int, ...]:
    return (*range(n_ranks), *reversed(range(n_ranks)))


def dualpipev(n_ranks: int, n_micro_batches: int) -> Schedule:
    """DualPipeV, DualPipe cut in half: stages go down the ranks and up again, so no weights are held twice.

    ValueError for fewer micro-batches than stages.
    """
    if n_micro_batches < 2 * n_ranks:
        raise ValueError(
            f"dualpipev on {n_ranks} pipeline ranks with {n_micro_batches} micro-batches a step: it needs at least "
            f"2 x {n_ranks}; use fewer ranks or a smaller micro-batch, or choose 1f1b"
        )
    ranks = []
    for rank in range(n_ranks):
        line = _Line((rank, 2 * n_ranks - 1 - rank), (0, 0), (0, 0))
        _fold(line, rank, n_ranks, n_micro_batches)
        ranks.append(tuple(line.actions))
    return Schedule(name="dualpipev", n_micro_batches=n_micro_batches, placement=(_v(n_ranks),), ranks=tuple(ranks))


def zero_bubble_v(n_ranks: int, n_micro_batches: int) -> Schedule:
    """ZB-V: stages in a V, backward in two parts; a rank that has begun never waits where F, I and W take equal time.

    With fewer than 2 n_ranks - 1 micro-batches it is that schedule without the work of the missing ones.
    """
    n = max(n_micro_batches, 2 * n_ranks - 1)
    ranks = []
    for rank in range(n_ranks):
        actions = _zero_bubble_v_rank(rank, n_ranks, n)
        ranks.append(tuple(a for a in actions if a.micro < n_micro_batches))
    return Schedule(name="zbv", n_micro_batches=n_micro_batches, placement=(_v(n_ranks),), ranks=tuple(ranks))


def _zero_bubble_v_rank(rank: int, n_ranks: int, n: int) -> list[Action]:
    stages, actions = (rank, 2 * n_ranks - 1 - rank), list[Action]()
    count: Counter[tuple[Kind, int]] = Counter()

    def do(flow: int, *kinds: Kind) -> None:
        for kind in kinds:
            actions.append(Action(kind, stages[flow], count[kind, flow]))
            count[kind, flow] += 1

    for _ in range(2 * (n_ranks - rank) - 1):
        do(0, "F")
    for _ in range(rank):
        do(1, "F")
        do(0, "F")
    for _ in range(n_ranks - rank):
        do(1, "F", "I", "W")
    while count["F", 1] < n:
        if count["F", 0] < n:
            do(0, "F")
        do(0, "I", "W")
        do(1, "F", "I", "W")
    for _ in range(rank):
        do(0, "I")
        do(1, "I")
    for _ in range(n_ranks - rank):
        do(0, "I", "W")
    for flow in (1, 0):
        while count["W", flow] < n:
            do(flow, "W")
    return actions
