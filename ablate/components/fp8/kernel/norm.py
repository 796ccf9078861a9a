"""Root-mean-square norm (arXiv:1910.07467) whose output is quantised to E4M3 at once, with or without being written.

Two kernels. The first holds whole rows, so it reads the input once for the norm, the norm's output and the row copy.
Column tiles need 128 rows of the same channels, which no program holds whole (128 rows of 2048 channels of BF16 are
half a MiB; those of all programs at once exceed the chip's cache): the second kernel reads the input again, with each
row's factor, and writes the column copy. Where the norm's output is not asked for that is 2 + 1 and 2 + 1 bytes an
element of BF16, against 2 + 2 and 2 + 1 + 1 of the norm and a quantisation apart.
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
from ablate.components.fp8.kernel.quantise import (
    encode,
    magnitude_bits,
    or_none,
    outputs,
    store_column_copy,
    tile_scale,
)
from ablate.kernels.launch import ceil_div, launch, machine_of, next_power_of_2, operator
from ablate.kernels.operands import DTYPES, check_rows, check_shape
from ablate.kernels.table import Table

TABLE = Table(Path(__file__).with_name("norm.json"))
KERNELS: dict[str, tuple[str, ...]] = {"norm_quantise_rows_kernel": (), "norm_quantise_columns_kernel": ()}
TILE = tl.constexpr(layout.TILE)


@triton.jit
def norm_quantise_rows_kernel(
    x_ptr, weight_ptr, y_ptr, rstd_ptr, values_ptr, scales_ptr, n, dim, stride_xn, stride_vn, eps,
    DTYPE: tl.constexpr, POWER_OF_TWO: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Whole rows: the norm, its output if y_ptr is not None, and the copy in tiles of 1 x 128."""
    row_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wide_N = row_N[:, None].to(tl.int64)
    column_D = tl.arange(0, BLOCK_D)
    inside_ND = (row_N[:, None] < n) & (column_D[None, :] < dim)
    x_ND = tl.load(x_ptr + wide_N * stride_xn + column_D[None, :], inside_ND, other=0.0).to(tl.float32)
    rstd_N = 1.0 / tl.sqrt_rn(tl.sum(x_ND * x_ND, 1) / dim + eps)
    weight_D = tl.load(weight_ptr + column_D, column_D < dim, other=0.0).to(tl.float32)
    y_ND = (x_ND * rstd_N[:, None] * weight_D[None, :]).to(DTYPE)
    if y_ptr is not None:
        tl.store(y_ptr + wide_N * dim + column_D[None, :], y_ND, inside_ND)
    tl.store(rstd_ptr + row_N, rstd_N, row_N < n)
    y_NBT = tl.reshape(y_ND.to(tl.float32), (ROWS, BLOCK_D // TILE, TILE))
    scale_NB = tile_scale(tl.max(magnitude_bits(y_NBT), 2), POWER_OF_TWO)
    values_ND = tl.reshape(encode(y_NBT, scale_NB[:, :, None], POWER_OF_TWO), (ROWS, BLOCK_D))
    to_ND = values_ptr + wide_N * stride_vn + column_D[None, :]
    tl.store(to_ND, values_ND, (row_N[:, None] < n) & (column_D[None, :] < stride_vn))
    block_B = tl.arange(0, BLOCK_D // TILE)
    to_NB = scales_ptr + block_B[None, :].to(tl.int64) * n + row_N[:, None]
    tl.store(to_NB, scale_NB, (row_N[:, None] < n) & (block_B * TILE < dim)[None, :])


@triton.jit
def norm_quantise_columns_kernel(
    x_ptr, weight_ptr, rstd_ptr, values_ptr, scales_ptr, n, dim, stride_xn, stride_vd,
    DTYPE: tl.constexpr, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    """One tile of 128 x 128: the norm's output from the rows' factors, and its copy in tiles of 128 x 1."""
    n_blocks = tl.cdiv(dim, TILE)
    tile, block = tl.program_id(0) // n_blocks, tl.program_id(0) % n_blocks
    row_N = tile * TILE + tl.arange(0, TILE)
    column_D = block * TILE + tl.arange(0, TILE)
    inside_ND = (row_N[:, None] < n) & (column_D[None, :] < dim)
    from_ND = x_ptr + row_N[:, None].to(tl.int64) * stride_xn + column_D[None, :]
    x_ND = tl.load(from_ND, inside_ND, other=0.0).to(tl.float32)
    rstd_N = tl.load(rstd_ptr + row_N, row_N < n, other=0.0)
    weight_D = tl.load(weight_ptr + column_D, column_D < dim, other=0.0).to(tl.float32)
    y_ND = (x_ND * rstd_N[:, None] * weight_D[None, :]).to(DTYPE).to(tl.float32)
    y_ND = tl.where(inside_ND, y_ND, 0.0)  # not minus zero, where the weight is negative
    store_column_copy(y_ND, values_ptr, scales_ptr, tile, block, dim, stride_vd, POWER_OF_TWO)


@operator("fp8_rms_norm_quantise")
def rms_norm_quantise(
    x_ND: Tensor,
    weight_D: Tensor,
    eps: float,
    *,
    power_of_two: bool,
    columns: bool,
    output: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight = y, in `dtype` (None: x's), and in E4M3, as quantise_activation gives it.

    x: (N, D), float32 or bfloat16; weight: (D,), either. `output`: whether y itself is written.
    -> y, rstd_N (float32, for ablate.kernels.rms_norm.rms_norm_backward_op), values_ND, scales_DN, and, if `columns`,
    values_DS, scales_SD (layout.py); empty tensors for what is not asked for.
    Raises ValueError for other dtypes or strides.
    """
    n, d = x_ND.shape
    check_rows("the norm's input", x_ND, DTYPES, 2)
    check_rows("the norm's weight", weight_D, DTYPES, 1)
    check_shape("the norm's weight", weight_D, (d,))
    y_ND, rstd_N, by_row, by_column = _outputs(x_ND, columns, output, dtype)
    if y_ND.dtype not in DTYPES:
        raise ValueError(f"the norm's output is asked for as {dtype}; it must be one of {', '.join(map(str, DTYPES))}")
    shared = {"DTYPE": tl.bfloat16 if y_ND.dtype == torch.bfloat16 else tl.float32, "POWER_OF_TWO": power_of_two}
    machine, block = machine_of(x_ND.device), max(layout.TILE, next_power_of_2(d))
    chosen = TABLE.choose("norm_quantise_rows", machine, D=d)
    launch(
        norm_quantise_rows_kernel, (ceil_div(n, chosen.blocks["ROWS"]),), x_ND, weight_D, *or_none(output, y_ND),
        rstd_N, *by_row, n, d, x_ND.stride(0), by_row.values_NK.stride(0), eps,
        BLOCK_D=block, **shared, **chosen.options,
    )  # fmt: skip
    if columns:
        chosen = TABLE.choose("norm_quantise_columns", machine, D=d)
        launch(
            norm_quantise_columns_kernel, (by_column.scales_SK.shape[0] * ceil_div(d, layout.TILE),), x_ND, weight_D,
            rstd_N, *by_column, n, d, x_ND.stride(0), by_column.values_KS.stride(0),
            **shared, **chosen.options,
        )  # fmt: skip
    return y_ND, rstd_N, *by_row, *by_column


@rms_norm_quantise.register_fake
def _(
    x_ND: Tensor, weight_D: Tensor, eps: float, *,
    columns: bool, output: bool = True, dtype: torch.dtype | None = None, **_: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    y_ND, rstd_N, by_row, by_column = _outputs(x_ND, columns, output, dtype)
    return y_ND, rstd_N, *by_row, *by_column


def _outputs(
    x_ND: Tensor, columns: bool, output: bool, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, layout.Rows, layout.Columns]:
    n, d = x_ND.shape
    y_ND = x_ND.new_empty((n, d) if output else (0, 0), dtype=dtype or x_ND.dtype)
    copies = outputs(x_ND, n, d, None, True, columns)
    return y_ND, x_ND.new_empty(n, dtype=torch.float32), *copies


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    for dim in (512, 2048, 7168):
        x_ND = torch.empty(32768, dim, dtype=torch.bfloat16, device="meta")
        weight_D = torch.empty(dim, device="meta")
        for power_of_two in (False, True):
            for output in (False, True):
                yield rms_norm_quantise.launched(
                    x_ND, weight_D, 1e-6, power_of_two=power_of_two, columns=True, output=output
                )
