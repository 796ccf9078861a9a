"""Root-mean-square norm (arXiv:1910.07467) in one read, and its backward pass in one read of input and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.kernels.launch import ceil_div, launch, machine_of, next_power_of_2, operator
from ablate.kernels.operands import DTYPES, check_rows, check_shape, contiguous_rows
from ablate.kernels.table import Table

TABLE = Table(Path(__file__).with_name("rms_norm.json"))
KERNELS: dict[str, tuple[str, ...]] = {"rms_norm_forward_kernel": (), "rms_norm_backward_kernel": ()}
PARTIAL_SUMS = 528  # programs of the backward pass, four for each multiprocessor of a Hopper chip


@triton.jit
def rms_norm_forward_kernel(
    x_ptr, weight_ptr, y_ptr, rstd_ptr, n_rows, dim, stride_xn, eps, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The norm of ROWS whole rows, and their factors 1 / sqrt(mean(x^2) + eps), float32."""
    row_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column_D = tl.arange(0, BLOCK_D)
    inside_ND = (row_N[:, None] < n_rows) & (column_D[None, :] < dim)
    x_ND = tl.load(x_ptr + row_N[:, None].to(tl.int64) * stride_xn + column_D[None, :], inside_ND, other=0.0)
    x_ND = x_ND.to(tl.float32)
    rstd_N = 1.0 / tl.sqrt_rn(tl.sum(x_ND * x_ND, 1) / dim + eps)
    weight_D = tl.load(weight_ptr + column_D, column_D < dim, other=0.0).to(tl.float32)
    y_ND = x_ND * rstd_N[:, None] * weight_D[None, :]
    to_ND = y_ptr + row_N[:, None].to(tl.int64) * dim + column_D[None, :]
    tl.store(to_ND, y_ND.to(y_ptr.dtype.element_ty), inside_ND)
    tl.store(rstd_ptr + row_N, rstd_N, row_N < n_rows)


@triton.jit
def rms_norm_backward_kernel(
    x_ptr, weight_ptr, g_ptr, rstd_ptr, dx_ptr, dw_ptr, n_rows, dim, stride_xn, stride_gn,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx of a strided share of the rows, and the sum over them of the weight's gradient: dw_ptr is (programs, dim)."""
    column_D = tl.arange(0, BLOCK_D)
    weight_D = tl.load(weight_ptr + column_D, column_D < dim, other=0.0).to(tl.float32)
    dw_D = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(tl.program_id(0) * ROWS, n_rows, tl.num_programs(0) * ROWS):
        row_N = start + tl.arange(0, ROWS)
        inside_ND = (row_N[:, None] < n_rows) & (column_D[None, :] < dim)
        wide_N = row_N[:, None].to(tl.int64)
        x_ND = tl.load(x_ptr + wide_N * stride_xn + column_D[None, :], inside_ND, other=0.0).to(tl.float32)
        g_ND = tl.load(g_ptr + wide_N * stride_gn + column_D[None, :], inside_ND, other=0.0).to(tl.float32)
        rstd_N = tl.load(rstd_ptr + row_N, row_N < n_rows, other=0.0)
        unit_ND = x_ND * rstd_N[:, None]
        dw_D += tl.sum(g_ND * unit_ND, 0)
        g_ND *= weight_D[None, :]
        along_N = tl.sum(g_ND * unit_ND, 1) / dim
        dx_ND = (g_ND - unit_ND * along_N[:, None]) * rstd_N[:, None]
        tl.store(dx_ptr + wide_N * dim + column_D[None, :], dx_ND.to(dx_ptr.dtype.element_ty), inside_ND)
    tl.store(dw_ptr + tl.program_id(0).to(tl.int64) * dim + column_D, dw_D, column_D < dim)


@operator("rms_norm")
def rms_norm_op(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The operator behind `rms_norm`, for x of shape (N, D). -> y (N, D), and the rows' float32 factors (N,)."""
    n, d = x_ND.shape
    check_rows("the norm's input", x_ND, DTYPES, 2)
    check_rows("the norm's weight", weight_D, DTYPES, 1)
    check_shape("the norm's weight", weight_D, (d,))
    y_ND, rstd_N = _outputs(x_ND)
    chosen = TABLE.choose("rms_norm_forward", machine_of(x_ND.device), D=d)
    rows, block = chosen.blocks["ROWS"], next_power_of_2(d)
    launch(
        rms_norm_forward_kernel, (ceil_div(n, rows),), x_ND, weight_D, y_ND, rstd_N, n, d, x_ND.stride(0), eps,
        **chosen.options, BLOCK_D=block,
    )  # fmt: skip
    return y_ND, rstd_N


@rms_norm_op.register_fake
def _(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _outputs(x_ND)


def _outputs(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    return x_ND.new_empty(x_ND.shape), x_ND.new_empty(x_ND.shape[0], dtype=torch.float32)


@operator("rms_norm_backward")
def rms_norm_backward_op(x_ND: Tensor, weight_D: Tensor, rstd_N: Tensor, g_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (N, D) and of the weight (D,) from the factors that the forward pass kept, and dy (N, D)."""
    n, d = x_ND.shape
    g_ND = contiguous_rows(g_ND)
    chosen = TABLE.choose("rms_norm_backward", machine_of(x_ND.device), D=d)
    rows, block = chosen.blocks["ROWS"], next_power_of_2(d)
    n_programs = min(PARTIAL_SUMS, ceil_div(n, rows))
    dx_ND, dw_GD = x_ND.new_empty(n, d), x_ND.new_empty(n_programs, d, dtype=torch.float32)
    launch(
        rms_norm_backward_kernel, (n_programs,), x_ND, weight_D, g_ND, rstd_N, dx_ND, dw_GD, n, d, x_ND.stride(0),
        g_ND.stride(0), **chosen.options, BLOCK_D=block,
    )  # fmt: skip
    return dx_ND, dw_GD.sum(0).to(weight_D.dtype)


@rms_norm_backward_op.register_fake
def _(x_ND: Tensor, weight_D: Tensor, rstd_N: Tensor, g_ND: Tensor) -> tuple[Tensor, Tensor]:
    return x_ND.new_empty(x_ND.shape), weight_D.new_empty(weight_D.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or zeros are made for the factors


def _backward(ctx: Any, g_ND: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    x_ND, weight_D, rstd_N = ctx.saved_tensors
    dx_ND, dw_D = rms_norm_backward_op(x_ND, weight_D, rstd_N, g_ND)
    return dx_ND, dw_D, None


rms_norm_op.register_autograd(_backward, setup_context=_keep)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight along the last axis, float32 inside. -> shape and dtype of x.

    x: (..., D), float32 or bfloat16; weight: (D,), either. Raises ValueError for other dtypes or strides.
    """
    y_ND, _ = rms_norm_op(x.reshape(-1, x.shape[-1]), weight_D, eps)
    return y_ND.view(x.shape)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    for dim in (512, 2048, 7168):
        x_ND = torch.empty(4096, dim, dtype=torch.bfloat16, device="meta")
        weight_D = torch.empty(dim, device="meta")
        y_ND, rstd_N = rms_norm_op.launched(x_ND, weight_D, 1e-6)
        yield rms_norm_backward_op.launched(x_ND, weight_D, rstd_N, y_ND)
