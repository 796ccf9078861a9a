"""The recorder of a rank: when it began and ended its actions, and what it waited for inside them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch

from ablate.schedules.action import Action
from ablate.schedules.timeline import Span

OFF: AbstractContextManager[None] = nullcontext()


class HostClock:
    """Seconds of this process: where the processor computes, a call has ended when its work has."""

    name: Literal["host", "device"] = "host"

    def __init__(self) -> None:
        self._zero = time.perf_counter()

    def mark(self) -> Any:
        return time.perf_counter()

    def seconds(self, mark: Any) -> float:
        return float(mark - self._zero)


class DeviceClock:
    """Seconds of the current stream: an event at each mark, so that nobody waits until they are read."""

    name: Literal["host", "device"] = "device"

    def __init__(self) -> None:
        """It waits for the device once, so that its zero is that of the call."""
        torch.cuda.synchronize()
        self._zero = self.mark()

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, mark: Any) -> float:
        """Waits for the mark."""
        mark.synchronize()
        return float(self._zero.elapsed_time(mark)) / 1e3


class Spans:
    """Off but between `start_step` and `end_step`, once it has begun. Marks become seconds when they are read."""

    def __init__(self) -> None:
        self._clock: HostClock | DeviceClock | None = None
        self._steps: dict[int, list[tuple[Any, Action, Any, Any]]] = {}
        self._marks: list[tuple[Any, Action, Any, Any]] | None = None  # of the step that is recorded
        self._action: Action | None = None  # that is done now

    def begin(self) -> None:
        """Count seconds from now on: right behind a barrier, so that ranks count alike."""
        self._clock, self._steps = DeviceClock() if torch.cuda.is_available() else HostClock(), {}

    @property
    def has_begun(self) -> bool:
        return self._clock is not None

    @property
    def clock(self) -> Literal["host", "device"]:
        assert self._clock is not None
        return self._clock.name

    def start_step(self, number: int) -> None:
        assert self._clock is not None
        self._marks = self._steps[number] = []

    def end_step(self) -> None:
        self._marks = None

    def of(self, action: Action) -> AbstractContextManager[None]:
        """Record the action that is done inside."""
        return OFF if self._marks is None else self._during(action)

    def inside(self, kind: Literal["D", "C"]) -> AbstractContextManager[None]:
        """Record what the action of the moment waits for inside."""
        return OFF if self._marks is None or self._action is None else self._record(kind, self._action)

    @contextmanager
    def _during(self, action: Action) -> Iterator[None]:
        self._action = action
        with self._record(action.kind, action):
            yield
        self._action = None

    @contextmanager
    def _record(self, kind: Any, action: Action) -> Iterator[None]:
        assert self._clock is not None
        assert self._marks is not None
        start = self._clock.mark()
        yield
        self._marks.append((kind, action, start, self._clock.mark()))

    def steps(self) -> dict[int, tuple[Span, ...]]:
        """What was recorded, by step; waits for the device."""
        assert self._clock is not None
        seconds = self._clock.seconds
        return {
            number: tuple(
                Span(kind, a.stage, a.micro, a.direction, seconds(start), seconds(end)) for kind, a, start, end in marks
            )
            for number, marks in self._steps.items()
        }
