"""The equations of routed experts, token by token and expert by expert (arXiv:2412.19437, eqs. 12-16)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.components.moe.spec import RoutedExperts, SwiGLU, Unbalanced


def swiglu(x_D: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (gate_up @ x_D).chunk(2)
    return down @ (F.silu(gate) * up)


def choose(node: RoutedExperts, affinity_E: Tensor, bias_E: Tensor) -> list[int]:
    """The experts of one token: best groups by the sum of their best biased affinities, then best experts."""
    score = (affinity_E + bias_E).tolist()
    size = node.experts_per_group
    groups = [range(g * size, (g + 1) * size) for g in range(node.n_expert_groups)]
    strength = [sum(sorted((score[i] for i in g), reverse=True)[: node.n_group_scores]) for g in groups]
    best = sorted(range(len(groups)), key=lambda g: -strength[g])[: node.n_limited_groups]
    reachable = [i for g in sorted(best) for i in groups[g]]  # so that of equal scores the lower expert's is first
    return sorted(reachable, key=lambda i: -score[i])[: node.n_activated_experts]


def routed_experts(node: RoutedExperts, weights: Mapping[str, Tensor], x_ND: Tensor) -> Tensor:
    """`weights`: those of the module by its names; without a bias, zeros. -> (N, D)"""
    bias = weights.get("router.bias_E", x_ND.new_zeros(node.n_routed_experts))
    rows = []
    for x in x_ND:
        logits = weights["router.weight"] @ x
        affinity = torch.sigmoid(logits)  # eq. 15
        chosen = choose(node, torch.where(affinity < torch.finfo(x.dtype).tiny, 0.0, affinity), bias)  # eq. 16
        log_affinity = F.logsigmoid(logits)
        log_total = log_affinity[chosen].logsumexp(0)
        y = torch.zeros_like(x)
        for i in chosen:
            gate = (log_affinity[i] - log_total).exp() * node.route_scale  # eq. 13
            y = y + gate * swiglu(x, weights["experts.gate_up.weight"][i], weights["experts.down.weight"][i])
        if node.n_shared_experts:
            y = y + swiglu(x, weights["shared.gate_up.weight"], weights["shared.down.weight"])
        rows.append(y)
    return torch.stack(rows)


def dense(node: SwiGLU, weights: Mapping[str, Tensor], x_ND: Tensor) -> Tensor:
    """The gated feed-forward (arXiv:2002.05202), token by token. -> (N, D)"""
    return torch.stack([swiglu(x, weights["gate_up.weight"], weights["down.weight"]) for x in x_ND])


def no_balance_loss(node: Unbalanced, layers: Sequence[Any]) -> Tensor:
    return torch.zeros((), dtype=torch.float64)


REFERENCES = {"moe": routed_experts, "swiglu": dense, "none": no_balance_loss}
