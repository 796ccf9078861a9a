"""Modules of the slots that no component owns: the norm and the output head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.model.step_weights import of_step
from ablate.spec.backends import require_concrete


class Embedding(nn.Embedding):
    """Vectors of tokens, with which the residual stream begins: float32 as they are, or in the dtype of autocast."""

    def __init__(self, vocab_size: int, dim: int, residual_dtype: str) -> None:
        super().__init__(vocab_size, dim)
        self.narrow = residual_dtype != "float32"

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD, kind = super().forward(tokens_BT), tokens_BT.device.type
        return x_BTD.to(torch.get_autocast_dtype(kind)) if self.narrow and torch.is_autocast_enabled(kind) else x_BTD


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm with a weight; float32 inside whatever the input is.

    `product_dtype`: its readers are products, so that under autocast it gives what these would each convert.
    """

    product_dtype = False

    def __init__(self, dim: int, eps: float, backend: str) -> None:
        super().__init__(dim, eps=eps)
        self.backend, self.epsilon = require_concrete(backend), eps

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if self.product_dtype and torch.is_autocast_enabled(kind):
            return self._normed(x).to(torch.get_autocast_dtype(kind))
        return self._normed(x)

    def _normed(self, x: Tensor) -> Tensor:
        if self.backend == "triton":
            from ablate.kernels.rms_norm import rms_norm

            return rms_norm(x, self.weight, self.epsilon)
        if self.backend == "compiled":
            from ablate.kernels import fused

            return fused.rms_norm(x, self.weight, self.epsilon)
        wide = torch.promote_types(x.dtype, torch.float32)
        return nn.functional.rms_norm(x.to(wide), self.normalized_shape, self.weight.to(wide), self.eps).to(x.dtype)


def swiglu(gate_up: Tensor, backend: str) -> Tensor:
    """silu(gate) up of (..., 2 F), the gate first; `compiled`: in C."""
    if backend == "compiled":
        from ablate.kernels import fused

        return fused.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def unquantised(x: Any) -> Tensor:
    """The tensor of what an input norm gave: for readers that are not linear maps."""
    return x if isinstance(x, Tensor) else x.value


class Head(nn.Linear):
    """The output head, and the cross-entropy of what it says: for the main model and for modules that share it."""

    def __init__(self, dim: int, vocab_size: int, backend: str) -> None:
        super().__init__(dim, vocab_size, bias=False)
        self.backend = require_concrete(backend)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits (..., C)."""
        return F.linear(hidden, of_step(self.weight))

    def cross_entropy(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean nats over the targets that are not -100; float32."""
        if self.backend == "triton":
            from ablate.kernels.cross_entropy import linear_cross_entropy

            hidden_ND = hidden_BTD.flatten(0, 1)
            if torch.is_autocast_enabled(hidden_ND.device.type):
                hidden_ND = hidden_ND.to(torch.get_autocast_dtype(hidden_ND.device.type))
            return linear_cross_entropy(hidden_ND, self.weight, targets_BT.flatten())
        if self.backend == "compiled":
            from ablate.kernels import fused

            return fused.linear_cross_entropy(hidden_BTD.flatten(0, 1), self.weight, targets_BT.flatten())
        return F.cross_entropy(self(hidden_BTD).flatten(0, 1).float(), targets_BT.flatten())
