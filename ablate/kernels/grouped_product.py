"""Products of the matrices of experts with rows that are sorted by expert, or gathered on the way; SwiGLU fused.

Which rows an expert has is known on the device only (offsets_E, int32 ends of the experts' rows): a fixed number of
programs finds its tiles from there, one after another; FLATTEN: a program loads the next while it stores the last.

Letters: N tokens; P rows sorted by expert, or (token, choice) pairs; E experts; D model, F hidden, X = 2 F gate and up;
I and O inputs and outputs of a weight as stored; of one product M rows, O outputs and K inputs of a tile, whose sizes
are BLOCK_M, BLOCK_N and BLOCK_K.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.kernels.grouped_weight_gradient import grouped_weight_gradient_op
from ablate.kernels.launch import ceil_div, choose, describe, describe_rows, launch, next_power_of_2, operator
from ablate.kernels.operands import (
    DTYPES,
    TMA_ALIGNMENT_BYTES,
    aligned_rows,
    check_aligned,
    check_offsets,
    check_row_numbers,
    check_rows,
    check_shape,
)
from ablate.kernels.table import Configuration, Table
from ablate.kernels.tiles import expert_of_tile, tile_at, tiles_of_experts

TABLE = Table(Path(__file__).with_name("grouped_product.json"))
KERNELS: dict[str, tuple[str, ...]] = {
    "grouped_product_kernel": ("wgmma", "tma"),
    "grouped_swiglu_forward_kernel": ("wgmma", "tma", "copies"),
    "grouped_swiglu_backward_kernel": ("wgmma", "tma", "copies"),
}
# Of float32 on a device: see launch.choose.
EXACT = Configuration(
    blocks={"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 4, "PROGRAMS": 528, "FLATTEN": False},
    num_warps=4,
    num_stages=1,
)


@triton.jit
def grouped_product_kernel(
    x_desc, x_ptr, rows_ptr, w_desc, offsets_ptr, y_ptr, o, k, n_experts, stride_xp,
    TRANSPOSED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr, GROUP_M: tl.constexpr, PROGRAMS: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """y[p] = x[p] w[expert of p]^T, or x[rows[p]] (x_desc is None then); TRANSPOSED: times w, of shape (E, K, O)."""
    start_E, end_E, first_E, last_E, m_tiles = tiles_of_experts(offsets_ptr, n_experts, BLOCK_M, BLOCK_E)
    o_tiles = tl.cdiv(o, BLOCK_N)
    for number in tl.range(tl.program_id(0), m_tiles * o_tiles, PROGRAMS, flatten=FLATTEN):
        m_tile, o_tile = tile_at(number, m_tiles, o_tiles, GROUP_M)
        expert, start, end = expert_of_tile(m_tile, start_E, end_E, first_E, last_E, BLOCK_M, BLOCK_E)
        row_M = start + tl.arange(0, BLOCK_M)
        inside_M = row_M < end
        source_M = row_M
        if rows_ptr is not None:
            source_M = tl.load(rows_ptr + row_M, inside_M, other=0)
        acc_MO = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, k, BLOCK_K):
            if rows_ptr is None:
                # Rows beyond the expert's are its neighbour's; they are summed like others and not stored.
                x_MK = x_desc.load([start, first])
            else:
                column_K = first + tl.arange(0, BLOCK_K)
                from_MK = x_ptr + source_M[:, None].to(tl.int64) * stride_xp + column_K[None, :]
                x_MK = tl.load(from_MK, inside_M[:, None] & (column_K < k)[None, :], other=0.0)
            if TRANSPOSED:
                w_KO = w_desc.load([expert, first, o_tile * BLOCK_N]).reshape(BLOCK_K, BLOCK_N)
            else:
                w_KO = w_desc.load([expert, o_tile * BLOCK_N, first]).reshape(BLOCK_N, BLOCK_K).T
            acc_MO = tl.dot(x_MK, w_KO, acc_MO, input_precision="ieee")
        column_O = o_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        to_MO = y_ptr + row_M[:, None].to(tl.int64) * o + column_O[None, :]
        tl.store(to_MO, acc_MO.to(y_ptr.dtype.element_ty), inside_M[:, None] & (column_O < o)[None, :])


@triton.jit
def grouped_swiglu_forward_kernel(
    x_ptr, rows_ptr, w_desc, offsets_ptr, gate_up_ptr, h_ptr, f, k, n_experts, stride_xn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """h[p] = silu(x[rows[p]] gate^T) * x[rows[p]] up^T of p's expert; gate and up are kept where gate_up_ptr is."""
    start_E, end_E, first_E, last_E, m_tiles = tiles_of_experts(offsets_ptr, n_experts, BLOCK_M, BLOCK_E)
    f_tiles = tl.cdiv(f, BLOCK_N)
    for number in tl.range(tl.program_id(0), m_tiles * f_tiles, PROGRAMS, flatten=FLATTEN):
        m_tile, f_tile = tile_at(number, m_tiles, f_tiles, GROUP_M)
        expert, start, end = expert_of_tile(m_tile, start_E, end_E, first_E, last_E, BLOCK_M, BLOCK_E)
        row_M = start + tl.arange(0, BLOCK_M)
        inside_M = row_M < end
        from_M = x_ptr + tl.load(rows_ptr + row_M, inside_M, other=0).to(tl.int64) * stride_xn
        gate_MF = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up_MF = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, k, BLOCK_K):
            column_K = first + tl.arange(0, BLOCK_K)
            x_MK = tl.load(from_M[:, None] + column_K[None, :], inside_M[:, None] & (column_K < k)[None, :], other=0.0)
            gate_FK = w_desc.load([expert, f_tile * BLOCK_N, first]).reshape(BLOCK_N, BLOCK_K)
            up_FK = w_desc.load([expert, f + f_tile * BLOCK_N, first]).reshape(BLOCK_N, BLOCK_K)
            gate_MF = tl.dot(x_MK, gate_FK.T, gate_MF, input_precision="ieee")
            up_MF = tl.dot(x_MK, up_FK.T, up_MF, input_precision="ieee")
        column_F = f_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside_MF = inside_M[:, None] & (column_F < f)[None, :]
        # As stored: what the backward pass reads is what was multiplied here.
        gate_MF, up_MF = gate_MF.to(h_ptr.dtype.element_ty), up_MF.to(h_ptr.dtype.element_ty)
        wide_M = row_M[:, None].to(tl.int64)
        if gate_up_ptr is not None:
            tl.store(gate_up_ptr + wide_M * 2 * f + column_F[None, :], gate_MF, inside_MF)
            tl.store(gate_up_ptr + wide_M * 2 * f + f + column_F[None, :], up_MF, inside_MF)
        gate_MF = gate_MF.to(tl.float32)
        h_MF = gate_MF * tl.sigmoid(gate_MF) * up_MF.to(tl.float32)
        tl.store(h_ptr + wide_M * f + column_F[None, :], h_MF.to(h_ptr.dtype.element_ty), inside_MF)


@triton.jit
def through_swiglu(dh_MF, gate_up_ptr, d_gate_up_ptr, h_ptr, wide_M, weight_M, column_F, inside_M, f):
    """Stores gradients of gate and up and weighted h, from what reached h before its weight. -> sum over F of h dh."""
    inside_MF = inside_M[:, None] & (column_F < f)[None, :]
    at_MF = wide_M[:, None] * 2 * f + column_F[None, :]
    dtype = h_ptr.dtype.element_ty
    gate_MF = tl.load(gate_up_ptr + at_MF, inside_MF, other=0.0).to(tl.float32)
    up_MF = tl.load(gate_up_ptr + f + at_MF, inside_MF, other=0.0).to(tl.float32)
    sigmoid_MF = tl.sigmoid(gate_MF)
    silu_MF = gate_MF * sigmoid_MF
    h_MF = silu_MF * up_MF
    # Columns beyond F have gate = up = 0, but dh may be NaN there.
    along_M = tl.sum(tl.where(inside_MF, h_MF * dh_MF, 0.0), 1)
    tl.store(h_ptr + wide_M[:, None] * f + column_F[None, :], (h_MF * weight_M[:, None]).to(dtype), inside_MF)
    dh_MF *= weight_M[:, None]
    tl.store(d_gate_up_ptr + f + at_MF, (dh_MF * silu_MF).to(dtype), inside_MF)
    # The derivative of silu is sigmoid + silu (1 - sigmoid).
    slope_MF = sigmoid_MF + silu_MF * (1.0 - sigmoid_MF)
    tl.store(d_gate_up_ptr + at_MF, (dh_MF * up_MF * slope_MF).to(dtype), inside_MF)
    return along_M


@triton.jit
def grouped_swiglu_backward_kernel(
    dy_ptr, rows_ptr, w_desc, offsets_ptr, gate_up_ptr, weight_ptr, d_gate_up_ptr, h_ptr, partial_ptr,
    n_pairs, f, k, n_experts, stride_dyn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """Of dh[p] = dy[rows[p]] down and weight[p]: gradients of gate and up, weighted h, and this tile's sum of h dh."""
    start_E, end_E, first_E, last_E, m_tiles = tiles_of_experts(offsets_ptr, n_experts, BLOCK_M, BLOCK_E)
    f_tiles = tl.cdiv(f, BLOCK_N)
    for number in tl.range(tl.program_id(0), m_tiles * f_tiles, PROGRAMS, flatten=FLATTEN):
        m_tile, f_tile = tile_at(number, m_tiles, f_tiles, GROUP_M)
        expert, start, end = expert_of_tile(m_tile, start_E, end_E, first_E, last_E, BLOCK_M, BLOCK_E)
        row_M = start + tl.arange(0, BLOCK_M)
        inside_M = row_M < end
        from_M = dy_ptr + tl.load(rows_ptr + row_M, inside_M, other=0).to(tl.int64) * stride_dyn
        dh_MF = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, k, BLOCK_K):
            column_K = first + tl.arange(0, BLOCK_K)
            dy_MK = tl.load(from_M[:, None] + column_K[None, :], inside_M[:, None] & (column_K < k)[None, :], other=0.0)
            down_KF = w_desc.load([expert, first, f_tile * BLOCK_N]).reshape(BLOCK_K, BLOCK_N)
            dh_MF = tl.dot(dy_MK, down_KF, dh_MF, input_precision="ieee")
        wide_M = row_M.to(tl.int64)
        weight_M = tl.load(weight_ptr + row_M, inside_M, other=0.0)
        along_M = tl.zeros((BLOCK_M,), tl.float32)
        # In parts: what the whole tile needs at once is more than there are registers.
        left_MF, right_MF = tl.split(dh_MF.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1))
        for half in tl.static_range(2):
            half_MF = left_MF if half == 0 else right_MF
            first_MF, second_MF = tl.split(half_MF.reshape(BLOCK_M, 2, BLOCK_N // 4).permute(0, 2, 1))
            for part in tl.static_range(2):
                part_MF = first_MF if part == 0 else second_MF
                column_F = f_tile * BLOCK_N + (2 * half + part) * (BLOCK_N // 4) + tl.arange(0, BLOCK_N // 4)
                along_M += through_swiglu(
                    part_MF, gate_up_ptr, d_gate_up_ptr, h_ptr, wide_M, weight_M, column_F, inside_M, f
                )  # fmt: skip
        tl.store(partial_ptr + f_tile.to(tl.int64) * n_pairs + row_M, along_M, inside_M)


def grid_of(p: int, e: int, o: int, chosen: Configuration) -> tuple[int]:
    """Programs that share the tiles, no more than any routing has: of E experts min(E, P) have rows, each at most one
    tile that is not full.
    """
    tiles = (p // chosen.blocks["BLOCK_M"] + min(e, p)) * ceil_div(o, chosen.blocks["BLOCK_N"])
    return (min(tiles, chosen.blocks["PROGRAMS"]),)


def check_operands(x: Tensor, k: int, weight_EOI: Tensor, offsets_E: Tensor, token_of_row_P: Tensor | None) -> None:
    """ValueError unless rows of k numbers, matrices, offsets and row numbers are what the kernels read."""
    check_rows("the rows", x, DTYPES, 2)
    check_shape("the rows", x, (x.shape[0], k))
    check_rows("the experts' weights", weight_EOI, (x.dtype,), 3)
    e, o, i = weight_EOI.shape
    numbers = TMA_ALIGNMENT_BYTES // x.element_size()
    if 0 in (e, o, i) or o % numbers or i % numbers:
        raise ValueError(
            f"{e} experts' weights of {o} x {i} numbers of {x.dtype} were given; both sizes must be multiples of "
            f"{numbers} (16 bytes), and none 0: give dim and the expert's hidden width such sizes"
        )
    check_aligned("the experts' weights", weight_EOI)
    if token_of_row_P is None:
        check_aligned("the rows", x)
    check_offsets(offsets_E, e)
    check_row_numbers("token_of_row_P", token_of_row_P)


@operator("grouped_product")
def grouped_product_op(
    x_PI: Tensor, weight_EOI: Tensor, offsets_E: Tensor, token_of_row_P: Tensor | None, transposed: bool
) -> Tensor:
    """The operator behind `grouped_product`, with its arguments, result and errors."""
    e, o, k = weight_EOI.shape if weight_EOI.ndim == 3 else (0, 0, 0)
    if transposed:
        o, k = k, o
    check_operands(x_PI, k, weight_EOI, offsets_E, token_of_row_P)
    p = (x_PI if token_of_row_P is None else token_of_row_P).shape[0]
    y_PO = x_PI.new_empty(p, o)
    if not p:
        return y_PO
    kernel = "grouped_product" if token_of_row_P is None else "gathered_product"
    chosen = choose(TABLE, kernel, x_PI, EXACT, ROWS=p // e, N=o, K=k)
    block_m, block_n, block_k = (chosen.blocks[f"BLOCK_{axis}"] for axis in "MNK")
    x_desc = describe_rows(x_PI, (block_m, block_k)) if token_of_row_P is None else None
    w_desc = describe(weight_EOI, (1, block_k, block_n) if transposed else (1, block_n, block_k))
    launch(
        grouped_product_kernel, grid_of(p, e, o, chosen), x_desc, None if token_of_row_P is None else x_PI,
        token_of_row_P, w_desc, offsets_E, y_PO, o, k, e, x_PI.stride(0), TRANSPOSED=transposed,
        BLOCK_E=next_power_of_2(e), **chosen.options,
    )  # fmt: skip
    return y_PO


@grouped_product_op.register_fake
def _(x_PI: Tensor, weight_EOI: Tensor, offsets_E: Tensor, token_of_row_P: Tensor | None, transposed: bool) -> Tensor:
    return x_PI.new_empty(
        (x_PI if token_of_row_P is None else token_of_row_P).shape[0], weight_EOI.shape[2 if transposed else 1]
    )


def grouped_product(
    x_PI: Tensor, weight_EOI: Tensor, offsets_E: Tensor, token_of_row_P: Tensor | None = None, transposed: bool = False
) -> Tensor:
    """y[p] = x[p] w[e]^T, or of x[token_of_row_P[p]], for the expert e whose rows p is among. Not differentiable.

    x: (P, I), or (N, I) with token_of_row_P, int32 (P,). weight: (E, O, I). transposed: times w[e] instead, from x of
    width O, without a transposed copy. offsets_E: int32 (E,), ends of the experts' rows, the last of them P; rows
    beyond it are not written. x and weight both float32 or both bfloat16. -> (P, O), or (P, I) if transposed;
    summed in float32.
    Raises ValueError for other dtypes, shapes, strides or alignments.
    """
    return grouped_product_op(x_PI, weight_EOI, offsets_E, token_of_row_P, transposed)


@operator("grouped_linear")
def grouped_linear_op(x_PI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """The operator behind `grouped_linear`, with its arguments, result and errors."""
    return grouped_product_op.launched(x_PI, weight_EOI, offsets_E, None, False)


@grouped_linear_op.register_fake
def _(x_PI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    return x_PI.new_empty(x_PI.shape[0], weight_EOI.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g_PO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x_PI, weight_EOI, offsets_E = ctx.saved_tensors
    needs_x, needs_weight, _ = ctx.needs_input_grad
    g_PO = aligned_rows(g_PO)
    dx = grouped_product_op(g_PO, weight_EOI, offsets_E, None, True) if needs_x else None
    dw = grouped_weight_gradient_op(g_PO, x_PI, offsets_E, None, None, weight_EOI.dtype) if needs_weight else None
    return dx, dw, None


grouped_linear_op.register_autograd(_backward, setup_context=_keep)


def grouped_linear(x_PI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """y[p] = x[p] w[e]^T for the expert e whose rows p is among: F.grouped_mm(x, w.mT, offs=offsets_E), differentiable.

    x: (P, I), rows sorted by expert; weight: (E, O, I); both float32 or both bfloat16, last axes contiguous, I and O
    multiples of 8 (of 4 in float32). offsets_E: int32 (E,), ends of the experts' rows, the last of them P. -> (P, O).
    Sums in float32. Raises ValueError for other dtypes, shapes, strides or alignments.
    """
    return grouped_linear_op(x_PI, weight_EOI, offsets_E)


@operator("grouped_swiglu")
def grouped_swiglu_op(
    x_ND: Tensor, gate_up_EXD: Tensor, offsets_E: Tensor, token_of_row_P: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """h[p] = silu(gate x[t]) * up x[t] of p's expert, t = token_of_row_P[p] (arXiv:2002.05202); and gate and up.

    gate_up: (E, 2 F, D), rows [0, F) of an expert are the gate. -> h (P, F), and (P, 2 F) if keep, else (0, 2 F).
    """
    e, x, d = gate_up_EXD.shape if gate_up_EXD.ndim == 3 else (0, 0, 0)
    check_operands(x_ND, d, gate_up_EXD, offsets_E, token_of_row_P)
    p, f = token_of_row_P.shape[0], x // 2
    if x % 2:
        raise ValueError(f"the experts' weights of gate and up have {x} rows each; it must be an even number")
    h_PF, gate_up_PX = _swiglu_outputs(x_ND, gate_up_EXD, token_of_row_P, keep)
    if not p:
        return h_PF, gate_up_PX
    chosen = choose(TABLE, "grouped_swiglu_forward", x_ND, EXACT, ROWS=p // e, N=f, K=d)
    w_desc = describe(gate_up_EXD, (1, chosen.blocks["BLOCK_N"], chosen.blocks["BLOCK_K"]))
    launch(
        grouped_swiglu_forward_kernel, grid_of(p, e, f, chosen), x_ND, token_of_row_P, w_desc, offsets_E,
        gate_up_PX if keep else None, h_PF, f, d, e, x_ND.stride(0), BLOCK_E=next_power_of_2(e), **chosen.options,
    )  # fmt: skip
    return h_PF, gate_up_PX


@grouped_swiglu_op.register_fake
def _(
    x_ND: Tensor, gate_up_EXD: Tensor, offsets_E: Tensor, token_of_row_P: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _swiglu_outputs(x_ND, gate_up_EXD, token_of_row_P, keep)


def _swiglu_outputs(x_ND: Tensor, gate_up_EXD: Tensor, token_of_row_P: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    p, x = token_of_row_P.shape[0], gate_up_EXD.shape[1]
    return x_ND.new_empty(p, x // 2), x_ND.new_empty(p if keep else 0, x)


@operator("grouped_swiglu_backward")
def grouped_swiglu_backward_op(
    dy_ND: Tensor, down_EDF: Tensor, offsets_E: Tensor, token_of_row_P: Tensor, gate_up_PX: Tensor, weight_P: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Through y[n] = sum over rows p of token n of weight[p] down h[p], h = silu(gate) * up, without y's addends.

    With dh[p] = down^T dy[token_of_row_P[p]]: -> weight[p] times the gradient of gate and up, (P, 2 F); weight[p] h[p],
    (P, F), for the gradient of down; and the gradient of weight[p], h[p] . dh[p] = dy[n] . (down h[p]), float32 (P,).
    """
    e, d, f = down_EDF.shape if down_EDF.ndim == 3 else (0, 0, 0)
    check_operands(dy_ND, d, down_EDF, offsets_E, token_of_row_P)
    p = token_of_row_P.shape[0]
    check_rows("gate and up", gate_up_PX, (dy_ND.dtype,), 2)
    check_shape("gate and up", gate_up_PX, (p, 2 * f))
    check_rows("the rows' weights", weight_P, (torch.float32,), 1)
    check_shape("the rows' weights", weight_P, (p,))
    d_gate_up_PX, h_PF, d_weight_P = _swiglu_gradients(dy_ND, down_EDF, token_of_row_P)
    if not p:
        return d_gate_up_PX, h_PF, d_weight_P
    chosen = choose(TABLE, "grouped_swiglu_backward", dy_ND, EXACT, ROWS=p // e, N=f, K=d)
    w_desc = describe(down_EDF, (1, chosen.blocks["BLOCK_K"], chosen.blocks["BLOCK_N"]))
    partial_TP = dy_ND.new_empty(ceil_div(f, chosen.blocks["BLOCK_N"]), p, dtype=torch.float32)
    launch(
        grouped_swiglu_backward_kernel, grid_of(p, e, f, chosen), dy_ND, token_of_row_P, w_desc, offsets_E,
        gate_up_PX.contiguous(), weight_P, d_gate_up_PX, h_PF, partial_TP, p, f, d, e, dy_ND.stride(0),
        BLOCK_E=next_power_of_2(e), **chosen.options,
    )  # fmt: skip
    return d_gate_up_PX, h_PF, partial_TP.sum(0)


@grouped_swiglu_backward_op.register_fake
def _(dy_ND: Tensor, down_EDF: Tensor, _: Tensor, token_of_row_P: Tensor, *__: Tensor) -> tuple[Tensor, ...]:
    return _swiglu_gradients(dy_ND, down_EDF, token_of_row_P)


def _swiglu_gradients(dy_ND: Tensor, down_EDF: Tensor, token_of_row_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, f = token_of_row_P.shape[0], down_EDF.shape[2]
    return dy_ND.new_empty(p, 2 * f), dy_ND.new_empty(p, f), dy_ND.new_empty(p, dtype=torch.float32)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration: many rows an expert, and few."""
    for e, n, a, d, f in ((8, 32768, 1, 7168, 2048), (128, 32768, 8, 2048, 768), (256, 4096, 8, 7168, 2048)):
        offsets_E, token_of_row_P = (torch.empty(size, dtype=torch.int32, device="meta") for size in (e, n * a))
        x_ND, gate_up_EXD, down_EDF, weight_P = (
            torch.empty(shape, dtype=dtype, device="meta")
            for *shape, dtype in (
                (n, d, torch.bfloat16), (e, 2 * f, d, torch.bfloat16), (e, d, f, torch.bfloat16), (n * a, torch.float32)
            )
        )  # fmt: skip
        for keep in (False, True):
            h_PF, gate_up_PX = grouped_swiglu_op.launched(x_ND, gate_up_EXD, offsets_E, token_of_row_P, keep)
        yield grouped_product_op.launched(h_PF, down_EDF, offsets_E, None, False)
        yield grouped_swiglu_backward_op.launched(x_ND, down_EDF, offsets_E, token_of_row_P, gate_up_PX, weight_P)
        yield grouped_product_op.launched(gate_up_PX, gate_up_EXD, offsets_E, None, True)
        for weight, transposed in ((gate_up_EXD, False), (down_EDF, True)):
            yield grouped_product_op.launched(x_ND, weight, offsets_E, token_of_row_P, transposed)
