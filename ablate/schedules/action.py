"""What a schedule is made of: actions, and the table that has one tuple of them for each rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["F", "B", "I", "W", "SF", "RF", "SB", "RB"]
COMPUTE: tuple[Kind, ...] = ("F", "B", "I", "W")
ENDS_A_CHUNK: tuple[Kind, ...] = ("B", "W")  # behind it nothing of the chunk is kept


@dataclass(frozen=True, slots=True)
class Action:
    """One piece of work on one micro-batch at one stage.

    kind: F forward; B the whole backward; I the backward's input part, W its weight part (Zero Bubble,
    arXiv:2401.10241, calls them B and W); SF, RF: an activation sent to the next stage, received from the one before;
    SB, RB: a gradient sent to the stage before, received from the next one.
    stage: counted along the layers. direction: which of the schedule's placements of the stages on ranks it belongs
    to; only bidirectional schedules have a second one. paired: a forward that runs together with the backward that
    follows it on the same rank, each one's transfers behind the other's products.
    """

    kind: Kind
    stage: int
    micro: int
    direction: int = 0
    paired: bool = False

    def __str__(self) -> str:
        """As `2F5` (stage, kind, micro-batch), of the second direction `2f5`; `&` joins a pair."""
        kind = self.kind.lower() if self.direction else self.kind
        return f"{self.stage}{kind}{self.micro}{'&' if self.paired else ''}"

    @property
    def is_compute(self) -> bool:
        """Whether a device computes it; else it is a transfer."""
        return self.kind in COMPUTE


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The order of work of every rank in one optimizer step. Equal values are the same schedule.

    placement: for each direction the rank of each stage. ranks: what each rank does, in this order.
    """

    name: str
    n_micro_batches: int
    placement: tuple[tuple[int, ...], ...]
    ranks: tuple[tuple[Action, ...], ...]

    @property
    def n_ranks(self) -> int:
        return len(self.ranks)

    @property
    def n_stages(self) -> int:
        return len(self.placement[0])

    @property
    def last_stage(self) -> int:
        return self.n_stages - 1

    @property
    def n_directions(self) -> int:
        return len(self.placement)

    def rank_of(self, stage: int, direction: int) -> int:
        """The rank that holds a stage in a direction."""
        return self.placement[direction][stage]

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages that a rank holds, in the order of the layers."""
        return tuple(sorted({stage for row in self.placement for stage, at in enumerate(row) if at == rank}))

    def direction_of(self, micro: int) -> int:
        """The direction in which a micro-batch goes: the first ones take the first."""
        return micro * self.n_directions // self.n_micro_batches

    def source(self, action: Action) -> int | None:
        """The rank from which a compute action's input comes; None: made where it is used (an end, or no transfer).

        A forward reads the stage before, a backward the stage behind.
        """
        stage = action.stage + (-1 if action.kind == "F" else 1)
        if action.kind == "W" or not 0 <= stage < self.n_stages:
            return None
        rank = self.rank_of(stage, action.direction)
        return None if rank == self.rank_of(action.stage, action.direction) else rank

    def target(self, action: Action) -> int | None:
        """The rank to which a compute action's output goes; None where it stays or nobody reads it."""
        stage = action.stage + (1 if action.kind == "F" else -1)
        if action.kind == "W" or not 0 <= stage < self.n_stages:
            return None
        rank = self.rank_of(stage, action.direction)
        return None if rank == self.rank_of(action.stage, action.direction) else rank

    def peer(self, transfer: Action) -> int:
        """The rank at the other end of a transfer."""
        ahead = transfer.kind in ("SF", "RB")  # towards the next stage
        return self.rank_of(transfer.stage + (1 if ahead else -1), transfer.direction)
