"""Two linear maps in E4M3 with SwiGLU between them as one operator: the hidden activation is quantised, never written.

Dense, and as routed experts whose rows are quantised before they are sorted. The arithmetic is that of the maps and
the activation one after another (ablate.components.fp8.emulation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ablate.components.fp8.kernel import grouped, product
from ablate.components.fp8.kernel.layout import new_columns, new_weight
from ablate.components.fp8.kernel.quantise import quantise_activation, quantise_weight
from ablate.components.fp8.kernel.swiglu import swiglu_backward_quantise, swiglu_quantise
from ablate.kernels.combine import combine_backward_op, combine_op
from ablate.kernels.launch import operator
from ablate.kernels.operands import contiguous_rows

Multiply = Callable[..., Tensor]
# What the backward pass needs: gate and up; columns of the input and of the hidden activation, each with its scales;
# the transposed weights with theirs.
N_KEPT = 9


def _products(library: bool) -> tuple[Multiply, Multiply]:
    """Of rows with a weight, and of columns with columns."""
    if library:
        return product.library_product, product.library_weight_gradient
    return product.product, product.weight_gradient


def _nothing(like: Tensor, n: int) -> list[Tensor]:
    """What stands for tensors that are not kept. Every one another: an operator returns none twice."""
    return [like.new_empty(0) for _ in range(n)]


def _new_kept(x_NI: Tensor, gate_up: Tensor, down: Tensor, n: int, n_experts: int | None) -> list[Tensor]:
    """Unwritten, in the order of N_KEPT; n rows go through the maps."""
    x_columns, h_columns = (new_columns(x_NI, n, w.shape[-1], n_experts) for w in (gate_up, down))
    _, *first = new_weight(gate_up)
    _, *second = new_weight(down)
    return [x_NI.new_empty(n, gate_up.shape[-2]), *x_columns, *h_columns, *first, *second]


def _one_dtype(gate_up: Tensor, down: Tensor) -> torch.dtype:
    if gate_up.dtype != down.dtype:
        raise ValueError(f"the weights are {gate_up.dtype} and {down.dtype}; both must be of one dtype")
    return gate_up.dtype


@operator("fp8_feed_forward")
def fp8_feed_forward_op(
    x_NI: Tensor, gate_up_XI: Tensor, down_OF: Tensor, power_of_two: bool, library: bool, keep: bool
) -> list[Tensor]:
    multiply, how = _products(library)[0], {"power_of_two": power_of_two}
    x_NI, gate_up_XI, down_OF = (contiguous_rows(t) for t in (x_NI, gate_up_XI, down_OF))
    x, x_scales, *x_columns = quantise_activation(x_NI, **how, rows=True, columns=keep)
    first, first_IX, first_scales = quantise_weight(gate_up_XI, **how)
    gate_up_NX = multiply(x, x_scales, first, first_scales, x_NI.dtype)
    h, h_scales, *h_columns = swiglu_quantise(gate_up_NX, **how, rows=True, columns=keep)
    second, second_FO, second_scales = quantise_weight(down_OF, **how)
    y_NO = multiply(h, h_scales, second, second_scales, x_NI.dtype)
    if not keep:
        return [y_NO, *_nothing(x_NI, N_KEPT)]
    return [y_NO, gate_up_NX, *x_columns, *h_columns, first_IX, first_scales, second_FO, second_scales]


@fp8_feed_forward_op.register_fake
def _(x_NI: Tensor, gate_up_XI: Tensor, down_OF: Tensor, power_of_two: bool, library: bool, keep: bool) -> list[Tensor]:
    n = x_NI.shape[0]
    kept = _new_kept(x_NI, gate_up_XI, down_OF, n, None) if keep else _nothing(x_NI, N_KEPT)
    return [x_NI.new_empty(n, down_OF.shape[0]), *kept]


@operator("fp8_feed_forward_backward")
def fp8_feed_forward_backward_op(
    g_NO: Tensor, kept: list[Tensor], dtype: torch.dtype, power_of_two: bool, library: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input and of both weights; `dtype`: that of the weights."""
    gate_up_NX, x_IS, x_scales, h_FS, h_scales, first_IX, first_scales, second_FO, second_scales = kept
    (multiply, along_tokens), how = _products(library), {"power_of_two": power_of_two, "rows": True, "columns": True}
    g, g_scales, g_OS, g_column_scales = quantise_activation(contiguous_rows(g_NO), **how)
    dh_NF = multiply(g, g_scales, second_FO, second_scales.T, g_NO.dtype)
    d_second = along_tokens(g_OS, g_column_scales, h_FS, h_scales, dtype)
    d, d_scales, d_XS, d_column_scales, _ = swiglu_backward_quantise(gate_up_NX, dh_NF, **how)
    dx_NI = multiply(d, d_scales, first_IX, first_scales.T, g_NO.dtype)
    return dx_NI, along_tokens(d_XS, d_column_scales, x_IS, x_scales, dtype), d_second


@fp8_feed_forward_backward_op.register_fake
def _(
    g_NO: Tensor, kept: list[Tensor], dtype: torch.dtype, power_of_two: bool, library: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (i, x), (f, o) = kept[5].shape, kept[7].shape
    n = g_NO.shape[0]
    return g_NO.new_empty(n, i), g_NO.new_empty(x, i, dtype=dtype), g_NO.new_empty(o, f, dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.dtype = _one_dtype(inputs[1], inputs[2])
    ctx.power_of_two, ctx.library = inputs[3:5]
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    found = fp8_feed_forward_backward_op(
        gradients[0], list(ctx.saved_tensors), ctx.dtype, ctx.power_of_two, ctx.library
    )
    needed = [g if need else None for g, need in zip(found, ctx.needs_input_grad[:3], strict=True)]
    return *needed, None, None, None


fp8_feed_forward_op.register_autograd(_backward, setup_context=_keep)


def fp8_feed_forward(x_NI: Tensor, gate_up_XI: Tensor, down_OF: Tensor, *, power_of_two: bool, library: bool) -> Tensor:
    """down(silu(gate) * up) with both maps in E4M3 (arXiv:2412.19437, section 3.3). -> y_NO in the dtype of x.

    x: (N, I); gate_up: (2F, I), rows [0, F) the gate; down: (O, F); float32 or bfloat16. library: products by cuBLAS,
    which takes sizes that `product.supported` names. Raises ValueError for other shapes, dtypes or strides.
    """
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x_NI, gate_up_XI, down_OF))
    return fp8_feed_forward_op(x_NI, gate_up_XI, down_OF, power_of_two, library, keep)[0]


@operator("fp8_routed_experts")
def fp8_routed_experts_op(
    x_ND: Tensor, weight_NA: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor, token_of_row_P: Tensor,
    row_of_choice_NA: Tensor, offsets_E: Tensor, power_of_two: bool, keep: bool,
) -> list[Tensor]:  # fmt: skip
    how: dict[str, Any] = {"power_of_two": power_of_two}
    x_ND, gate_up_EXD, down_EDF = (contiguous_rows(t) for t in (x_ND, gate_up_EXD, down_EDF))
    x, x_scales, *_ = quantise_activation(x_ND, **how, rows=True, columns=False)
    first, first_EDX, first_scales = quantise_weight(gate_up_EXD, **how)
    gate_up_PX = grouped.grouped_product(x, x_scales, first, first_scales, offsets_E, token_of_row_P, x_ND.dtype)
    h, h_scales, *h_columns = swiglu_quantise(gate_up_PX, offsets_E, **how, rows=True, columns=keep)
    second, second_EFD, second_scales = quantise_weight(down_EDF, **how)
    y_PD = grouped.grouped_product(h, h_scales, second, second_scales, offsets_E, None, x_ND.dtype)
    y_ND = combine_op(y_PD, weight_NA, row_of_choice_NA)
    if not keep:
        return [y_ND, *_nothing(x_ND, N_KEPT + 1)]
    # The tiles along tokens are those of the sorted rows, so this copy is made behind the gather.
    *_, x_DS, x_column_scales = quantise_activation(x_ND, offsets_E, token_of_row_P, **how, rows=False, columns=True)
    kept = [gate_up_PX, x_DS, x_column_scales, *h_columns, first_EDX, first_scales, second_EFD, second_scales]
    return [y_ND, *kept, y_PD]


@fp8_routed_experts_op.register_fake
def _(
    x_ND: Tensor, weight_NA: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor, token_of_row_P: Tensor,
    row_of_choice_NA: Tensor, offsets_E: Tensor, power_of_two: bool, keep: bool,
) -> list[Tensor]:  # fmt: skip
    y_ND, p = x_ND.new_empty(x_ND.shape), token_of_row_P.shape[0]
    if not keep:
        return [y_ND, *_nothing(x_ND, N_KEPT + 1)]
    kept = _new_kept(x_ND, gate_up_EXD, down_EDF, p, offsets_E.shape[0])
    return [y_ND, *kept, x_ND.new_empty(p, x_ND.shape[1])]


@operator("fp8_routed_experts_backward")
def fp8_routed_experts_backward_op(
    g_ND: Tensor, kept: list[Tensor], weight_NA: Tensor, row_of_choice_NA: Tensor, offsets_E: Tensor,
    dtype: torch.dtype, power_of_two: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the input, the routing weights and both weights; `dtype`: that of the latter."""
    gate_up_PX, x_DS, x_scales, h_FS, h_scales, first_EDX, first_scales, second_EFD, second_scales, y_PD = kept
    how: dict[str, Any] = {"power_of_two": power_of_two, "rows": True, "columns": True}
    dy_PD, dweight_NA = combine_backward_op(y_PD, weight_NA, row_of_choice_NA, contiguous_rows(g_ND))
    g, g_scales, g_DS, g_column_scales = quantise_activation(dy_PD, offsets_E, **how)
    dh_PF = grouped.grouped_product(g, g_scales, second_EFD, second_scales.mT, offsets_E, None, g_ND.dtype)
    d_second = grouped.grouped_weight_gradient(g_DS, g_column_scales, h_FS, h_scales, offsets_E, dtype)
    d, d_scales, d_XS, d_column_scales, _ = swiglu_backward_quantise(gate_up_PX, dh_PF, offsets_E, **how)
    dx_PD = grouped.grouped_product(d, d_scales, first_EDX, first_scales.mT, offsets_E, None, g_ND.dtype)
    d_first = grouped.grouped_weight_gradient(d_XS, d_column_scales, x_DS, x_scales, offsets_E, dtype)
    return combine_op(dx_PD, None, row_of_choice_NA), dweight_NA, d_first, d_second


@fp8_routed_experts_backward_op.register_fake
def _(
    g_ND: Tensor, kept: list[Tensor], weight_NA: Tensor, row_of_choice_NA: Tensor, offsets_E: Tensor,
    dtype: torch.dtype, power_of_two: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (e, d, x), f = kept[5].shape, kept[7].shape[1]
    first, second = g_ND.new_empty(e, x, d, dtype=dtype), g_ND.new_empty(e, d, f, dtype=dtype)
    return g_ND.new_empty(g_ND.shape), weight_NA.new_empty(weight_NA.shape), first, second


def _keep_routed(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.dtype = _one_dtype(inputs[2], inputs[3])
    ctx.power_of_two = inputs[7]
    ctx.save_for_backward(*output[1:], inputs[1], *inputs[5:7])
    ctx.set_materialize_grads(False)


def _backward_routed(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    *kept, weight_NA, row_of_choice_NA, offsets_E = ctx.saved_tensors
    found = fp8_routed_experts_backward_op(
        gradients[0], kept, weight_NA, row_of_choice_NA, offsets_E, ctx.dtype, ctx.power_of_two
    )
    needed = [g if need else None for g, need in zip(found, ctx.needs_input_grad[:4], strict=True)]
    return *needed, None, None, None, None, None


fp8_routed_experts_op.register_autograd(_backward_routed, setup_context=_keep_routed)


def fp8_routed_experts(
    x_ND: Tensor, weight_NA: Tensor, gate_up_EXD: Tensor, down_EDF: Tensor, token_of_row_P: Tensor,
    row_of_choice_NA: Tensor, offsets_E: Tensor, *, power_of_two: bool,
) -> Tensor:  # fmt: skip
    """sum_a weight[n, a] down_e(silu(gate_e x) * up_e x), all maps in E4M3 (arXiv:2412.19437, eq. 12, section 3.3).

    x: (N, D), float32 or bfloat16; weight: (N, A) float32; gate_up: (E, 2F, D); down: (E, D, F). token_of_row_P: int32,
    token of each of the P = N A rows sorted by expert; row_of_choice_NA: int32, sorted row of each choice; offsets_E:
    int32 ends of the experts' rows. -> (N, D) in the dtype of x. Raises ValueError for other shapes, dtypes or strides.
    """
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x_ND, weight_NA, gate_up_EXD, down_EDF))
    return fp8_routed_experts_op(
        x_ND, weight_NA, gate_up_EXD, down_EDF, token_of_row_P, row_of_choice_NA, offsets_E, power_of_two, keep
    )[0]
