"""Gradients of the matrices of experts, whose rows are sorted by expert: one product along the rows of each expert.

Letters: P rows sorted by expert, E experts, O outputs and I inputs; a tile has BLOCK_M outputs and BLOCK_N inputs and
sums BLOCK_K rows at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.kernels.launch import ceil_div, choose, describe_rows, launch, operator
from ablate.kernels.operands import DTYPES, check_aligned, check_offsets, check_row_numbers, check_rows, check_shape
from ablate.kernels.table import Configuration, Table
from ablate.kernels.tiles import tile_at

TABLE = Table(Path(__file__).with_name("grouped_weight_gradient.json"))
KERNELS: dict[str, tuple[str, ...]] = {"grouped_weight_gradient_kernel": ("wgmma", "tma")}
# Of float32 on a device: see launch.choose.
EXACT = Configuration(
    blocks={"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 4}, num_warps=4, num_stages=1
)  # fmt: skip


@triton.jit
def rows_of(
    desc, ptr, rows_ptr, first, end, column, n_columns, stride,
    PARTIAL: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows [first, first + BLOCK_K) from a column on, by the memory accelerator; gathered ones by their numbers.

    PARTIAL: some lie beyond the expert's last; they are zeros, as zeros on the other side do not silence their NaN.
    """
    row_P = first + tl.arange(0, BLOCK_K)
    if rows_ptr is None:
        x_PN = desc.load([first, column])
        if PARTIAL:
            x_PN = tl.where((row_P < end)[:, None], x_PN, 0.0)
    else:
        inside_P = row_P < end
        column_N = column + tl.arange(0, BLOCK)
        source_P = tl.load(rows_ptr + row_P, inside_P, other=0).to(tl.int64)
        from_PN = ptr + source_P[:, None] * stride + column_N[None, :]
        x_PN = tl.load(from_PN, inside_P[:, None] & (column_N < n_columns)[None, :], other=0.0)
    return x_PN


@triton.jit
def grouped_weight_gradient_kernel(
    g_desc, g_ptr, g_rows_ptr, x_desc, x_ptr, x_rows_ptr, offsets_ptr, dw_ptr, o, i, stride_gp, stride_xp,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """dw[e] = sum over the rows of expert e of g_O x_I; zeros for an expert without rows."""
    o_tiles, i_tiles = tl.cdiv(o, BLOCK_M), tl.cdiv(i, BLOCK_N)
    expert = tl.program_id(0) // (o_tiles * i_tiles)
    o_tile, i_tile = tile_at(tl.program_id(0) - expert * o_tiles * i_tiles, o_tiles, i_tiles, GROUP_M)
    end = tl.load(offsets_ptr + expert)
    start = tl.load(offsets_ptr + expert - 1, expert > 0, other=0)
    full_end = start + (end - start) // BLOCK_K * BLOCK_K
    first_O, first_I = o_tile * BLOCK_M, i_tile * BLOCK_N
    acc_OI = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(start, full_end, BLOCK_K):
        g_PO = rows_of(g_desc, g_ptr, g_rows_ptr, first, end, first_O, o, stride_gp, False, BLOCK_K, BLOCK_M)
        x_PI = rows_of(x_desc, x_ptr, x_rows_ptr, first, end, first_I, i, stride_xp, False, BLOCK_K, BLOCK_N)
        acc_OI = tl.dot(tl.trans(g_PO), x_PI, acc_OI, input_precision="ieee")
    if full_end < end:
        g_PO = rows_of(g_desc, g_ptr, g_rows_ptr, full_end, end, first_O, o, stride_gp, True, BLOCK_K, BLOCK_M)
        x_PI = rows_of(x_desc, x_ptr, x_rows_ptr, full_end, end, first_I, i, stride_xp, True, BLOCK_K, BLOCK_N)
        acc_OI = tl.dot(tl.trans(g_PO), x_PI, acc_OI, input_precision="ieee")
    column_O, column_I = first_O + tl.arange(0, BLOCK_M), first_I + tl.arange(0, BLOCK_N)
    to_OI = dw_ptr + (expert.to(tl.int64) * o + column_O[:, None]) * i + column_I[None, :]
    tl.store(to_OI, acc_OI.to(dw_ptr.dtype.element_ty), (column_O < o)[:, None] & (column_I < i)[None, :])


@operator("grouped_weight_gradient")
def grouped_weight_gradient_op(
    g_PO: Tensor, x_PI: Tensor, offsets_E: Tensor, g_rows_P: Tensor | None, x_rows_P: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The operator behind `grouped_weight_gradient`, with its arguments, result and errors."""
    check_rows("the output's gradient", g_PO, DTYPES, 2)
    check_rows("the input", x_PI, (g_PO.dtype,), 2)
    check_offsets(offsets_E, offsets_E.shape[0])
    if dtype not in (g_PO.dtype, torch.float32):
        raise ValueError(f"the weights' gradient is asked for in {dtype}; it can be {g_PO.dtype} or torch.float32")
    p = g_PO.shape[0] if g_rows_P is None else g_rows_P.shape[0]
    for name, rows_P, t in (("the output's gradient", g_rows_P, g_PO), ("the input", x_rows_P, x_PI)):
        if rows_P is None:
            check_aligned(name, t)
    check_row_numbers("the output gradient's rows", g_rows_P)
    check_row_numbers("the input's rows", x_rows_P, p)
    if x_rows_P is None:
        check_shape("the input", x_PI, (p, x_PI.shape[1]))
    e, o, i = offsets_E.shape[0], g_PO.shape[1], x_PI.shape[1]
    dw_EOI = g_PO.new_empty(e, o, i, dtype=dtype)
    if not dw_EOI.numel():
        return dw_EOI
    if not p:
        return dw_EOI.zero_()
    gathered = g_rows_P is not None or x_rows_P is not None
    kernel = "gathered_weight_gradient" if gathered else "grouped_weight_gradient"
    chosen = choose(TABLE, kernel, g_PO, EXACT, ROWS=p // e, M=o, N=i)
    block_o, block_i, block_p = (chosen.blocks[f"BLOCK_{axis}"] for axis in "MNK")
    launch(
        grouped_weight_gradient_kernel, (e * ceil_div(o, block_o) * ceil_div(i, block_i),),
        *_read_by(g_PO, g_rows_P, (block_p, block_o)), *_read_by(x_PI, x_rows_P, (block_p, block_i)), offsets_E,
        dw_EOI, o, i, g_PO.stride(0), x_PI.stride(0), **chosen.options,
    )  # fmt: skip
    return dw_EOI


def _read_by(x_PN: Tensor, rows_P: Tensor | None, block: tuple[int, int]) -> tuple[Any, Tensor | None, Tensor | None]:
    """A side's descriptor where its rows stand as they are multiplied; else the tensor and its row numbers."""
    if rows_P is not None:
        return None, x_PN, rows_P
    return describe_rows(x_PN, block), None, None


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
    zeros for an expert without rows. Raises ValueError for other dtypes, shapes or strides; rows that are read as they
    stand must start in multiples of 16 bytes.
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
