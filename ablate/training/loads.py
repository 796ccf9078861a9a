"""How many tokens each expert got in an optimizer step, counted where nothing is counted twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor


class ExpertLoads(Callback):
    """int64 counts (E,) by router since the last optimizer step.

    Each micro-batch's routing, as its forward pass returned it, is added once its backward pass is done: recomputation
    cannot add it again, the loss of a micro-batch sees the earlier ones alone, and what moves before the optimizer
    steps (the selection bias) sees the whole step. The next step counts anew.
    """

    def __init__(self) -> None:
        self.counts: dict[Any, Tensor] = {}

    def add(self, routing: Iterable[Any]) -> None:
        """Count what one micro-batch sent to each expert."""
        for each in routing:
            counts_E = each.counts_BE.sum(0)
            known = self.counts.get(each.router)
            self.counts[each.router] = counts_E if known is None else known + counts_E

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.add(pl_module.routing)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % pl_module.n_micro_batches == 0:
            self.counts = {}
