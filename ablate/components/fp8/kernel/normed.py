"""A norm whose output is quantised as it is made, and linear maps that read those copies.

The maps behind one norm share its copies: each of them would else read the norm's output again and quantise it anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ablate.components.fp8.kernel import product
from ablate.components.fp8.kernel.layout import new_weight
from ablate.components.fp8.kernel.linear import fp8_linear_backward_op, no_weight
from ablate.components.fp8.kernel.norm import rms_norm_quantise
from ablate.components.fp8.kernel.quantise import quantise_weight
from ablate.kernels.launch import operator
from ablate.kernels.operands import contiguous_rows
from ablate.kernels.rms_norm import rms_norm_backward_op


@dataclass(frozen=True, slots=True)
class Normed:
    """What a norm gives to linear maps in E4M3: its output, which carries the gradient, and the output's copies.

    `copies`: values_ND, scales_DN, values_DS, scales_SD of the output as a matrix (layout.py); the last two are empty
    where no backward pass follows.
    """

    value: Tensor  # (..., D)
    copies: tuple[Tensor, Tensor, Tensor, Tensor]

    @property
    def shape(self) -> torch.Size:
        return self.value.shape


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward_norm(ctx: Any, g_ND: Tensor, *_: Any) -> tuple[Tensor, Tensor, None]:
    x_ND, weight_D, rstd_N = ctx.saved_tensors
    dx_ND, dw_D = rms_norm_backward_op(x_ND, weight_D, rstd_N, g_ND)
    return dx_ND, dw_D, None


rms_norm_quantise.register_autograd(_backward_norm, setup_context=_keep_norm)


def fp8_norm(x: Tensor, weight_D: Tensor, eps: float, *, power_of_two: bool, dtype: torch.dtype) -> Normed:
    """Root-mean-square norm along the last axis, rounded to `dtype` and then quantised as an input of linear maps.

    x: (..., D), float32 or bfloat16; weight: (D,), either. Raises ValueError for other dtypes or strides.
    """
    x_ND = contiguous_rows(x.reshape(-1, x.shape[-1]))
    columns = torch.is_grad_enabled()
    y_ND, _, *copies = rms_norm_quantise(
        x_ND, weight_D, eps, power_of_two=power_of_two, columns=columns, output=True, dtype=dtype
    )
    return Normed(y_ND.view(x.shape), tuple(copies))


@operator("fp8_linear_of_normed")
def fp8_linear_of_normed_op(
    x_NI: Tensor, values_NI: Tensor, scales_IN: Tensor, values_IS: Tensor, scales_SI: Tensor, weight_OI: Tensor,
    power_of_two: bool, library: bool, keep_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """x is there for its gradient and its dtype; its numbers are read from its copies."""
    w_OI, w_IO, w_scales = quantise_weight(contiguous_rows(weight_OI), power_of_two=power_of_two)
    multiply = product.library_product if library else product.product
    y_NO = multiply(values_NI, scales_IN, w_OI, w_scales, x_NI.dtype)
    return y_NO, *((w_IO, w_scales) if keep_weight else no_weight(weight_OI))


@fp8_linear_of_normed_op.register_fake
def _(
    x_NI: Tensor, values_NI: Tensor, scales_IN: Tensor, values_IS: Tensor, scales_SI: Tensor, weight_OI: Tensor,
    power_of_two: bool, library: bool, keep_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    kept = new_weight(weight_OI)[1:] if keep_weight else no_weight(weight_OI)
    return x_NI.new_empty(x_NI.shape[0], weight_OI.shape[0]), *kept


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.n_inputs, ctx.dtype = inputs[0].shape[1], inputs[5].dtype
    ctx.power_of_two, ctx.library = inputs[6:8]
    ctx.save_for_backward(inputs[3], inputs[4], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, g_NO: Tensor, *_: Any) -> tuple[Any, ...]:
    need_x, need_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[5]
    dx_NI, dw_OI = fp8_linear_backward_op(
        g_NO, *ctx.saved_tensors, ctx.n_inputs, ctx.dtype, ctx.power_of_two, ctx.library, need_x, need_weight
    )
    copies = (None, None, None, None)
    return dx_NI if need_x else None, *copies, dw_OI if need_weight else None, None, None, None


fp8_linear_of_normed_op.register_autograd(_backward, setup_context=_keep)


def fp8_linear_of_normed(x: Normed, weight_OI: Tensor, *, power_of_two: bool, backend: str) -> Tensor:
    """`fp8_linear` of what a norm has quantised. -> (..., O) in the dtype of the norm's output."""
    keep = torch.is_grad_enabled() and x.value.requires_grad
    x_NI = x.value.reshape(-1, x.shape[-1])
    y_NO = fp8_linear_of_normed_op(x_NI, *x.copies, weight_OI, power_of_two, backend == "library", keep)[0]
    return y_NO.view(*x.shape[:-1], -1)
