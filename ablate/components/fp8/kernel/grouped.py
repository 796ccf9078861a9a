"""Products of E4M3 matrices of experts, whose rows are sorted by expert: outputs and both gradients.

arXiv:2412.19437, section 3.3, as product.py; which rows an expert has is known on the device only (offsets_E, int32
ends of the experts' rows), so that a fixed number of programs finds its tiles from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.components.fp8.kernel import layout
from ablate.components.fp8.kernel.product import TILE, check_output, check_quantised, choose, promote
from ablate.kernels.launch import ceil_div, describe, launch, next_power_of_2, operator
from ablate.kernels.operands import DTYPES, check_offsets, check_row_numbers, check_shape
from ablate.kernels.table import Table
from ablate.kernels.tiles import expert_of_tile, expert_rows, tile_at, tiles_of_experts

TABLE = Table(Path(__file__).with_name("grouped.json"))
KERNELS: dict[str, tuple[str, ...]] = {
    "fp8_grouped_product_kernel": ("qgmma", "tma"),
    "fp8_grouped_gradient_kernel": ("qgmma", "tma"),
}


@triton.jit
def fp8_grouped_product_kernel(
    a_desc, a_ptr, rows_ptr, w_desc, a_scales_ptr, w_scales_ptr, offsets_ptr, y_ptr, o, k, n_experts, stride_an,
    stride_sk, stride_te, stride_to, stride_tk,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, GROUP_M: tl.constexpr, PROGRAMS: tl.constexpr,
    FLATTEN: tl.constexpr,
):  # fmt: skip
    """y[p] = a[p] w[expert of p]^T, or of a[rows[p]] (a_desc is None then). w_desc: (E O, K), the experts in turn."""
    start_E, end_E, first_E, last_E, m_tiles = tiles_of_experts(offsets_ptr, n_experts, BLOCK_M, BLOCK_E)
    o_tiles = tl.cdiv(o, BLOCK_N)
    for number in tl.range(tl.program_id(0), m_tiles * o_tiles, PROGRAMS, flatten=FLATTEN):
        m_tile, o_tile = tile_at(number, m_tiles, o_tiles, GROUP_M)
        expert, start, end = expert_of_tile(m_tile, start_E, end_E, first_E, last_E, BLOCK_M, BLOCK_E)
        row_M = start + tl.arange(0, BLOCK_M)
        inside_M = row_M < end
        column_O = o_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        source_M = row_M
        if rows_ptr is not None:
            source_M = tl.load(rows_ptr + row_M, inside_M, other=0)
        a_scale_ptr = a_scales_ptr
        w_scale_ptr = w_scales_ptr + expert.to(tl.int64) * stride_te + o_tile * BLOCK_N // TILE * stride_to
        acc_MO = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for block in range(tl.cdiv(k, TILE)):
            scale_M = tl.load(a_scale_ptr + source_M, inside_M, other=0.0)
            scale = tl.load(w_scale_ptr)
            if rows_ptr is None:
                # Rows beyond the expert's are its neighbour's; they are summed like others and not stored.
                a_MK = a_desc.load([start, block * TILE])
            else:
                channel_K = block * TILE + tl.arange(0, TILE)
                from_MK = a_ptr + source_M[:, None].to(tl.int64) * stride_an + channel_K[None, :]
                a_MK = tl.load(from_MK, inside_M[:, None] & (channel_K < k)[None, :], other=0.0)
            w_OK = w_desc.load([expert * o + o_tile * BLOCK_N, block * TILE])
            acc_MO = promote(acc_MO, a_MK, w_OK, scale_M, scale)
            a_scale_ptr += stride_sk
            w_scale_ptr += stride_tk
        to_MO = y_ptr + row_M[:, None].to(tl.int64) * o + column_O[None, :]
        tl.store(to_MO, acc_MO.to(y_ptr.dtype.element_ty), inside_M[:, None] & (column_O < o)[None, :])


@triton.jit
def fp8_grouped_gradient_kernel(
    g_desc, x_desc, g_scales_ptr, x_scales_ptr, offsets_ptr, dw_ptr, o, i, n_experts, stride_go, stride_xi,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, GROUP_M: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """dw[e] = sum over the tiles of 128 tokens of expert e: g_OS x_IS^T; zeros for an expert without tokens."""
    start_E, end_E = expert_rows(offsets_ptr, n_experts, BLOCK_E)
    tiles_E = tl.cdiv(end_E - start_E, TILE)
    o_tiles, i_tiles = tl.cdiv(o, BLOCK_M), tl.cdiv(i, BLOCK_N)
    for number in range(tl.program_id(0), n_experts * o_tiles * i_tiles, PROGRAMS):
        expert = number // (o_tiles * i_tiles)
        o_tile, i_tile = tile_at(number - expert * o_tiles * i_tiles, o_tiles, i_tiles, GROUP_M)
        first = tl.sum(tl.where(tl.arange(0, BLOCK_E) < expert, tiles_E, 0), 0)
        count = tl.sum(tl.where(tl.arange(0, BLOCK_E) == expert, tiles_E, 0), 0)
        row_O = o_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        column_I = i_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        g_scale_ptr = g_scales_ptr + first.to(tl.int64) * stride_go
        x_scale_ptr = x_scales_ptr + first.to(tl.int64) * stride_xi
        acc_OI = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for tile in range(first, first + count):
            scale_O = tl.load(g_scale_ptr + row_O, row_O < o, other=0.0)
            scale_I = tl.load(x_scale_ptr + column_I, column_I < i, other=0.0)
            g_OS = g_desc.load([o_tile * BLOCK_M, tile * TILE])
            x_IS = x_desc.load([i_tile * BLOCK_N, tile * TILE])
            acc_OI = promote(acc_OI, g_OS, x_IS, scale_O, scale_I)
            g_scale_ptr += stride_go
            x_scale_ptr += stride_xi
        to_OI = dw_ptr + (expert.to(tl.int64) * o + row_O[:, None]) * i + column_I[None, :]
        tl.store(to_OI, acc_OI.to(dw_ptr.dtype.element_ty), (row_O < o)[:, None] & (column_I < i)[None, :])


@operator("fp8_grouped_product")
def grouped_product(
    a_NK: Tensor,
    a_scales_KN: Tensor,
    w_EOK: Tensor,
    w_scales_EOK: Tensor,
    offsets_E: Tensor,
    token_of_row_P: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """y[p] = a[p] w[e]^T, or of a[token_of_row_P[p]], for the expert e of row p. -> y_PO, float32 or bfloat16.

    a in tiles of 1 x 128, weights in tiles of 128 x 128; the input gradient takes values_EIO and scales_EOI.mT.
    offsets_E: int32 (E,), ends of the experts' rows; the last is P. token_of_row_P: int32 (P,), or None.
    Raises ValueError for other dtypes, shapes, strides or alignments than those of layout.py.
    """
    (n, k), (e, o, _) = a_NK.shape, w_EOK.shape
    _check_grouped(a_NK, a_scales_KN, w_EOK, w_scales_EOK, offsets_E, token_of_row_P, dtype)
    p = n if token_of_row_P is None else token_of_row_P.shape[0]
    y_PO = a_NK.new_empty(p, o, dtype=dtype)
    if not y_PO.numel():
        return y_PO
    kernel = "fp8_grouped_product" if token_of_row_P is None else "fp8_gathered_product"
    chosen = choose(TABLE, kernel, a_NK, ROWS=p // e, N=o, K=k)
    block_m, block_n = chosen.blocks["BLOCK_M"], chosen.blocks["BLOCK_N"]
    # Of E experts with P rows, min(E, P) have any, and each of these at most one tile that is not full.
    tiles = (p // block_m + min(e, p)) * ceil_div(o, block_n)
    launch(
        fp8_grouped_product_kernel, (min(tiles, chosen.blocks["PROGRAMS"]),),
        describe(a_NK, (block_m, layout.TILE)) if token_of_row_P is None else None,
        None if token_of_row_P is None else a_NK, token_of_row_P,
        describe(w_EOK.flatten(0, 1), (block_n, layout.TILE)), a_scales_KN, w_scales_EOK, offsets_E, y_PO, o, k, e,
        a_NK.stride(0), a_scales_KN.stride(0), *w_scales_EOK.stride(), BLOCK_E=next_power_of_2(e), **chosen.options,
    )  # fmt: skip
    return y_PO


def _check_grouped(
    a_NK: Tensor, a_scales: Tensor, w_EOK: Tensor, w_scales: Tensor, offsets_E: Tensor,
    token_of_row_P: Tensor | None, dtype: torch.dtype,
) -> None:  # fmt: skip
    if a_NK.ndim != 2 or w_EOK.ndim != 3 or a_NK.shape[1] != w_EOK.shape[2] or 0 in w_EOK.shape:
        raise ValueError(
            f"the values have shapes {tuple(a_NK.shape)} and {tuple(w_EOK.shape)}; they must be (N, K) and (E, O, K), "
            "the latter with no size 0"
        )
    (n, k), (e, o, _) = a_NK.shape, w_EOK.shape
    k_blocks = ceil_div(k, layout.TILE)
    check_quantised("the rows", a_NK, a_scales, (k_blocks, n))
    check_quantised("the experts' weights", w_EOK, w_scales, (e, ceil_div(o, layout.TILE), k_blocks))
    if w_EOK.stride(0) != o * w_EOK.stride(1):
        raise ValueError(
            f"the experts' weights have strides {w_EOK.stride()}; matrix must follow matrix without a gap "
            f"(a first stride of {o * w_EOK.stride(1)})"
        )
    if n > 1 and a_scales.stride(1) != 1:
        raise ValueError(f"scales of rows have strides {a_scales.stride()}; the last axis must be contiguous")
    check_offsets(offsets_E, e)
    check_row_numbers("token_of_row_P", token_of_row_P)
    check_output(dtype)


@grouped_product.register_fake
def _(
    a_NK: Tensor, a_scales_KN: Tensor, w_EOK: Tensor, w_scales_EOK: Tensor, offsets_E: Tensor,
    token_of_row_P: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return a_NK.new_empty((a_NK if token_of_row_P is None else token_of_row_P).shape[0], w_EOK.shape[1], dtype=dtype)


@operator("fp8_grouped_weight_gradient")
def grouped_weight_gradient(
    g_OS: Tensor, g_scales_SO: Tensor, x_IS: Tensor, x_scales_SI: Tensor, offsets_E: Tensor, dtype: torch.dtype
) -> Tensor:
    """dw[e] = g^T x over the rows of expert e, of column copies. -> dw_EOI, float32 or bfloat16; zeros without rows.

    Raises ValueError for other dtypes, shapes, strides or alignments than those of layout.py.
    """
    (o, s), i, e = g_OS.shape, x_IS.shape[0], offsets_E.shape[0]
    tiles = s // layout.TILE
    check_shape("the second matrix", x_IS, (i, tiles * layout.TILE))
    check_quantised("the first matrix", g_OS, g_scales_SO, (tiles, o))
    check_quantised("the second matrix", x_IS, x_scales_SI, (tiles, i))
    if not (g_scales_SO.is_contiguous() and x_scales_SI.is_contiguous()):
        raise ValueError("scales of columns must be contiguous: call contiguous() first")
    check_offsets(offsets_E, e)
    check_output(dtype)
    dw_EOI = g_OS.new_empty(e, o, i, dtype=dtype)
    if not dw_EOI.numel():
        return dw_EOI
    chosen = choose(TABLE, "fp8_grouped_weight_gradient", g_OS, ROWS=s // e, M=o, N=i)
    block_m, block_n = chosen.blocks["BLOCK_M"], chosen.blocks["BLOCK_N"]
    n_tiles = e * ceil_div(o, block_m) * ceil_div(i, block_n)
    launch(
        fp8_grouped_gradient_kernel, (min(n_tiles, chosen.blocks["PROGRAMS"]),), describe(g_OS, (block_m, layout.TILE)),
        describe(x_IS, (block_n, layout.TILE)), g_scales_SO, x_scales_SI, offsets_E, dw_EOI, o, i, e, o, i,
        BLOCK_E=next_power_of_2(e), **chosen.options,
    )  # fmt: skip
    return dw_EOI


@grouped_weight_gradient.register_fake
def _(
    g_OS: Tensor, g_scales_SO: Tensor, x_IS: Tensor, x_scales_SI: Tensor, offsets_E: Tensor, dtype: torch.dtype
) -> Tensor:
    return g_OS.new_empty(offsets_E.shape[0], g_OS.shape[0], x_IS.shape[0], dtype=dtype)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration: many rows an expert, and few."""
    for e, n, i, o in ((8, 32768, 7168, 2048), (64, 32768, 2048, 1408), (256, 4096, 2048, 1024)):
        like = torch.empty(n, i, dtype=torch.bfloat16, device="meta")
        offsets_E, token_of_row_P = (torch.empty(size, dtype=torch.int32, device="meta") for size in (e, n))
        x, g, w = layout.new_rows(like, n, i), layout.new_rows(like, n, o), layout.new_weight(like.new_empty(e, o, i))
        for rows in (None, token_of_row_P):
            yield grouped_product.launched(
                x.values_NK, x.scales_KN, w.values_EOI, w.scales_EOI, offsets_E, rows, torch.bfloat16
            )
        yield grouped_product.launched(
            g.values_NK, g.scales_KN, w.values_EIO, w.scales_EOI.mT, offsets_E, None, torch.bfloat16
        )
        xs, gs = layout.new_columns(like, n, i, e), layout.new_columns(like, n, o, e)
        for dtype in DTYPES:
            yield grouped_weight_gradient.launched(
                gs.values_KS, gs.scales_SK, xs.values_KS, xs.scales_SK, offsets_E, dtype
            )
