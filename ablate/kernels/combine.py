"""Rows of sorted (token, choice) pairs back to their tokens, weighed and summed; and the way back, in one read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.kernels.launch import ceil_div, launch, machine_of, operator
from ablate.kernels.operands import DTYPES, check_contiguous, check_rows, check_shape, contiguous_rows
from ablate.kernels.table import Table

TABLE = Table(Path(__file__).with_name("combine.json"))
KERNELS: dict[str, tuple[str, ...]] = {"combine_forward_kernel": (), "combine_backward_kernel": ()}


@triton.jit
def combine_forward_kernel(
    y_ptr, weight_ptr, place_ptr, out_ptr, n_tokens, dim, stride_yp,
    A: tl.constexpr, WEIGHED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    wide_N = row_N.to(tl.int64)
    inside_ND = (row_N < n_tokens)[:, None] & (column_D < dim)[None, :]
    sum_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    # Unrolled, so that the reads of all choices are in flight together.
    for a in tl.static_range(A):
        place_N = tl.load(place_ptr + wide_N * A + a, row_N < n_tokens, other=0).to(tl.int64)
        y_ND = tl.load(y_ptr + place_N[:, None] * stride_yp + column_D[None, :], inside_ND, other=0.0).to(tl.float32)
        if WEIGHED:
            y_ND *= tl.load(weight_ptr + wide_N * A + a, row_N < n_tokens, other=0.0)[:, None]
        sum_ND += y_ND
    tl.store(out_ptr + wide_N[:, None] * dim + column_D[None, :], sum_ND.to(out_ptr.dtype.element_ty), inside_ND)


@triton.jit
def combine_backward_kernel(
    y_ptr, weight_ptr, place_ptr, g_ptr, dy_ptr, dweight_ptr, n_pairs, dim, stride_yp, stride_gn,
    A: tl.constexpr, WEIGHED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of BLOCK_P pairs in the order of their tokens: the row's gradient, and the inner product that is the weight's."""
    pair_P = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside_P = pair_P < n_pairs
    place_P = tl.load(place_ptr + pair_P, inside_P, other=0).to(tl.int64)
    from_P = g_ptr + pair_P // A * stride_gn
    if WEIGHED:
        weight_P = tl.load(weight_ptr + pair_P, inside_P, other=0.0)
        along_PD = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    for start in range(0, dim, BLOCK_D):
        column_D = start + tl.arange(0, BLOCK_D)
        inside_PD = inside_P[:, None] & (column_D < dim)[None, :]
        g_PD = tl.load(from_P[:, None] + column_D[None, :], inside_PD, other=0.0).to(tl.float32)
        if WEIGHED:
            y_PD = tl.load(y_ptr + place_P[:, None] * stride_yp + column_D[None, :], inside_PD, other=0.0)
            along_PD += y_PD.to(tl.float32) * g_PD
            g_PD *= weight_P[:, None]
        to_PD = dy_ptr + place_P[:, None] * dim + column_D[None, :]
        tl.store(to_PD, g_PD.to(dy_ptr.dtype.element_ty), inside_PD)
    if WEIGHED:
        tl.store(dweight_ptr + pair_P, tl.sum(along_PD, 1), inside_P)


@operator("combine")
def combine_op(y_PD: Tensor, weight_NA: Tensor | None, row_of_choice_NA: Tensor) -> Tensor:
    _check(y_PD, weight_NA, row_of_choice_NA)
    (n, a), d = row_of_choice_NA.shape, y_PD.shape[1]
    out_ND = y_PD.new_empty(n, d)
    chosen = TABLE.choose("combine_forward", machine_of(y_PD.device), D=d)
    grid = (ceil_div(n, chosen.blocks["BLOCK_N"]), ceil_div(d, chosen.blocks["BLOCK_D"]))
    launch(
        combine_forward_kernel, grid, y_PD, weight_NA, row_of_choice_NA, out_ND, n, d, y_PD.stride(0),
        A=a, WEIGHED=weight_NA is not None, **chosen.options,
    )  # fmt: skip
    return out_ND


@combine_op.register_fake
def _(y_PD: Tensor, weight_NA: Tensor | None, row_of_choice_NA: Tensor) -> Tensor:
    return y_PD.new_empty(row_of_choice_NA.shape[0], y_PD.shape[1])


@operator("combine_backward")
def combine_backward_op(
    y_PD: Tensor, weight_NA: Tensor | None, row_of_choice_NA: Tensor, g_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of rows and of weights; the second is empty, and the rows are not read, where there are no weights."""
    _check(y_PD, weight_NA, row_of_choice_NA)
    (n, a), d = row_of_choice_NA.shape, y_PD.shape[1]
    check_shape("the sums' gradient", g_ND, (n, d))
    g_ND = contiguous_rows(g_ND)
    dy_PD, dweight_NA = _gradients(y_PD, weight_NA)
    chosen = TABLE.choose("combine_backward", machine_of(y_PD.device), D=d)
    launch(
        combine_backward_kernel, (ceil_div(n * a, chosen.blocks["BLOCK_P"]),), y_PD, weight_NA, row_of_choice_NA, g_ND,
        dy_PD, dweight_NA, n * a, d, y_PD.stride(0), g_ND.stride(0), A=a, WEIGHED=weight_NA is not None,
        **chosen.options,
    )  # fmt: skip
    return dy_PD, dweight_NA


@combine_backward_op.register_fake
def _(y_PD: Tensor, weight_NA: Tensor | None, row_of_choice_NA: Tensor, g_ND: Tensor) -> tuple[Tensor, Tensor]:
    return _gradients(y_PD, weight_NA)


def _gradients(y_PD: Tensor, weight_NA: Tensor | None) -> tuple[Tensor, Tensor]:
    dweight_NA = y_PD.new_empty(0, dtype=torch.float32) if weight_NA is None else weight_NA.new_empty(weight_NA.shape)
    return y_PD.new_empty(y_PD.shape), dweight_NA


def _check(y_PD: Tensor, weight_NA: Tensor | None, row_of_choice_NA: Tensor) -> None:
    check_rows("the rows to combine", y_PD, DTYPES, 2)
    check_rows("the rows of the choices", row_of_choice_NA, (torch.int32,), 2)
    check_contiguous("the rows of the choices", row_of_choice_NA)
    check_shape("the rows to combine", y_PD, (row_of_choice_NA.numel(), y_PD.shape[1]))
    if weight_NA is not None:
        check_rows("the weights of the choices", weight_NA, (torch.float32,), 2)
        check_shape("the weights of the choices", weight_NA, row_of_choice_NA.shape)
        check_contiguous("the weights of the choices", weight_NA)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g_ND: Tensor) -> tuple[Tensor, Tensor | None, None]:
    y_PD, weight_NA, row_of_choice_NA = ctx.saved_tensors
    dy_PD, dweight_NA = combine_backward_op(y_PD, weight_NA, row_of_choice_NA, g_ND)
    return dy_PD, None if weight_NA is None else dweight_NA, None


combine_op.register_autograd(_backward, setup_context=_keep)


def combine(y_PD: Tensor, weight_NA: Tensor | None, row_of_choice_NA: Tensor) -> Tensor:
    """sum_a weight[n, a] y[place[n, a]], the sum of arXiv:2412.19437, eq. 12, over rows that stand sorted by expert.

    y: (P, D), float32 or bfloat16; weight: (N, A) float32, or None for ones; place: (N, A) int32, a permutation of the
    P = N A rows (not checked). Summed in float32, in the order of a. -> (N, D) of y's dtype; differentiable with
    respect to y and weight, whose gradients are bit for bit the same from run to run. Raises ValueError for other
    dtypes, shapes or strides.
    """
    return combine_op(y_PD, weight_NA, row_of_choice_NA)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    for dim, activated in ((512, 2), (2048, 6), (7168, 8)):
        y_PD = torch.empty(4096 * activated, dim, dtype=torch.bfloat16, device="meta")
        row_of_choice_NA = torch.empty(4096, activated, dtype=torch.int32, device="meta")
        for weight_NA in (torch.empty(4096, activated, device="meta"), None):
            out_ND = combine_op.launched(y_PD, weight_NA, row_of_choice_NA)
            yield combine_backward_op.launched(y_PD, weight_NA, row_of_choice_NA, out_ND)
