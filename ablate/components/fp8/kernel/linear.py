"""Linear maps in E4M3 on the GPU: quantisation and three products as one operator with its backward pass.

The arithmetic is that of ablate.components.fp8.emulation.Fp8Product with blockwise scales, summed in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ablate.components.fp8.kernel import grouped, layout, product, quantise
from ablate.kernels.launch import operator
from ablate.kernels.operands import check_offsets, contiguous_rows

BACKENDS = ("triton", "library")
Kept = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # the output, and what the backward pass needs


def new_kept(x_NI: Tensor, weight: Tensor, n_experts: int | None, columns: bool, transposed: bool) -> Kept:
    """Unwritten outputs of the forward operators, with empty tensors for what is not kept."""
    n, i = x_NI.shape
    by_column = layout.new_columns(x_NI, n, i, n_experts) if columns else layout.no_columns(x_NI)
    w = layout.new_weight(weight)[1:] if transposed else no_weight(weight)
    return x_NI.new_empty(n, weight.shape[-2]), *by_column, *w


def no_weight(like: Tensor) -> tuple[Tensor, Tensor]:
    """What stands for a transposed weight and scales that are not kept."""
    return like.new_empty(0, dtype=layout.E4M3), like.new_empty(0, dtype=torch.float32)


def new_gradients(g_NO: Tensor, n_inputs: int, matrices: tuple[int, ...], dtype: torch.dtype, x: bool, w: bool) -> Any:
    """Unwritten gradients of the input and of the weight, empty where they are not needed."""
    x_shape = (g_NO.shape[0], n_inputs) if x else (0,)
    return g_NO.new_empty(x_shape), g_NO.new_empty((*matrices, g_NO.shape[1], n_inputs) if w else (0,), dtype=dtype)


@operator("fp8_linear")
def fp8_linear_op(
    x_NI: Tensor, weight_OI: Tensor, power_of_two: bool, library: bool, keep_columns: bool, keep_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator of `fp8_linear`. -> y_NO; the input's column copy and the transposed weight, empty unless kept."""
    _check(x_NI, weight_OI, 2)
    x_NI, weight_OI = contiguous_rows(x_NI), contiguous_rows(weight_OI)
    values, scales, *columns = quantise.quantise_activation(
        x_NI, power_of_two=power_of_two, rows=True, columns=keep_columns
    )
    w_OI, w_IO, w_scales = quantise.quantise_weight(weight_OI, power_of_two=power_of_two)
    multiply = product.library_product if library else product.product
    y_NO = multiply(values, scales, w_OI, w_scales, x_NI.dtype)
    return y_NO, *columns, *((w_IO, w_scales) if keep_weight else no_weight(weight_OI))


@fp8_linear_op.register_fake
def _(
    x_NI: Tensor, weight_OI: Tensor, power_of_two: bool, library: bool, keep_columns: bool, keep_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return new_kept(x_NI, weight_OI, None, keep_columns, keep_weight)


@operator("fp8_linear_backward")
def fp8_linear_backward_op(
    g_NO: Tensor, x_IS: Tensor, x_scales_SI: Tensor, w_IO: Tensor, w_scales_OI: Tensor, n_inputs: int,
    dtype: torch.dtype, power_of_two: bool, library: bool, need_x: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`dtype`: of the weight and its gradient. n_inputs: I, as not every copy may be there."""
    dx_NI, dw_OI = new_gradients(g_NO, 0, (), dtype, False, False)
    g_rows, g_scales_ON, g_OS, g_scales_SO = quantise.quantise_activation(
        contiguous_rows(g_NO), power_of_two=power_of_two, rows=need_x, columns=need_weight
    )
    if need_x:
        multiply = product.library_product if library else product.product
        dx_NI = multiply(g_rows, g_scales_ON, w_IO, w_scales_OI.T, g_NO.dtype)
    if need_weight:
        multiply = product.library_weight_gradient if library else product.weight_gradient
        dw_OI = multiply(g_OS, g_scales_SO, x_IS, x_scales_SI, dtype)
    return dx_NI, dw_OI


@fp8_linear_backward_op.register_fake
def _(
    g_NO: Tensor, x_IS: Tensor, x_scales_SI: Tensor, w_IO: Tensor, w_scales_OI: Tensor, n_inputs: int,
    dtype: torch.dtype, power_of_two: bool, library: bool, need_x: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return new_gradients(g_NO, n_inputs, (), dtype, need_x, need_weight)


def only_y_is_differentiated(ctx: Any, output: Kept) -> None:
    """Else autograd would make zeros of the size of everything kept, as gradients of what is kept."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Kept) -> None:
    x_NI, weight, ctx.power_of_two, ctx.library = inputs[:4]
    ctx.n_inputs, ctx.dtype = x_NI.shape[1], weight.dtype
    ctx.save_for_backward(*output[1:])
    only_y_is_differentiated(ctx, output)


def _backward(ctx: Any, g_NO: Tensor, *_: Any) -> tuple[Any, ...]:
    need_x, need_weight = ctx.needs_input_grad[:2]
    dx_NI, dw_OI = fp8_linear_backward_op(
        g_NO, *ctx.saved_tensors, ctx.n_inputs, ctx.dtype, ctx.power_of_two, ctx.library, need_x, need_weight
    )
    return dx_NI if need_x else None, dw_OI if need_weight else None, None, None, None, None


fp8_linear_op.register_autograd(_backward, setup_context=_keep)


def fp8_linear(x_NI: Tensor, weight_OI: Tensor, *, power_of_two: bool, backend: str) -> Tensor:
    """x w^T in E4M3 (arXiv:2412.19437, section 3.3), its gradients too. -> y_NO in the dtype of x.

    x: (N, I), weight: (O, I); float32 or bfloat16. power_of_two: scales are powers of two. backend: `triton`, this
    program's products, or `library`, cuBLAS's (`product.supported` says why not). Raises ValueError for anything else.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; of a linear map in FP8 there are: {', '.join(BACKENDS)}")
    if library := backend == "library":
        machine = product.machine_of(x_NI.device)
        if obstacle := product.supported(machine, weight_OI.shape[1], weight_OI.shape[0], x_NI.shape[0]):
            raise ValueError(f"backend is 'library', and {obstacle}: choose backend triton")
    return fp8_linear_op(x_NI, weight_OI, power_of_two, library, *kept(x_NI, weight_OI))[0]


def kept(x: Tensor, weight: Tensor) -> tuple[bool, bool]:
    """Whether a backward pass may need the input's column copy, and the transposed weight."""
    return (
        torch.is_grad_enabled() and weight.requires_grad,
        torch.is_grad_enabled() and x.requires_grad,
    )


def _check(x: Tensor, weight: Tensor, n_dims: int) -> None:
    if x.ndim != 2 or weight.ndim != n_dims or x.shape[1] != weight.shape[-1]:
        wanted = "(N, I) and (O, I)" if n_dims == 2 else "(N, I) and (E, O, I)"
        raise ValueError(f"input and weight have shapes {tuple(x.shape)} and {tuple(weight.shape)}; not {wanted}")


@operator("fp8_grouped_linear")
def fp8_grouped_linear_op(
    x_PI: Tensor, weight_EOI: Tensor, offsets_E: Tensor, power_of_two: bool, keep_columns: bool, keep_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator behind `fp8_grouped_linear`; results as of `fp8_linear_op`."""
    _check(x_PI, weight_EOI, 3)
    check_offsets(offsets_E, weight_EOI.shape[0])
    x_PI, weight_EOI = contiguous_rows(x_PI), contiguous_rows(weight_EOI)
    values, scales, *columns = quantise.quantise_activation(
        x_PI, offsets_E, power_of_two=power_of_two, rows=True, columns=keep_columns
    )
    w_EOI, w_EIO, w_scales = quantise.quantise_weight(weight_EOI, power_of_two=power_of_two)
    y_PO = grouped.grouped_product(values, scales, w_EOI, w_scales, offsets_E, None, x_PI.dtype)
    return y_PO, *columns, *((w_EIO, w_scales) if keep_weight else no_weight(weight_EOI))


@fp8_grouped_linear_op.register_fake
def _(
    x_PI: Tensor, weight_EOI: Tensor, offsets_E: Tensor, power_of_two: bool, keep_columns: bool, keep_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return new_kept(x_PI, weight_EOI, offsets_E.shape[0], keep_columns, keep_weight)


@operator("fp8_grouped_linear_backward")
def fp8_grouped_linear_backward_op(
    g_PO: Tensor, x_IS: Tensor, x_scales_SI: Tensor, w_EIO: Tensor, w_scales_EOI: Tensor, offsets_E: Tensor,
    n_inputs: int, dtype: torch.dtype, power_of_two: bool, need_x: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients as of `fp8_linear_backward_op`, of rows sorted by expert and their experts' matrices."""
    dx_PI, dw_EOI = new_gradients(g_PO, 0, (), dtype, False, False)
    g_rows, g_scales_OP, g_OS, g_scales_SO = quantise.quantise_activation(
        contiguous_rows(g_PO), offsets_E, power_of_two=power_of_two, rows=need_x, columns=need_weight
    )
    if need_x:
        dx_PI = grouped.grouped_product(g_rows, g_scales_OP, w_EIO, w_scales_EOI.mT, offsets_E, None, g_PO.dtype)
    if need_weight:
        dw_EOI = grouped.grouped_weight_gradient(g_OS, g_scales_SO, x_IS, x_scales_SI, offsets_E, dtype)
    return dx_PI, dw_EOI


@fp8_grouped_linear_backward_op.register_fake
def _(
    g_PO: Tensor, x_IS: Tensor, x_scales_SI: Tensor, w_EIO: Tensor, w_scales_EOI: Tensor, offsets_E: Tensor,
    n_inputs: int, dtype: torch.dtype, power_of_two: bool, need_x: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return new_gradients(g_PO, n_inputs, (offsets_E.shape[0],), dtype, need_x, need_weight)


def _keep_grouped(ctx: Any, inputs: tuple[Any, ...], output: Kept) -> None:
    x_PI, weight, offsets_E, ctx.power_of_two = inputs[:4]
    ctx.n_inputs, ctx.dtype = x_PI.shape[1], weight.dtype
    ctx.save_for_backward(*output[1:], offsets_E)
    only_y_is_differentiated(ctx, output)


def _backward_grouped(ctx: Any, g_PO: Tensor, *_: Any) -> tuple[Any, ...]:
    need_x, need_weight = ctx.needs_input_grad[:2]
    dx_PI, dw_EOI = fp8_grouped_linear_backward_op(
        g_PO, *ctx.saved_tensors, ctx.n_inputs, ctx.dtype, ctx.power_of_two, need_x, need_weight
    )
    return dx_PI if need_x else None, dw_EOI if need_weight else None, None, None, None, None


fp8_grouped_linear_op.register_autograd(_backward_grouped, setup_context=_keep_grouped)


def fp8_grouped_linear(x_PI: Tensor, weight_EOI: Tensor, offsets_E: Tensor, *, power_of_two: bool) -> Tensor:
    """`fp8_linear` of rows sorted by expert, each with its expert's matrix. -> y_PO in the dtype of x.

    x: (P, I), weight: (E, O, I); float32 or bfloat16. offsets_E: int32 ends of the experts' rows; the last is P.
    Raises ValueError for other shapes or dtypes.
    """
    return fp8_grouped_linear_op(x_PI, weight_EOI, offsets_E, power_of_two, *kept(x_PI, weight_EOI))[0]
