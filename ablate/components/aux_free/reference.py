"""Balance losses and the move of the selection bias, expert by expert (arXiv:2412.19437, eqs. 16-20)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ablate.components.aux_free.spec import AuxiliaryLoss, BiasBalance

# One layer of routing: tokens of each sequence that chose each expert (B, E), the mean over each sequence of the
# affinities normalised over the experts (B, E), and the tokens of the step's earlier micro-batches by expert (E).
Layer = tuple[Tensor, Tensor, Tensor]


def set_loss(counts_E: Tensor, affinity_E: Tensor) -> Tensor:
    """sum_i f_i P_i over one set of tokens: f_i is E times the share of the choices that went to expert i."""
    total, n_experts = counts_E.sum().item(), len(counts_E)
    terms = [n_experts * counts_E[i].item() / total * affinity_E[i] for i in range(n_experts)]
    return torch.stack(terms).sum()


def over_sets(layers: Sequence[Layer], n_sequences: int) -> Tensor:
    """The loss of each set of `n_sequences` sequences; mean over the sets, sum over the layers."""
    total = torch.zeros((), dtype=torch.float64)
    for counts_BE, affinity_BE, _ in layers:
        n_sets = len(counts_BE) // n_sequences
        for k in range(n_sets):
            rows = slice(k * n_sequences, (k + 1) * n_sequences)
            total = total + set_loss(counts_BE[rows].sum(0), affinity_BE[rows].mean(0)) / n_sets
    return total


def auxiliary_loss(node: AuxiliaryLoss, layers: Sequence[Layer]) -> Tensor:
    """Over one sequence, a few sequences, or all that the optimizer step has seen so far (arXiv:2501.11873)."""
    if node.scope != "batch":
        return node.balance_loss_weight * over_sets(layers, node.n_sequences)
    seen = [set_loss(counts_BE.sum(0) + earlier_E, affinity_BE.mean(0)) for counts_BE, affinity_BE, earlier_E in layers]
    return node.balance_loss_weight * torch.stack(seen).sum()


def complementary_loss(node: BiasBalance, layers: Sequence[Layer]) -> Tensor:
    """The sequence-wise loss beside the bias, eqs. 17-20."""
    return node.sequence_loss_weight * over_sets(layers, 1)


def moved_bias(bias: Sequence[float], counts: Sequence[int], speed: float) -> list[float]:
    """Each expert's bias after one optimizer step: down where its load is above the mean, up where it is below."""
    mean = sum(counts) / len(counts)
    return [b - speed if n > mean else b + speed if n < mean else b for b, n in zip(bias, counts, strict=True)]


REFERENCES = {"aux-free": complementary_loss, "aux-loss": auxiliary_loss}
