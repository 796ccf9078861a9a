"""Some rows of a whole tensor, as checkpoints name them: which rank wrote them is not part of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """`tensor` is the rows of a whole one from `start` on."""

    tensor: Tensor
    start: int


def rows_of(tensor: Tensor, rows: slice) -> Tensor | Rows:
    """A tensor that is there whole (rows without a start) as it is, else as its rows."""
    return tensor if rows.start is None else Rows(tensor, rows.start)
