"""Balancing at run time: the auxiliary losses, and the update of the selection bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ablate.components.moe.module import Router, Routing


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


def update_bias(bias_E: Tensor, counts_E: Tensor, speed: float) -> None:
    """In place. E * count against the total compares with the mean exactly, in integers."""
    assert counts_E.dtype == torch.int64
    bias_E += speed * torch.sign(counts_E.sum() - counts_E * counts_E.numel())
