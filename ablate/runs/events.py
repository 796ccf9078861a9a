"""What happens to a run while it is executed, as it is told to whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Started:
    run_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """`loss` is the main head's in the last optimizer step; None before the first one has ended."""

    run_id: str
    step: int
    loss: float | None
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A record was committed, by this attempt or by another one before it."""

    run_id: str
    status: Literal["finished", "diverged"]


@dataclass(frozen=True, slots=True)
class Failed:
    """The run left no record; it is tried again when the study is."""

    run_id: str
    reason: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Killed:
    """Its process was killed, or made no progress and was ended; it goes on from its checkpoint."""

    run_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Stopped by a signal, with a checkpoint."""

    run_id: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """A signal came: the runs that go on stop at their next step with a checkpoint, and no other is started."""

    n_runs: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """A signal came: so many runs go on, or wait, where the process that watched them is not needed."""

    n_runs: int


Event: TypeAlias = Started | Progress | Ended | Failed | Killed | Interrupted | Stopping | Leaving
Listener: TypeAlias = Callable[[Event], None]
