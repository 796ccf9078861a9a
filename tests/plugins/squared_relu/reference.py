"""The squared-ReLU feed-forward (arXiv:2109.08668), token by token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from squared_relu.spec import SquaredReLU


def feed_forward(node: SquaredReLU, weights: Mapping[str, Tensor], x_ND: Tensor) -> Tensor:
    """-> (N, D)"""
    rows = [weights["down.weight"] @ (weights["up.weight"] @ x).clamp_min(0) ** 2 for x in x_ND]
    return torch.stack(rows)


REFERENCES = {"squared-relu": feed_forward}
