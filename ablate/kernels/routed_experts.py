"""Routed experts whole: SwiGLU networks over rows sorted by expert, without a copy of the rows or of their outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ablate.kernels.combine import combine_op
from ablate.kernels.grouped_product import grouped_product_op, grouped_swiglu_backward_op, grouped_swiglu_op
from ablate.kernels.grouped_weight_gradient import grouped_weight_gradient_op
from ablate.kernels.launch import operator
from ablate.kernels.operands import aligned_rows, check_row_numbers, check_shape


@operator("routed_experts")
def routed_experts_op(
    x_ND: Tensor, weight_NA: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor, token_of_row_P: Tensor,
    row_of_choice_NA: Tensor, offsets_E: Tensor, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n, a = row_of_choice_NA.shape
    check_shape("x", x_ND, (n, x_ND.shape[-1]))
    check_row_numbers("token_of_row_P", token_of_row_P, n * a)
    check_shape("the weights of the choices", weight_NA, (n, a))
    e, x, d = gate_up_EXD.shape
    check_shape("the experts' down matrices", down_EDF, (e, d, x // 2))
    h_PF, gate_up_PX = grouped_swiglu_op(x_ND, gate_up_EXD, offsets_E, token_of_row_P, keep)
    y_PD = grouped_product_op(h_PF, down_EDF, offsets_E, None, False)
    return combine_op(y_PD, weight_NA, row_of_choice_NA), gate_up_PX


@routed_experts_op.register_fake
def _(
    x_ND: Tensor, weight_NA: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor, token_of_row_P: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    keep = rest[-1]
    return x_ND.new_empty(x_ND.shape), x_ND.new_empty(token_of_row_P.shape[0] if keep else 0, gate_up_EXD.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:-1], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # of gate and up they would be zeros, as many


def _backward(ctx: Any, g_ND: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x_ND, weight_NA, gate_up_EXD, down_EDF, token_of_row_P, row_of_choice_NA, offsets_E, gate_up_PX = ctx.saved_tensors
    needs_x, needs_weight, needs_gate_up, needs_down, *_ = ctx.needs_input_grad
    g_ND = aligned_rows(g_ND)
    place_P = row_of_choice_NA.flatten().long()
    weight_P = torch.empty_like(weight_NA.flatten()).scatter(0, place_P, weight_NA.flatten())
    d_gate_up_PX, h_PF, d_weight_P = grouped_swiglu_backward_op(
        g_ND, down_EDF, offsets_E, token_of_row_P, gate_up_PX, weight_P
    )  # fmt: skip
    dx_ND = d_weight_NA = d_gate_up_EXD = d_down_EDF = None
    if needs_weight:
        d_weight_NA = d_weight_P[place_P].view_as(weight_NA)
    if needs_down:
        d_down_EDF = grouped_weight_gradient_op(g_ND, h_PF, offsets_E, token_of_row_P, None, down_EDF.dtype)
    if needs_gate_up:
        d_gate_up_EXD = grouped_weight_gradient_op(
            d_gate_up_PX, x_ND, offsets_E, None, token_of_row_P, gate_up_EXD.dtype
        )
    if needs_x:
        dx_PD = grouped_product_op(d_gate_up_PX, gate_up_EXD, offsets_E, None, True)
        dx_ND = combine_op(dx_PD, None, row_of_choice_NA)
    return dx_ND, d_weight_NA, d_gate_up_EXD, d_down_EDF, None, None, None, None


routed_experts_op.register_autograd(_backward, setup_context=_keep)


def routed_experts(
    x_ND: Tensor,
    weight_NA: Tensor,
    gate_up_EXD: Tensor,
    down_EDF: Tensor,
    token_of_row_P: Tensor,
    row_of_choice_NA: Tensor,
    offsets_E: Tensor,
) -> Tensor:
    """y[n] = sum_a weight[n, a] down_e (silu(gate_e x[n]) * up_e x[n]), e the a-th choice of n: the routed part of
    arXiv:2412.19437, eq. 12. Differentiable with respect to x, weight, gate_up and down.

    x: (N, D); gate_up: (E, 2 F, D), rows [0, F) of an expert are the gate; down: (E, D, F); all float32 or all
    bfloat16, last axes contiguous, D and F multiples of 8 (of 4 in float32). weight: (N, A), float32. The plan, int32:
    the P = N A (token, choice) pairs sorted by expert, token_of_row_P (P,) their tokens, row_of_choice_NA (N, A) where
    each choice stands, offsets_E (E,) ends of the experts' rows. -> (N, D) of x's dtype.

    Kept for the backward pass: inputs, and gate and up before the SwiGLU: 2 P F numbers of x's dtype, 4 N A F bytes in
    bfloat16; nothing but the result where no input asks for a gradient. Not kept: the rows as sorted (P D), the hidden
    rows (P F, computed again from gate and up) and the experts' outputs (P D): the gradient of weight[n, a] is
    dy[n] . (down h[p]) = h[p] . (down^T dy[n]), and the right side is needed for the gradient of h anyway. The forward
    pass needs P (F + D) numbers besides, the backward pass P (3 F + D), no more than at its end.
    Sums are float32 and in a fixed order: results are the same from run to run, bit for bit.
    Raises ValueError for other dtypes, shapes, strides or alignments.
    """
    asked = any(t.requires_grad for t in (x_ND, weight_NA, gate_up_EXD, down_EDF))
    keep = asked and torch.is_grad_enabled()
    y_ND, _ = routed_experts_op(
        x_ND, weight_NA, gate_up_EXD, down_EDF, token_of_row_P, row_of_choice_NA, offsets_E, keep
    )
    return y_ND
