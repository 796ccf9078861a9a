"""SwiGLU (arXiv:2002.05202) and its gradient, written as E4M3 copies only: the numbers between never reach memory."""

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
    check_copies,
    choose,
    launch_copies,
    or_none,
    outputs,
    store_column_copy,
    store_row_copy,
    tile_of_program,
)
from ablate.kernels.launch import operator
from ablate.kernels.operands import DTYPES, check_rows, check_shape
from ablate.kernels.table import Table

TABLE = Table(Path(__file__).with_name("swiglu.json"))
KERNELS: dict[str, tuple[str, ...]] = {"swiglu_quantise_forward_kernel": (), "swiglu_quantise_backward_kernel": ()}
TILE = tl.constexpr(layout.TILE)


@triton.jit
def sigmoid_parts(x):
    """Numerator and denominator of sigmoid(x), neither of which overflows."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small), 1.0 + small


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """To DTYPE and back to float32: what a tensor of that dtype between two operations does."""
    return x.to(DTYPE).to(tl.float32)


@triton.jit
def hidden(from_NF, f, inside_NF, DTYPE: tl.constexpr):
    """silu(gate) up, rounded after either operation; zero outside."""
    gate_NF = tl.load(from_NF, inside_NF, other=0.0).to(tl.float32)
    up_NF = tl.load(from_NF + f, inside_NF, other=0.0).to(tl.float32)
    part_NF, whole_NF = sigmoid_parts(gate_NF)
    return rounded(rounded(gate_NF * part_NF / whole_NF, DTYPE) * up_NF, DTYPE)


@triton.jit
def swiglu_quantise_forward_kernel(
    gate_up_ptr, offsets_ptr, values_NF_ptr, scales_FN_ptr, values_FS_ptr, scales_SF_ptr,
    n, f, n_experts, stride_gn, stride_vn, stride_vf,
    POWER_OF_TWO: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_N rows and 128 channels; pointers are None for what is not there. Columns: BLOCK_N is 128."""
    tile, block, row_N, inside_N, size = tile_of_program(offsets_ptr, n, f, n_experts, BLOCK_N, BLOCK_E)
    if size > 0:
        column_F = block * TILE + tl.arange(0, TILE)
        from_NF = gate_up_ptr + row_N[:, None].to(tl.int64) * stride_gn + column_F[None, :]
        inside_NF = inside_N[:, None] & (column_F < f)[None, :]
        DTYPE: tl.constexpr = gate_up_ptr.dtype.element_ty
        # Computed for either copy, from the cache the second time: see quantise_activation_kernel.
        if values_NF_ptr is not None:
            h_NF = hidden(from_NF, f, inside_NF, DTYPE)
            store_row_copy(h_NF, values_NF_ptr, scales_FN_ptr, row_N, inside_N, block, n, stride_vn, POWER_OF_TWO)
        if values_FS_ptr is not None:
            h_NF = hidden(from_NF, f, inside_NF, DTYPE)
            store_column_copy(h_NF, values_FS_ptr, scales_SF_ptr, tile, block, f, stride_vf, POWER_OF_TWO)


@triton.jit
def hidden_gradient(
    gate_up_ptr, dh_ptr, row_N, inside_N, block, f, stride_gn, stride_hn, DTYPE: tl.constexpr
):  # fmt: skip
    """Channels [128 block, 128 block + 128) of the gradient of [gate, up], rounded as autograd's tensors are."""
    column_K = block * TILE + tl.arange(0, TILE)
    is_gate_K = column_K < f
    channel_F = column_K - tl.where(is_gate_K, 0, f)
    inside_NF = inside_N[:, None] & (column_K < 2 * f)[None, :]
    from_NF = gate_up_ptr + row_N[:, None].to(tl.int64) * stride_gn + channel_F[None, :]
    gate_NF = tl.load(from_NF, inside_NF, other=0.0).to(tl.float32)
    # 1 for up's own channels, whose gradient has silu(gate) in its place.
    up_NF = tl.load(from_NF + f, inside_NF & is_gate_K[None, :], other=1.0).to(tl.float32)
    from_NF = dh_ptr + row_N[:, None].to(tl.int64) * stride_hn + channel_F[None, :]
    dh_NF = tl.load(from_NF, inside_NF, other=0.0).to(tl.float32)
    part_NF, whole_NF = sigmoid_parts(gate_NF)
    sigmoid_NF = part_NF / whole_NF
    slope_NF = sigmoid_NF * (1.0 + gate_NF * (1.0 - sigmoid_NF))
    slope_NF = tl.where(is_gate_K[None, :], slope_NF, rounded(gate_NF * sigmoid_NF, DTYPE))
    return rounded(rounded(dh_NF * up_NF, DTYPE) * slope_NF, DTYPE)


@triton.jit
def swiglu_quantise_backward_kernel(
    gate_up_ptr, dh_ptr, plain_ptr, offsets_ptr, values_NK_ptr, scales_KN_ptr, values_KS_ptr, scales_SK_ptr,
    n, f, n_experts, stride_gn, stride_hn, stride_vn, stride_vk,
    POWER_OF_TWO: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Two tiles: one among the gate's channels and, from the same gradients of h in the cache, one among those of up.

    Pointers are None for what is not there. Columns: BLOCK_N is 128.
    """
    n_blocks, n_pairs = tl.cdiv(2 * f, TILE), tl.cdiv(f, TILE)
    tile, pair, row_N, inside_N, size = tile_of_program(offsets_ptr, n, f, n_experts, BLOCK_N, BLOCK_E)
    DTYPE: tl.constexpr = gate_up_ptr.dtype.element_ty
    if size > 0:
        for block in range(pair, n_blocks, n_pairs):
            if plain_ptr is not None or values_NK_ptr is not None:
                d_NK = hidden_gradient(gate_up_ptr, dh_ptr, row_N, inside_N, block, f, stride_gn, stride_hn, DTYPE)
                if plain_ptr is not None:
                    column_K = block * TILE + tl.arange(0, TILE)
                    to_NK = plain_ptr + row_N[:, None].to(tl.int64) * (2 * f) + column_K[None, :]
                    tl.store(to_NK, d_NK.to(DTYPE), inside_N[:, None] & (column_K < 2 * f)[None, :])
                if values_NK_ptr is not None:
                    store_row_copy(
                        d_NK, values_NK_ptr, scales_KN_ptr, row_N, inside_N, block, n, stride_vn, POWER_OF_TWO
                    )  # fmt: skip
            if values_KS_ptr is not None:
                d_NK = hidden_gradient(gate_up_ptr, dh_ptr, row_N, inside_N, block, f, stride_gn, stride_hn, DTYPE)
                store_column_copy(d_NK, values_KS_ptr, scales_SK_ptr, tile, block, 2 * f, stride_vk, POWER_OF_TWO)


def _check_gate_up(gate_up: Tensor, rows: bool, columns: bool, offsets_E: Tensor | None) -> tuple[int, int]:
    check_rows("gate and up", gate_up, DTYPES, 2)
    check_copies(rows, columns, offsets_E)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate and up have {gate_up.shape[1]} channels together; both must have the same number")
    return gate_up.shape[0], gate_up.shape[1] // 2


@operator("fp8_swiglu_quantise")
def swiglu_quantise(
    gate_up: Tensor, offsets_E: Tensor | None = None, *, power_of_two: bool, rows: bool, columns: bool
) -> layout.Copies:
    """silu(gate) up in E4M3, as quantise_activation gives it, with silu(gate) and the product rounded to gate's dtype.

    gate_up: (N, 2F), channels [0, F) the gate; float32 or bfloat16. offsets_E: int32 ends of experts' rows.
    -> values_NF, scales_FN, values_FS, scales_SF (layout.py); empty tensors for what is not asked for.
    Raises ValueError for other dtypes or strides, an odd number of channels, or no copy.
    """
    n, f = _check_gate_up(gate_up, rows, columns, offsets_E)
    by_row, by_column = copies = outputs(gate_up, n, f, offsets_E, rows, columns)
    chosen = choose(TABLE, "swiglu_quantise_forward", gate_up, columns=columns, F=f)
    launch_copies(
        swiglu_quantise_forward_kernel, chosen, (gate_up,), (gate_up.stride(0),), copies, offsets_E, n, f,
        power_of_two=power_of_two, rows=rows, columns=columns,
    )  # fmt: skip
    return *by_row, *by_column


@swiglu_quantise.register_fake
def _(gate_up: Tensor, offsets_E: Tensor | None = None, **wanted: bool) -> layout.Copies:
    n, f = gate_up.shape[0], gate_up.shape[1] // 2
    by_row, by_column = outputs(gate_up, n, f, offsets_E, wanted["rows"], wanted["columns"])
    return *by_row, *by_column


@operator("fp8_swiglu_backward_quantise")
def swiglu_backward_quantise(
    gate_up: Tensor,
    dh_NF: Tensor,
    offsets_E: Tensor | None = None,
    *,
    power_of_two: bool,
    rows: bool,
    columns: bool,
    plain: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradient of gate_up, from that of h = silu(gate) up, in E4M3, as quantise_activation gives it.

    It is rounded to gate's dtype first, and so are silu(gate) and dh up on the way, as by autograd.
    gate_up: (N, 2F); dh: (N, F), of the same dtype; offsets_E: int32 ends of experts' rows, for columns.
    -> values_NK, scales_KN, values_KS, scales_SK (layout.py; K = 2F), and if `plain` the gradient itself (N, 2F), for
    comparisons; empty tensors for what is not asked for. Raises ValueError as swiglu_quantise, and for shapes that do
    not match.
    """
    n, f = _check_gate_up(gate_up, rows, columns, offsets_E)
    check_rows("the gradient of h", dh_NF, (gate_up.dtype,), 2)
    check_shape("the gradient of h", dh_NF, (n, f))
    by_row, by_column = copies = outputs(gate_up, n, 2 * f, offsets_E, rows, columns)
    plain_NK = gate_up.new_empty((n, 2 * f) if plain else (0, 0))
    chosen = choose(TABLE, "swiglu_quantise_backward", gate_up, columns=columns, F=f)
    given, strides = (gate_up, dh_NF, *or_none(plain, plain_NK)), (gate_up.stride(0), dh_NF.stride(0))
    launch_copies(
        swiglu_quantise_backward_kernel, chosen, given, strides, copies, offsets_E, n, f,
        power_of_two=power_of_two, rows=rows, columns=columns,
    )  # fmt: skip
    return *by_row, *by_column, plain_NK


@swiglu_backward_quantise.register_fake
def _(
    gate_up: Tensor, dh_NF: Tensor, offsets_E: Tensor | None = None, *, plain: bool = False, **wanted: bool
) -> tuple[Tensor, ...]:
    n, k = gate_up.shape
    by_row, by_column = outputs(gate_up, n, k, offsets_E, wanted["rows"], wanted["columns"])
    plain_NK = gate_up.new_empty((n, k) if plain else (0, 0))
    return *by_row, *by_column, plain_NK


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    gate_up = torch.empty(32768, 4096, dtype=torch.bfloat16, device="meta")
    dh_NF = torch.empty(32768, 2048, dtype=torch.bfloat16, device="meta")
    offsets_E = torch.empty(256, dtype=torch.int32, device="meta")
    for power_of_two in (False, True):
        for rows, columns, ends in (
            (True, False, None),
            (False, True, None),
            (True, True, None),
            (True, True, offsets_E),
        ):
            how = {"power_of_two": power_of_two, "rows": rows, "columns": columns}
            yield swiglu_quantise.launched(gate_up, ends, **how)
            yield swiglu_backward_quantise.launched(gate_up, dh_NF, ends, **how)
