"""Balancing at run time: the auxiliary losses, and the callback that moves the selection bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from ablate.components.moe.module import Router, Routing
from ablate.spec.backends import require_concrete


def balance_loss(routing: Sequence[Routing], *, sequences_per_set: int) -> Tensor:
    """sum_i f_i P_i (arXiv:2412.19437, eqs. 17-20) over sets of whole sequences, mean over sets, sum over layers.

    f_i = E / (A T) times the tokens of a set that chose expert i, P_i its mean normalised affinity: 1 when even.
    """
    layers = []
    for layer in routing:
        counts_SE = layer.counts_BE.unflatten(0, (-1, sequences_per_set)).sum(1)
        affinity_SE = layer.affinity_BE.unflatten(0, (-1, sequences_per_set)).mean(1)
        layers.append((_load(counts_SE, affinity_SE) * affinity_SE).sum(-1).mean())
    return torch.stack(layers).sum()


def global_balance_loss(routing: Sequence[Routing], accumulated: Mapping[Router, Tensor]) -> Tensor:
    """The same with f_i over all tokens that the optimizer step has seen so far (arXiv:2501.11873).

    `accumulated`: counts (E,) of the step's earlier micro-batches.
    """
    layers = []
    for layer in routing:
        counts_E = layer.counts_BE.sum(0)
        if layer.router in accumulated:
            counts_E = counts_E + accumulated[layer.router]
        affinity_E = layer.affinity_BE.mean(0)
        layers.append((_load(counts_E, affinity_E) * affinity_E).sum(-1))
    return torch.stack(layers).sum()


def _load(counts: Tensor, like: Tensor) -> Tensor:
    """Counts as multiples of the even share."""
    return (counts * counts.shape[-1] / counts.sum(-1, keepdim=True)).to(like.dtype)


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


def update_bias(bias_E: Tensor, counts_E: Tensor, speed: float) -> None:
    """In place. E * count against the total compares with the mean exactly, in integers."""
    assert counts_E.dtype == torch.int64
    bias_E += speed * torch.sign(counts_E.sum() - counts_E * counts_E.numel())
