"""Quantisation to E4M3 with one scale a tile (arXiv:2412.19437, section 3.3.2): activations and weights, in one read.

Values and scales are, bit for bit, those of ablate.components.fp8.quantise: the tile's largest magnitude becomes 448,
or at most 448 where scales are powers of two, and inf or NaN makes the tile's scale inf or NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.components.fp8.kernel import layout
from ablate.components.fp8.kernel.layout import Columns, Copies, Rows
from ablate.kernels.launch import INTERPRETED, ceil_div, launch, machine_of, next_power_of_2, operator
from ablate.kernels.operands import DTYPES, check_row_numbers, check_rows
from ablate.kernels.table import Configuration, Table
from ablate.kernels.tiles import expert_of_tile, expert_rows, expert_tiles

TABLE = Table(Path(__file__).with_name("quantise.json"))
KERNELS: dict[str, tuple[str, ...]] = {"quantise_activation_kernel": (), "quantise_weight_kernel": ()}
TILE = tl.constexpr(layout.TILE)
INTERPRETED_KERNEL = tl.constexpr(INTERPRETED)


@triton.jit
def magnitude_bits(x):
    """Bits of |x| in float32: as integers they are ordered as the magnitudes are, with NaN above all."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def tile_scale(largest, POWER_OF_TWO: tl.constexpr):
    """The scale of a tile whose largest magnitude has these bits. Compared as bits, for which NaN is not lost."""
    scale = tl.math.div_rn(largest.to(tl.float32, bitcast=True), 448.0)
    bits = tl.maximum(scale.to(tl.int32, bitcast=True), 0x00800000)  # 2^-126, the smallest normal number
    if POWER_OF_TWO:
        rounded_up = (tl.minimum(bits, 0x7F000000) + 0x7FFFFF) & 0x7F800000
        bits = tl.where(bits < 0x7F800000, rounded_up, 0x7FC00000)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def fused(a, b, c):
    """a b + c rounded once. Triton's interpreter rounds the product too, where float64 does it exactly."""
    if INTERPRETED_KERNEL:
        result = (a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64)).to(tl.float32)
    else:
        result = tl.fma(a, b, c)
    return result


@triton.jit
def encode(x, scale, POWER_OF_TWO: tl.constexpr):
    """E4M3 of the IEEE quotient x / scale; `scale` broadcasts. The conversion turns what is above 448 into 448.

    A division instruction branches and takes a dozen others. Here the product with the tile's reciprocal is corrected
    once by its remainder. That may differ from the quotient in the last bit of float32, but it is on the same side of
    every number at which E4M3 rounding changes, or on it as the quotient is: checked for all 2^23 significands of a
    scale and all 16 of such numbers.
    """
    if POWER_OF_TWO:
        quotient = x * tl.math.div_rn(1.0, scale)  # exact, as the reciprocal of a power of two is
    else:
        # Tiny tiles are lifted, as their remainders would be subnormal. Signs are such that minus zero stays so.
        lift = tl.where(scale < 2.0**-64, -(2.0**64), -1.0)
        x *= lift
        scale *= -lift
        inverse = tl.math.div_rn(-1.0, scale)
        quotient = x * inverse
        # Minus the remainder. An infinite scale, whose inverse is 0, stays out of it.
        remainder = fused(quotient, tl.where(scale == float("inf"), 0.0, scale), x)
        quotient = fused(remainder, inverse, quotient)
    return quotient.to(tl.float8e4nv)


@triton.jit
def tile_of_program(offsets_ptr, n, k, n_experts, SIZE: tl.constexpr, BLOCK_E: tl.constexpr):
    """A program's tile of SIZE rows and block of 128 channels, of k: both numbers, the rows, which of them there are.

    Last, how many there are. With offsets tiles start anew at every expert, and one that no expert has has no rows.
    Every program adds up the experts' tiles again: E numbers from the cache.
    """
    n_blocks = tl.cdiv(k, TILE)
    tile, block = tl.program_id(0) // n_blocks, tl.program_id(0) % n_blocks
    if offsets_ptr is None:
        start = tile * SIZE
        size = tl.minimum(n - start, SIZE)
    else:
        start_E, end_E = expert_rows(offsets_ptr, n_experts, BLOCK_E)
        first_E, last_E = expert_tiles(start_E, end_E, SIZE)
        _, start, end = expert_of_tile(tile, start_E, end_E, first_E, last_E, SIZE, BLOCK_E)
        size = tl.minimum(end - start, SIZE)
    return tile, block, start + tl.arange(0, SIZE), tl.arange(0, SIZE) < size, size


@triton.jit
def store_row_copy(
    x_NK, values_ptr, scales_ptr, row_N, inside_N, block, n, stride_vn, POWER_OF_TWO: tl.constexpr
):  # fmt: skip
    """Quantise and store the 1 x 128 tiles of x_NK (float32, zero outside), which are channel block `block`."""
    column_K = block * TILE + tl.arange(0, TILE)
    scale_N = tile_scale(tl.max(magnitude_bits(x_NK), 1), POWER_OF_TWO)
    values_NK = encode(x_NK, scale_N[:, None], POWER_OF_TWO)
    to_NK = values_ptr + row_N[:, None].to(tl.int64) * stride_vn + column_K[None, :]
    # Up to the padded end of a row: a multiple of 16, which keeps stores wide whatever the number of channels.
    tl.store(to_NK, values_NK, inside_N[:, None] & (column_K[None, :] < stride_vn))
    tl.store(scales_ptr + tl.cast(block, tl.int64) * n + row_N, scale_N, inside_N)


@triton.jit
def store_column_copy(
    x_NK, values_ptr, scales_ptr, tile, block, k, stride_vk, POWER_OF_TWO: tl.constexpr
):  # fmt: skip
    """Quantise, transpose and store the 128 x 1 tiles of x_NK (float32, zero outside, 128 rows), token tile `tile`."""
    column_K = block * TILE + tl.arange(0, TILE)
    scale_K = tile_scale(tl.max(magnitude_bits(x_NK), 0), POWER_OF_TWO)
    values_KN = tl.trans(encode(x_NK, scale_K[None, :], POWER_OF_TWO))
    position_N = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
    to_KN = values_ptr + column_K[:, None].to(tl.int64) * stride_vk + position_N[None, :]
    tl.store(to_KN, values_KN, (column_K < k)[:, None])
    tl.store(scales_ptr + tl.cast(tile, tl.int64) * k + column_K, scale_K, column_K < k)


@triton.jit
def quantise_activation_kernel(
    x_ptr, rows_ptr, offsets_ptr, values_NK_ptr, scales_KN_ptr, values_KS_ptr, scales_SK_ptr,
    n, k, n_experts, stride_xn, stride_vn, stride_vk,
    POWER_OF_TWO: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_N rows and 128 channels; pointers are None for what is not there. Columns: BLOCK_N is 128."""
    tile, block, row_N, inside_N, size = tile_of_program(offsets_ptr, n, k, n_experts, BLOCK_N, BLOCK_E)
    if size > 0:
        column_K = block * TILE + tl.arange(0, TILE)
        if rows_ptr is None:
            source_N = row_N.to(tl.int64)
        else:
            source_N = tl.load(rows_ptr + row_N, inside_N, other=0).to(tl.int64)
        from_NK = x_ptr + source_N[:, None] * stride_xn + column_K[None, :]
        inside_NK = inside_N[:, None] & (column_K < k)[None, :]
        # For the second copy the tile comes from the cache again: held in registers, it would spill.
        if values_NK_ptr is not None:
            x_NK = tl.load(from_NK, inside_NK, other=0.0).to(tl.float32)
            store_row_copy(x_NK, values_NK_ptr, scales_KN_ptr, row_N, inside_N, block, n, stride_vn, POWER_OF_TWO)
        if values_KS_ptr is not None:
            x_NK = tl.load(from_NK, inside_NK, other=0.0).to(tl.float32)
            store_column_copy(x_NK, values_KS_ptr, scales_SK_ptr, tile, block, k, stride_vk, POWER_OF_TWO)


@triton.jit
def quantise_weight_kernel(
    weight_ptr, values_ptr, transposed_ptr, scales_ptr, o, i, stride_we, stride_wo, stride_ve, stride_vo,
    stride_te, stride_ti, POWER_OF_TWO: tl.constexpr,
):  # fmt: skip
    """One tile of 128 x 128 of one matrix."""
    o_blocks, i_blocks = tl.cdiv(o, TILE), tl.cdiv(i, TILE)
    expert = (tl.program_id(0) // (o_blocks * i_blocks)).to(tl.int64)
    row_O = tl.program_id(0) // i_blocks % o_blocks * TILE + tl.arange(0, TILE)
    column_I = tl.program_id(0) % i_blocks * TILE + tl.arange(0, TILE)
    from_OI = weight_ptr + expert * stride_we + row_O[:, None].to(tl.int64) * stride_wo + column_I[None, :]
    weight_OI = tl.load(from_OI, (row_O < o)[:, None] & (column_I < i)[None, :], other=0.0).to(tl.float32)
    scale = tile_scale(tl.max(tl.max(magnitude_bits(weight_OI), 1), 0), POWER_OF_TWO)
    values_OI = encode(weight_OI, scale, POWER_OF_TWO)
    to_OI = values_ptr + expert * stride_ve + row_O[:, None].to(tl.int64) * stride_vo + column_I[None, :]
    tl.store(to_OI, values_OI, (row_O < o)[:, None] & (column_I < stride_vo)[None, :])
    to_IO = transposed_ptr + expert * stride_te + column_I[:, None].to(tl.int64) * stride_ti + row_O[None, :]
    tl.store(to_IO, tl.trans(values_OI), (column_I < i)[:, None] & (row_O < stride_ti)[None, :])
    tl.store(scales_ptr + tl.program_id(0), scale)


def outputs(
    like: Tensor, n: int, k: int, offsets_E: Tensor | None, rows: bool, columns: bool
) -> tuple[Rows, Columns]:  # fmt: skip
    """Unwritten copies of a matrix (n, k), or what stands for them."""
    n_experts = None if offsets_E is None else offsets_E.shape[0]
    return (
        layout.new_rows(like, n, k) if rows else layout.no_rows(like),
        layout.new_columns(like, n, k, n_experts) if columns else layout.no_columns(like),
    )


def check_copies(rows: bool, columns: bool, offsets_E: Tensor | None) -> None:
    """ValueError where no copy is asked for, or the ends of experts' rows are not what kernels read."""
    if not rows and not columns:
        raise ValueError("neither rows nor columns are asked for: ask for at least one copy")
    check_row_numbers("offsets_E", offsets_E)
    if offsets_E is not None and not offsets_E.shape[0]:
        raise ValueError("offsets_E is empty; it must have the end of every expert's rows: pass None for one matrix")


def choose(table: Table, kernel: str, x: Tensor, *, columns: bool, **sizes: int) -> Configuration:
    """The configuration of `<kernel>_tiles` (128 rows, for column copies) or of `<kernel>_rows`."""
    return table.choose(f"{kernel}_{'tiles' if columns else 'rows'}", machine_of(x.device), **sizes)


def or_none(wanted: bool, *tensors: Tensor) -> tuple[Tensor | None, ...]:
    """What a kernel is given: None for pointers that it must not use."""
    return tensors if wanted else (None,) * len(tensors)


def launch_copies(
    kernel: Any, chosen: Configuration, given: Sequence[Tensor | None], strides: Sequence[int],
    copies: tuple[Rows, Columns], offsets_E: Tensor | None, n: int, k: int,
    *, power_of_two: bool, rows: bool, columns: bool,
) -> None:  # fmt: skip
    """Run a kernel that writes copies of n rows, a program for every tile and block of 128 of k channels.

    given: what it reads or writes besides; strides: from row to row of these. Without column copies tiles need not
    start anew at experts: every row is its own.
    """
    by_row, by_column = copies
    offsets_E = offsets_E if columns else None
    n_experts = 0 if offsets_E is None else offsets_E.shape[0]
    tiles = ceil_div(n, chosen.blocks["BLOCK_N"]) if offsets_E is None else layout.token_tiles(n, n_experts)
    launch(
        kernel, (tiles * ceil_div(k, layout.TILE) if n else 0,), *given, offsets_E, *or_none(rows, *by_row),
        *or_none(columns, *by_column), n, k, n_experts, *strides, by_row.values_NK.stride(0),
        by_column.values_KS.stride(0), POWER_OF_TWO=power_of_two, BLOCK_E=next_power_of_2(n_experts or 1),
        **chosen.options,
    )  # fmt: skip


@operator("fp8_quantise_activation")
def quantise_activation(
    x_NK: Tensor,
    offsets_E: Tensor | None = None,
    token_of_row_P: Tensor | None = None,
    *,
    power_of_two: bool,
    rows: bool,
    columns: bool,
) -> Copies:
    """x in tiles of 1 x 128 (`rows`), of 128 x 1 transposed (`columns`), or both in one read; layouts: layout.py.

    x: (N, K), float32 or bfloat16. offsets_E: int32 ends of the experts' rows, where column tiles start anew; every
    row must lie before the last. token_of_row_P: int32, quantise x[token_of_row_P] instead, columns only.
    -> values_NK, scales_KN, values_KS, scales_SK; empty tensors for what is not asked for.
    Raises ValueError for other dtypes or strides, no copy, or a row copy with token_of_row_P.
    """
    check_rows("what is quantised", x_NK, DTYPES, 2)
    check_copies(rows, columns, offsets_E)
    check_row_numbers("token_of_row_P", token_of_row_P)
    if token_of_row_P is not None and rows:
        raise ValueError(
            "token_of_row_P is given and rows are asked for; quantise the rows once, before they are gathered"
        )
    n, k = (x_NK if token_of_row_P is None else token_of_row_P).shape[0], x_NK.shape[1]
    by_row, by_column = copies = outputs(x_NK, n, k, offsets_E, rows, columns)
    chosen = choose(TABLE, "quantise", x_NK, columns=columns, K=k)
    launch_copies(
        quantise_activation_kernel, chosen, (x_NK, token_of_row_P), (x_NK.stride(0),), copies, offsets_E, n, k,
        power_of_two=power_of_two, rows=rows, columns=columns,
    )  # fmt: skip
    return *by_row, *by_column


@quantise_activation.register_fake
def _(
    x_NK: Tensor, offsets_E: Tensor | None = None, token_of_row_P: Tensor | None = None, **wanted: bool
) -> Copies:  # fmt: skip
    n = (x_NK if token_of_row_P is None else token_of_row_P).shape[0]
    by_row, by_column = outputs(x_NK, n, x_NK.shape[1], offsets_E, wanted["rows"], wanted["columns"])
    return *by_row, *by_column


@operator("fp8_quantise_weight")
def quantise_weight(weight: Tensor, *, power_of_two: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices (E, O, I) or one (O, I) in tiles of 128 x 128: values, the same transposed, scales; one read.

    float32 or bfloat16, the last axis contiguous; else ValueError. Layouts: layout.py.
    """
    if weight.ndim not in (2, 3):
        raise ValueError(f"the weight has shape {tuple(weight.shape)}; it must be (O, I), or (E, O, I) of experts")
    check_rows("the weight", weight, DTYPES)
    made = layout.new_weight(weight)
    given, values, transposed = (t if t.ndim == 3 else t[None] for t in (weight, *made[:2]))
    chosen = TABLE.choose("quantise_weight", machine_of(weight.device), O=weight.shape[-2], I=weight.shape[-1])
    launch(
        quantise_weight_kernel, (made.scales_EOI.numel(),), weight, *made,
        *weight.shape[-2:], *given.stride()[:2], *values.stride()[:2], *transposed.stride()[:2],
        POWER_OF_TWO=power_of_two, **chosen.options,
    )  # fmt: skip
    return made


@quantise_weight.register_fake
def _(weight: Tensor, *, power_of_two: bool) -> tuple[Tensor, Tensor, Tensor]:
    return layout.new_weight(weight)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    x_NK = torch.empty(32768, 7168, dtype=torch.bfloat16, device="meta")
    offsets_E = torch.empty(256, dtype=torch.int32, device="meta")
    token_of_row_P = torch.empty(8 * 4096, dtype=torch.int32, device="meta")
    for power_of_two in (False, True):
        for rows, columns in ((True, False), (False, True), (True, True)):
            yield quantise_activation.launched(x_NK, power_of_two=power_of_two, rows=rows, columns=columns)
        yield quantise_activation.launched(x_NK, offsets_E, power_of_two=power_of_two, rows=True, columns=True)
        yield quantise_activation.launched(
            x_NK, offsets_E, token_of_row_P, power_of_two=power_of_two, rows=False, columns=True
        )  # fmt: skip
        for dtype in (torch.float32, torch.bfloat16):
            weight = torch.empty(16, 2048, 7168, dtype=dtype, device="meta")
            yield quantise_weight.launched(weight, power_of_two=power_of_two)
