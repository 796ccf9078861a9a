"""Moves the selection bias once per optimizer step. Apart from the losses, so that these do not import Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor

from ablate.components.aux_free.module import update_bias
from ablate.components.moe.module import Router
from ablate.spec.backends import require_concrete


class BiasUpdate(Callback):
    """bias += gamma sign(mean load - load), once per optimizer step from the counts of its whole global batch.

    The counts are those of the module's `loads` (`ablate.training.loads`), which hold each micro-batch once; integer,
    summed over ranks before the sign is taken, so neither recomputation, accumulation nor rounding can flip it.
    """

    def __init__(self, bias_update_speed: float, backend: str) -> None:
        self.bias_update_speed, self.backend = bias_update_speed, require_concrete(backend)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        reduce = trainer.strategy.reduce
        self.update({router: reduce(counts_E, reduce_op="sum") for router, counts_E in pl_module.loads.counts.items()})

    def update(self, loads: Mapping[Router, Tensor]) -> None:
        """Move the bias of every router by the counts (E,) of one optimizer step."""
        for router, counts_E in loads.items():
            assert router.bias_E is not None
            if self.backend == "triton":
                from ablate.components.aux_free.kernel import bias_update

                router.bias_E.copy_(bias_update(router.bias_E, counts_E, self.bias_update_speed))
            else:
                update_bias(router.bias_E, counts_E, self.bias_update_speed)
