"""Products of E4M3 matrices with scales by blocks (arXiv:2412.19437, section 3.3): output and both gradients.

Tensor cores sum 128 products; each such sum is multiplied by the scales of its two tiles and added in float32, as the
tensor cores' own sums of FP8 products keep only about 14 bits (section 3.3.2). Layouts: layout.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ablate.components.fp8.kernel import layout
from ablate.kernels.launch import ceil_div, describe, launch, machine_of, operator
from ablate.kernels.operands import DTYPES, check_aligned, check_rows, check_shape
from ablate.kernels.table import Configuration, Table
from ablate.kernels.tiles import tile_at
from ablate.spec.machine import HOPPER, Machine

TABLE = Table(Path(__file__).with_name("product.json"))
KERNELS: dict[str, tuple[str, ...]] = {"fp8_product_kernel": ("qgmma", "tma")}
TILE = tl.constexpr(layout.TILE)


@triton.jit
def promote(acc_MN, a_MK, b_NK, scale_M, scale_N):
    """Add one block of 128 products: summed from zero by the tensor cores, scaled, and added in float32.

    scale_N is one number for the block of a weight, or a vector.
    """
    sum_MN = tl.dot(a_MK, b_NK.T)
    if len(scale_N.shape) == 0:
        return acc_MN + sum_MN * (scale_M * scale_N)[:, None]
    return acc_MN + (sum_MN * scale_M[:, None]) * scale_N[None, :]


@triton.jit
def fp8_product_kernel(
    a_desc, b_desc, a_scales_ptr, b_scales_ptr, y_ptr, m, n, k, stride_sk, stride_tk, stride_tn,
    COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr, PROGRAMS: tl.constexpr,
    FLATTEN: tl.constexpr,
):  # fmt: skip
    """y_MN = a_MK b_NK^T. b is a weight, or (COLUMNS) in tiles of 1 x 128 as a is. Tiles in strides of PROGRAMS.

    FLATTEN: the next tile is loaded while the last is stored.
    """
    m_tiles, n_tiles = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    for number in tl.range(tl.program_id(0), m_tiles * n_tiles, PROGRAMS, flatten=FLATTEN):
        m_tile, n_tile = tile_at(number, m_tiles, n_tiles, GROUP_M)
        row_M = m_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        column_N = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        a_scale_ptr, b_scale_ptr = a_scales_ptr, b_scales_ptr
        acc_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for block in range(tl.cdiv(k, TILE)):
            scale_M = tl.load(a_scale_ptr + row_M, row_M < m, other=0.0)
            if COLUMNS:
                scale_N = tl.load(b_scale_ptr + column_N, column_N < n, other=0.0)
            else:
                scale_N = tl.load(b_scale_ptr + n_tile * BLOCK_N // TILE * stride_tn)
            a_MK = a_desc.load([m_tile * BLOCK_M, block * TILE])
            b_NK = b_desc.load([n_tile * BLOCK_N, block * TILE])
            acc_MN = promote(acc_MN, a_MK, b_NK, scale_M, scale_N)
            a_scale_ptr += stride_sk
            b_scale_ptr += stride_tk
        to_MN = y_ptr + row_M[:, None].to(tl.int64) * n + column_N[None, :]
        tl.store(to_MN, acc_MN.to(y_ptr.dtype.element_ty), (row_M < m)[:, None] & (column_N < n)[None, :])


def choose(table: Table, kernel: str, like: Tensor, **sizes: int) -> Configuration:
    """The configuration for these sizes. A weight's block has one scale, so that no tile may span two of them."""
    chosen = table.choose(kernel, machine_of(like.device), **sizes)
    assert layout.TILE % chosen.blocks["BLOCK_N"] == 0 or "gradient" in kernel, chosen
    return chosen


def check_quantised(name: str, values: Tensor, scales: Tensor, shape: tuple[int, ...]) -> None:
    """ValueError unless these are E4M3 values that the memory accelerator reads, with float32 scales of this shape."""
    check_rows(f"the values of {name}", values, (layout.E4M3,))
    if values.numel():  # an empty tensor has strides of 1
        check_aligned(f"the values of {name}", values)
    if scales.dtype != torch.float32:
        raise ValueError(f"the scales of {name} are {scales.dtype}; they must be {torch.float32}")
    check_shape(f"the scales of {name}", scales, shape)


def check_output(dtype: torch.dtype) -> None:
    """ValueError unless products are written in this dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"the output is to be {dtype}; it must be one of {', '.join(map(str, DTYPES))}")


def _check(
    a_MK: Tensor, a_scales_KM: Tensor, b_NK: Tensor, b_scales: Tensor, n_scales: int, dtype: torch.dtype
) -> None:
    if a_MK.ndim != 2 or b_NK.ndim != 2 or a_MK.shape[1] != b_NK.shape[1]:
        raise ValueError(
            f"the values have shapes {tuple(a_MK.shape)} and {tuple(b_NK.shape)}; they must be (M, K) and (N, K)"
        )
    blocks = ceil_div(a_MK.shape[1], layout.TILE)
    check_quantised("the first matrix", a_MK, a_scales_KM, (blocks, a_MK.shape[0]))
    check_quantised("the second matrix", b_NK, b_scales, (blocks, n_scales))
    if a_MK.shape[0] > 1 and blocks and a_scales_KM.stride(1) != 1:
        raise ValueError(f"scales of rows have strides {a_scales_KM.stride()}; the last axis must be contiguous")
    check_output(dtype)


def _product(kernel: str, a_MK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch for the operators below; b_scales is (K blocks, N blocks), or (K blocks, N) for the weight gradient."""
    (m, k), n = a_MK.shape, b_NK.shape[0]
    y_MN = a_MK.new_empty(m, n, dtype=dtype)
    if not y_MN.numel():
        return y_MN
    if not k:
        return y_MN.zero_()
    chosen = choose(TABLE, kernel, a_MK, M=m, N=n, K=k)
    block_m, block_n = chosen.blocks["BLOCK_M"], chosen.blocks["BLOCK_N"]
    tiles = ceil_div(m, block_m) * ceil_div(n, block_n)
    launch(
        fp8_product_kernel, (min(tiles, chosen.blocks["PROGRAMS"]),), describe(a_MK, (block_m, layout.TILE)),
        describe(b_NK, (block_n, layout.TILE)), a_scales, b_scales, y_MN, m, n, k, a_scales.stride(0),
        *b_scales.stride(), COLUMNS=kernel == "fp8_weight_gradient", **chosen.options,
    )  # fmt: skip
    return y_MN


@operator("fp8_product")
def product(a_MK: Tensor, a_scales_KM: Tensor, w_NK: Tensor, w_scales_NK: Tensor, dtype: torch.dtype) -> Tensor:
    """a w^T, of a in tiles of 1 x 128 and one weight in tiles of 128 x 128. -> y_MN, float32 or bfloat16.

    The output of a linear map takes values_OI and scales_OI of the weight; the input gradient takes values_IO and
    scales_OI.T. Raises ValueError for other dtypes, shapes, strides or alignments than those of layout.py.
    """
    _check(a_MK, a_scales_KM, w_NK, w_scales_NK.T, ceil_div(w_NK.shape[0], layout.TILE), dtype)
    return _product("fp8_product", a_MK, a_scales_KM, w_NK, w_scales_NK.T, dtype)


@operator("fp8_weight_gradient")
def weight_gradient(g_OS: Tensor, g_scales_SO: Tensor, x_IS: Tensor, x_scales_SI: Tensor, dtype: torch.dtype) -> Tensor:
    """g^T x, of column copies of the output's gradient and of the input. -> dw_OI, float32 or bfloat16.

    Raises ValueError for other dtypes, shapes, strides or alignments than those of layout.py.
    """
    _check(g_OS, g_scales_SO, x_IS, x_scales_SI, x_IS.shape[0], dtype)
    if x_scales_SI.shape[1] > 1 and x_scales_SI.numel() and x_scales_SI.stride(1) != 1:
        raise ValueError(f"scales of columns have strides {x_scales_SI.stride()}; the last axis must be contiguous")
    return _product("fp8_weight_gradient", g_OS, g_scales_SO, x_IS, x_scales_SI, dtype)


def _fake(a_MK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor, dtype: torch.dtype) -> Tensor:
    return a_MK.new_empty(a_MK.shape[0], b_NK.shape[0], dtype=dtype)


product.register_fake(_fake)
weight_gradient.register_fake(_fake)


def library_obstacle(machine: Machine) -> str:
    """Why cuBLAS cannot do these products on a machine; "" if it can."""
    if machine.kind != "cuda" or machine.interpreted:
        return "cuBLAS multiplies FP8 by blocks on a CUDA device only"
    if machine.capability != HOPPER:
        return "cuBLAS multiplies FP8 with float32 scales of blocks on GPUs of compute capability 9.0 only (H100, H200)"
    if not hasattr(F, "scaled_mm") or not hasattr(F, "ScalingType"):
        return f"torch {torch.__version__} has no torch.nn.functional.scaled_mm"
    if tuple(map(int, (torch.version.cuda or "0.0").split(".")[:2])) < (12, 9):
        return f"torch is built for CUDA {torch.version.cuda}; cuBLAS multiplies FP8 by blocks from CUDA 12.9 on"
    return ""


SCALE_STRIDE = 4  # float32 numbers: cuBLAS fetches the scales of rows in columns, 16 bytes at once


def supported(machine: Machine, in_features: int, out_features: int, n_rows: int) -> str:
    """Why cuBLAS cannot do the three products of a linear map of these sizes on a machine; "" if it can.

    n_rows: of what is multiplied; the scales of one block of channels lie so many float32 numbers apart.
    """
    if n_rows % SCALE_STRIDE:
        return f"cuBLAS reads the scales of rows in columns of multiples of {SCALE_STRIDE}, and there are {n_rows} rows"
    if in_features % layout.ROW_BYTES or out_features % layout.ROW_BYTES:
        return f"cuBLAS needs multiples of 16 in FP8, and the weight is {out_features} x {in_features}"
    return library_obstacle(machine)


def library_product(
    a_MK: Tensor, a_scales_KM: Tensor, w_NK: Tensor, w_scales_NK: Tensor, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    """`product` by cuBLAS, through torch. Sizes and machine: `supported`."""
    if not a_MK.shape[0]:
        return a_MK.new_empty(0, w_NK.shape[0], dtype=dtype)
    # cuBLAS reads the scales of a weight in columns whose length is a multiple of 4.
    n_blocks, k_blocks = w_scales_NK.shape
    padded_NK = w_scales_NK.new_zeros(n_blocks, ceil_div(k_blocks, 4) * 4)
    padded_NK[:, :k_blocks] = w_scales_NK
    each, block = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128
    return F.scaled_mm(a_MK, w_NK.T, a_scales_KM.T, each, padded_NK.T, block, output_dtype=dtype)


def library_weight_gradient(
    g_OS: Tensor, g_scales_SO: Tensor, x_IS: Tensor, x_scales_SI: Tensor, dtype: torch.dtype
) -> Tensor:
    """`weight_gradient` by cuBLAS, through torch. Sizes and machine: `supported`."""
    if not g_OS.shape[1]:
        return g_OS.new_zeros(g_OS.shape[0], x_IS.shape[0], dtype=dtype)
    each = F.ScalingType.BlockWise1x128
    return F.scaled_mm(g_OS, x_IS.T, g_scales_SO.T, each, x_scales_SI.T, each, output_dtype=dtype)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration: the three products of a linear map."""
    for n, i, o in ((64, 7168, 2048), (4096, 7168, 2048), (4096, 2048, 7168)):
        like = torch.empty(n, i, dtype=torch.bfloat16, device="meta")
        x, g = layout.new_rows(like, n, i), layout.new_rows(like, n, o)
        w = layout.new_weight(like.new_empty(o, i))
        yield product.launched(x.values_NK, x.scales_KN, w.values_EOI, w.scales_EOI, torch.bfloat16)
        yield product.launched(g.values_NK, g.scales_KN, w.values_EIO, w.scales_EOI.T, torch.bfloat16)
        xs, gs = layout.new_columns(like, n, i, None), layout.new_columns(like, n, o, None)
        for dtype in DTYPES:
            yield weight_gradient.launched(gs.values_KS, gs.scales_SK, xs.values_KS, xs.scales_SK, dtype)
