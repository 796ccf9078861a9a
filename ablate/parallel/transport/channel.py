"""All-to-all of rows of bytes in one group of ranks, with uneven splits, counted as they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor

from ablate.parallel.spans import Spans

Way = Literal["D", "C"]  # to the experts (dispatch), or home from them (combine)


@dataclass(slots=True)
class Flight:
    """Rows under way."""

    rows: Tensor
    way: Way
    spans: Spans
    work: Any = None  # None: nothing had to travel

    def wait(self) -> Tensor:
        """The rows that arrived. On a GPU its stream waits, not the host."""
        if self.work is not None:
            with self.spans.inside(self.way):
                self.work.wait()
        return self.rows


@dataclass(slots=True)
class Channel:
    """The ranks of a group, and what has left this rank for others of it.

    gloo and NCCL take the same call. NCCL runs a group's transfers on a stream of their own, so that what is computed
    between `start` and `wait` runs meanwhile.
    """

    name: str
    group: Any  # a process group; None: this rank alone
    rank: int = 0  # in the group
    size: int = 1
    spans: Spans = field(default_factory=Spans)
    n_rows: int = field(default=0)
    n_bytes: int = field(default=0)

    def start(self, rows: Tensor, sent: Sequence[int], received: Sequence[int], way: Way) -> Flight:
        """rows: uint8 (sum of sent, X), those of peer p behind those of p - 1."""
        leaving = sum(sent) - sent[self.rank]
        self.n_rows += leaving
        self.n_bytes += leaving * rows.shape[1]
        if self.size == 1:
            return Flight(rows, way, self.spans)
        arriving = rows.new_empty(sum(received), rows.shape[1])
        work = dist.all_to_all_single(
            arriving, rows.contiguous(), list(received), list(sent), group=self.group, async_op=True
        )
        return Flight(arriving, way, self.spans, work)
