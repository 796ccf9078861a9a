"""The recorder of a rank: when it began and ended its actions, and what it waited for inside them.

Of two actions that take turns each has a span for every turn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist

from ablate.schedules.action import Action
from ablate.schedules.timeline import Recording, Span, SpanKind

MEETINGS = 20  # of the ranks, to compare their clocks; under load few of them are quick
OFF: AbstractContextManager[None] = nullcontext()


_Place = tuple[int, int, int]  # stage, micro-batch, direction
_Mark = tuple[SpanKind, _Place, Any, Any]


class HostClock:
    """Seconds of this process: where the processor computes, a call has ended when its work has."""

    name: Literal["host", "device"] = "host"

    def mark(self) -> Any:
        return time.perf_counter()

    def seconds(self, mark: Any) -> float:
        return float(mark)


class DeviceClock:
    """The same of the current stream: an event at each mark, so that nobody waits until they are read."""

    name: Literal["host", "device"] = "device"

    def __init__(self) -> None:
        """It waits for the device once: what is marked then happens at once, and is the moment of both clocks."""
        torch.cuda.synchronize()
        self._zero_s, self._zero = time.perf_counter(), self.mark()

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, mark: Any) -> float:
        """Waits for the mark."""
        mark.synchronize()
        return self._zero_s + float(self._zero.elapsed_time(mark)) / 1e3


class Spans:
    """Off but between `start_step` and `end_step`, once it has begun. Marks become seconds when they are read."""

    def __init__(self) -> None:
        self._clock: HostClock | DeviceClock | None = None
        self._meetings: list[tuple[float, float]] = []
        self._steps: dict[int, list[_Mark]] = {}
        self._marks: list[_Mark] | None = None  # of the step that is recorded
        self._now: tuple[Action, Any] | None = None  # the action that is done now, and since when

    def begin(self) -> None:
        """Meet the other ranks to compare clocks. Every rank calls it at once."""
        for _ in range(MEETINGS):
            came = time.perf_counter()
            dist.barrier()
            self._meetings.append((came, time.perf_counter()))
        self._clock = DeviceClock() if torch.cuda.is_available() else HostClock()

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
        if self._marks is None or self._now is None:
            return OFF
        return self._recording(kind, _place(self._now[0]))

    def behind(self, kind: Literal["G", "O"]) -> AbstractContextManager[None]:
        """Record what a rank does behind its actions."""
        return OFF if self._marks is None else self._recording(kind, (0, 0, 0))

    @contextmanager
    def _during(self, action: Action) -> Iterator[None]:
        outer = self._end_turn()
        self._start_turn(action)
        yield
        self._end_turn()
        if outer is not None:
            self._start_turn(outer)

    def _start_turn(self, action: Action) -> None:
        assert self._clock is not None
        self._now = action, self._clock.mark()

    def _end_turn(self) -> Action | None:
        """The action whose turn it was."""
        if self._now is None:
            return None
        (action, start), self._now = self._now, None
        self._add(action.kind, _place(action), start)
        return action

    @contextmanager
    def _recording(self, kind: SpanKind, place: _Place) -> Iterator[None]:
        assert self._clock is not None
        start = self._clock.mark()
        yield
        self._add(kind, place, start)

    def _add(self, kind: SpanKind, place: _Place, start: Any) -> None:
        assert self._clock is not None
        assert self._marks is not None
        self._marks.append((kind, place, start, self._clock.mark()))

    def recording(self) -> Recording:
        """What was recorded; waits for the device. Seconds since the first meeting."""
        assert self._clock is not None
        seconds, zero = self._clock.seconds, self._meetings[0][0]
        steps = {
            number: tuple(
                Span(kind, *place, seconds(start) - zero, seconds(end) - zero) for kind, place, start, end in marks
            )
            for number, marks in self._steps.items()
        }
        return Recording(steps, tuple((came - zero, left - zero) for came, left in self._meetings))


def _place(action: Action) -> _Place:
    return action.stage, action.micro, action.direction
