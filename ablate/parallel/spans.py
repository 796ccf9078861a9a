"""When a rank did what: spans of compute and of waiting for transfers, for a chart and for chrome://tracing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ablate.schedules.action import Action


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds since the recorder began. Of a receive: how long the rank waited for it."""

    action: Action
    start_s: float
    end_s: float


class Spans:
    """A recorder of one rank. On a GPU each span waits for the device, so that it ends when the work has ended."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.begin()

    def begin(self) -> None:
        """Count seconds from now on: right behind a barrier, so that ranks count alike."""
        self._zero = time.perf_counter()

    @contextmanager
    def of(self, action: Action) -> Iterator[None]:
        """Record what is inside."""
        start = self._now()
        yield
        self.spans.append(Span(action, start, self._now()))

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self._zero


def chrome_trace(ranks: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """The spans of all ranks in the trace event format that chrome://tracing and Perfetto read."""
    events = [
        {
            "name": str(span.action),
            "cat": "compute" if span.action.is_compute else "transfer",
            "ph": "X",
            "pid": 0,
            "tid": rank,
            "ts": span.start_s * 1e6,
            "dur": (span.end_s - span.start_s) * 1e6,
        }
        for rank, spans in enumerate(ranks)
        for span in spans
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
