"""Gradients of the matrices of experts, whose rows are sorted by expert: one product along the rows of each expert."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.kernels.launch import ceil_div, choose, launch, operator
from ablate.kernels.operands import DTYPES, check_offsets, check_row_numbers, check_rows, check_shape
from ablate.kernels.table import Configuration, Table
from ablate.kernels.tiles import tile_at

TABLE = Table(Path(__file__).with_name("grouped_weight_gradient.json"))
KERNELS: dict[str, tuple[str, ...]] = {"grouped_weight_gradient_kernel": ("wgmma",)}
# Of float32 on a device: see launch.choose.
EXACT = Configuration(
    blocks={"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 4}, num_warps=4, num_stages=1
)  # fmt: skip


@triton.jit
def grouped_weight_gradient_kernel(
    g_ptr, g_rows_ptr, x_ptr, x_rows_ptr, offsets_ptr, dw_ptr, o, i, stride_gp, stride_xp,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """dw[e] = sum over the rows of expert e of g_O x_I; zeros for an expert without rows."""
    o_tiles, i_tiles = tl.cdiv(o, BLOCK_M), tl.cdiv(i, BLOCK_N)
    expert = tl.program_id(0) // (o_tiles * i_tiles)
    o_tile, i_tile = tile_at(tl.program_id(0) - expert * o_tiles * i_tiles, o_tiles, i_tiles, GROUP_M)
    end = tl.load(offsets_ptr + expert)
    start = tl.load(offsets_ptr + expert - 1, expert > 0, other=0)
    column_O = o_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column_I = i_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    acc_OI = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(start, end, BLOCK_K):
        # Both sides are masked: zeros on one do not silence a NaN of the next expert on the other.
        row_P = first + tl.arange(0, BLOCK_K)
        inside_P = row_P < end
        g_row_P = row_P
        if g_rows_ptr is not None:
            g_row_P = tl.load(g_rows_ptr + row_P, inside_P, other=0)
        x_row_P = row_P
        if x_rows_ptr is not None:
            x_row_P = tl.load(x_rows_ptr + row_P, inside_P, other=0)
        from_PO = g_ptr + g_row_P[:, None].to(tl.int64) * stride_gp + column_O[None, :]
        from_PI = x_ptr + x_row_P[:, None].to(tl.int64) * stride_xp + column_I[None, :]
        g_PO = tl.load(from_PO, inside_P[:, None] & (column_O < o)[None, :], other=0.0)
        x_PI = tl.load(from_PI, inside_P[:, None] & (column_I < i)[None, :], other=0.0)
        acc_OI = tl.dot(tl.trans(g_PO), x_PI, acc_OI, input_precision="ieee")
    to_OI = dw_ptr + (expert.to(tl.int64) * o + column_O[:, None]) * i + column_I[None, :]
    tl.store(to_OI, acc_OI.to(dw_ptr.dtype.element_ty), (column_O < o)[:, None] & (column_I < i)[None, :])


@operator("grouped_weight_gradient")
def grouped_weight_gradient_op(
    g_PO: Tensor, x_PI: Tensor, offsets_E: Tensor, g_rows_P: Tensor | None, x_rows_P: Tensor | None, dtype: torch.dtype
) -> Tensor:
    check_rows("the output's gradient", g_PO, DTYPES, 2)
    check_rows("the input", x_PI, (g_PO.dtype,), 2)
    check_offsets(offsets_E, offsets_E.shape[0])
    if dtype not in (g_PO.dtype, torch.float32):
        raise ValueError(f"the weights' gradient is asked for in {dtype}; it can be {g_PO.dtype} or torch.float32")
    p = g_PO.shape[0] if g_rows_P is None else g_rows_P.shape[0]
    check_row_numbers("the output gradient's rows", g_rows_P)
    check_row_numbers("the input's rows", x_rows_P, p)
    if x_rows_P is None:
        check_shape("the input", x_PI, (p, x_PI.shape[1]))
    e, o, i = offsets_E.shape[0], g_PO.shape[1], x_PI.shape[1]
    dw_EOI = g_PO.new_empty(e, o, i, dtype=dtype)
    if not dw_EOI.numel():
        return dw_EOI
    gathered = g_rows_P is not None or x_rows_P is not None
    kernel = "gathered_weight_gradient" if gathered else "grouped_weight_gradient"
    chosen = choose(TABLE, kernel, g_PO, EXACT, ROWS=p // e, M=o, N=i)
    tiles = ceil_div(o, chosen.blocks["BLOCK_M"]) * ceil_div(i, chosen.blocks["BLOCK_N"])
    launch(
        grouped_weight_gradient_kernel, (e * tiles,), g_PO, g_rows_P, x_PI, x_rows_P, offsets_E, dw_EOI, o, i,
        g_PO.stride(0), x_PI.stride(0), **chosen.options,
    )  # fmt: skip
    return dw_EOI


@grouped_weight_gradient_op.register_fake
def _(
    g_PO: Tensor, x_PI: Tensor, offsets_E: Tensor, g_rows_P: Tensor | None, x_rows_P: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return g_PO.new_empty(offsets_E.shape[0], g_PO.shape[1], x_PI.shape[1], dtype=dtype)


def grouped_weight_gradient(
    g_PO: Tensor, x_PI: Tensor, offsets_E: Tensor, *,
    g_rows_P: Tensor | None = None, x_rows_P: Tensor | None = None, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """dw[e] = sum over the rows p of expert e of g[p]^T x[p]: gradient of y[p] = x[p] w[e]^T by the matrices w.

    g, x: both float32 or both bfloat16, last axes contiguous. offsets_E: int32 (E,), ends of the experts' rows, the
    last of them P. g_rows_P, x_rows_P: int32 (P,); where given, row p of that side is row rows[p] of a tensor of any
    number of rows. Sums in float32, in the order of the rows. -> (E, O, I) of `dtype`: that of g (default) or float32;
    zeros for an expert without rows. Raises ValueError for other dtypes, shapes or strides.
    """
    return grouped_weight_gradient_op(g_PO, x_PI, offsets_E, g_rows_P, x_rows_P, dtype or g_PO.dtype)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration, each without and with gathered rows."""
    for e, p, i, o in ((8, 32768, 7168, 4096), (128, 262144, 2048, 1536), (256, 32768, 512, 256)):
        offsets_E, token_of_row_P = (torch.empty(n, dtype=torch.int32, device="meta") for n in (e, p))
        g_PO, x_PI = (torch.empty(p, width, dtype=torch.bfloat16, device="meta") for width in (o, i))
        for dtype in DTYPES:
            yield grouped_weight_gradient_op.launched(g_PO, x_PI, offsets_E, None, None, dtype)
        yield grouped_weight_gradient_op.launched(g_PO, x_PI, offsets_E, token_of_row_P, None, torch.bfloat16)
        yield grouped_weight_gradient_op.launched(g_PO, x_PI, offsets_E, None, token_of_row_P, torch.bfloat16)
