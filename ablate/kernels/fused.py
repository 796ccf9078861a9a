"""Norm, gated activation and head with cross-entropy in C: the `compiled` backends of a processor, in float32."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ablate.kernels.native import load

_COUNT, _ADDRESS, _NUMBER = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
FUNCTIONS = (
    ("rms_norm", (_ADDRESS, _ADDRESS, _COUNT, _COUNT, _NUMBER, _ADDRESS, _ADDRESS)),
    ("rms_norm_backward", (*[_ADDRESS] * 4, _COUNT, _COUNT, _ADDRESS, _ADDRESS)),
    ("swiglu", (_ADDRESS, _COUNT, _COUNT, _ADDRESS)),
    ("swiglu_backward", (_ADDRESS, _ADDRESS, _COUNT, _COUNT, _ADDRESS)),
    ("cross_entropy", (_ADDRESS, _ADDRESS, _COUNT, _COUNT, _ADDRESS)),
    ("cross_entropy_backward", (_ADDRESS, _ADDRESS, _COUNT, _COUNT, _NUMBER, _ADDRESS)),
)


@cache
def library() -> Any:
    """The compiled functions of fused.c."""
    return load(Path(__file__).with_name("fused.c"), FUNCTIONS)


def _plain(x: Tensor) -> Tensor:
    """Contiguous. ValueError for what C would misread: anything but float32 on a processor."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(
            f"the backend compiled takes float32 on a processor, and was given {x.dtype} on {x.device}; "
            "choose backend library"
        )
    return x.contiguous()


class RMSNorm(torch.autograd.Function):
    """x (..., D), weight (D,) -> (..., D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x, weight = _plain(x), _plain(weight)
        n, dim = x.numel() // x.shape[-1], x.shape[-1]
        y, inverse_N = torch.empty_like(x), torch.empty(n)
        library().rms_norm(
            x.data_ptr(), weight.data_ptr(), n, dim, epsilon, y.data_ptr(), inverse_N.data_ptr()
        )  # fmt: skip
        ctx.save_for_backward(x, weight, inverse_N)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse_N = ctx.saved_tensors
        g, x_gradient, weight_gradient = g.contiguous(), torch.empty_like(x), torch.zeros_like(weight)
        library().rms_norm_backward(
            g.data_ptr(), x.data_ptr(), weight.data_ptr(), inverse_N.data_ptr(), len(inverse_N), x.shape[-1],
            x_gradient.data_ptr(), weight_gradient.data_ptr(),
        )  # fmt: skip
        return x_gradient, weight_gradient, None


class SwiGLU(torch.autograd.Function):
    """gate_up (..., 2 F), the gate first -> silu(gate) up (..., F)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = _plain(gate_up)
        hidden = gate_up.shape[-1] // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], hidden)
        library().swiglu(gate_up.data_ptr(), y.numel() // hidden, hidden, y.data_ptr())
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (gate_up,), g = ctx.saved_tensors, g.contiguous()
        gradient, hidden = torch.empty_like(gate_up), g.shape[-1]
        library().swiglu_backward(
            g.data_ptr(), gate_up.data_ptr(), g.numel() // hidden, hidden, gradient.data_ptr()
        )  # fmt: skip
        return gradient


class LinearCrossEntropy(torch.autograd.Function):
    """hidden (N, D), weight (C, D), targets (N,) -> mean nats over the targets that are not negative."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_CD: Tensor, target_N: Tensor) -> Tensor:
        hidden_ND, weight_CD, target_N = _plain(hidden_ND), _plain(weight_CD), target_N.contiguous()
        if len(target_N) and int(target_N.max()) >= len(weight_CD):  # C would read beyond the row
            raise ValueError(f"a target is {int(target_N.max())}; the head has {len(weight_CD)} classes, from 0")
        probability_NC = hidden_ND @ weight_CD.T
        loss_N = torch.empty(len(target_N))
        library().cross_entropy(
            probability_NC.data_ptr(), target_N.data_ptr(), *probability_NC.shape, loss_N.data_ptr()
        )  # fmt: skip
        ctx.n_targets = int((target_N >= 0).sum())
        ctx.save_for_backward(hidden_ND, weight_CD, target_N, probability_NC)
        return loss_N.sum() / ctx.n_targets

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_ND, weight_CD, target_N, probability_NC = ctx.saved_tensors
        logit_gradient_NC = torch.empty_like(probability_NC)
        library().cross_entropy_backward(
            probability_NC.data_ptr(), target_N.data_ptr(), *probability_NC.shape,
            float(g) / ctx.n_targets if ctx.n_targets else math.nan, logit_gradient_NC.data_ptr(),
        )  # fmt: skip
        return logit_gradient_NC @ weight_CD, logit_gradient_NC.T @ hidden_ND, None


rms_norm, swiglu, linear_cross_entropy = RMSNorm.apply, SwiGLU.apply, LinearCrossEntropy.apply
