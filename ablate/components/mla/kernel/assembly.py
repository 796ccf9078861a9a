"""Queries and keys of latent attention for a library's attention, which wants joined heads: one launch each way.

Joined heads (B, T, H, K + P) are the position-free part beside the rotated part; of keys the latter is one for all
heads (arXiv:2412.19437, eqs. 2-4 and 7-9).

Values are returned as a copy, made in the same launch. Counted a token and a head at K 128, P 64, V 128: the least
without values is 704 numbers forward (read 192 + 128, write 192 + 192) and 704 backward. A view of the values cannot
leave an operator, and a view taken by torch costs a concatenation of the two gradients of `kv`: 512 more backward
(256 read, 256 written, another launch). The copy costs 256 more forward and 256 more backward: the same bytes, no
launch besides, and `kv` (256 numbers) is not kept for the backward pass, only the values (128).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.components.mla.kernel.rotate import check_tables, turn
from ablate.kernels.launch import ceil_div, launch, machine_of, next_power_of_2, operator
from ablate.kernels.operands import DTYPES, check_rows, check_shape, contiguous_rows
from ablate.kernels.table import Table

TABLE = Table(Path(__file__).with_name("assembly.json"))
KERNELS: dict[str, tuple[str, ...]] = {"mla_assemble_forward_kernel": (), "mla_assemble_backward_kernel": ()}


@triton.jit
def mla_assemble_forward_kernel(
    q_ptr, kv_ptr, key_ptr, cos_ptr, sin_ptr, to_q_ptr, to_k_ptr, to_v_ptr, length, heads, nope, half, values,
    stride_qb, stride_qt, stride_qh, stride_kvb, stride_kvt, stride_kvh, stride_keyb, stride_keyt,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """`nope`, `half`, `values`: K, P / 2 and V."""
    dtype = to_q_ptr.dtype.element_ty
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None, None].to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[None, :, None].to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    channel_K, pair_P = tl.arange(0, BLOCK_K)[None, None, :], tl.arange(0, BLOCK_P)[None, None, :]
    value_V = tl.arange(0, BLOCK_V)[None, None, :]
    inside_TH = (token < length) & (head < heads)
    inside_THK, inside_THP = inside_TH & (channel_K < nope), inside_TH & (pair_P < half)
    inside_T1P, inside_THV = (token < length) & (pair_P < half), inside_TH & (value_V < values)

    q_TH = q_ptr + batch * stride_qb + token * stride_qt + head * stride_qh
    kv_TH = kv_ptr + batch * stride_kvb + token * stride_kvt + head * stride_kvh
    key_T1P = key_ptr + batch * stride_keyb + token * stride_keyt + pair_P
    q_THK = tl.load(q_TH + channel_K, inside_THK, other=0.0)
    k_THK = tl.load(kv_TH + channel_K, inside_THK, other=0.0)
    v_THV = tl.load(kv_TH + nope + value_V, inside_THV, other=0.0)
    first_THP = tl.load(q_TH + nope + pair_P, inside_THP, other=0.0).to(tl.float32)
    second_THP = tl.load(q_TH + nope + half + pair_P, inside_THP, other=0.0).to(tl.float32)
    cos_T1P = tl.load(cos_ptr + token * half + pair_P, inside_T1P, other=0.0)
    sin_T1P = tl.load(sin_ptr + token * half + pair_P, inside_T1P, other=0.0)
    key_first_T1P = tl.load(key_T1P, inside_T1P, other=0.0).to(tl.float32)
    key_second_T1P = tl.load(key_T1P + half, inside_T1P, other=0.0).to(tl.float32)

    first_THP, second_THP = turn(first_THP, second_THP, cos_T1P, sin_T1P)
    key_first_T1P, key_second_T1P = turn(key_first_T1P, key_second_T1P, cos_T1P, sin_T1P)
    row_TH = (batch * length + token) * heads + head
    to_q_TH, to_k_TH = to_q_ptr + row_TH * (nope + 2 * half), to_k_ptr + row_TH * (nope + 2 * half)
    tl.store(to_q_TH + channel_K, q_THK, inside_THK)
    tl.store(to_q_TH + nope + pair_P, first_THP.to(dtype), inside_THP)
    tl.store(to_q_TH + nope + half + pair_P, second_THP.to(dtype), inside_THP)
    tl.store(to_k_TH + channel_K, k_THK, inside_THK)
    key_first_THP = tl.broadcast_to(key_first_T1P.to(dtype), TOKENS, HEADS, BLOCK_P)
    key_second_THP = tl.broadcast_to(key_second_T1P.to(dtype), TOKENS, HEADS, BLOCK_P)
    tl.store(to_k_TH + nope + pair_P, key_first_THP, inside_THP)
    tl.store(to_k_TH + nope + half + pair_P, key_second_THP, inside_THP)
    tl.store(to_v_ptr + row_TH * values + value_V, v_THV, inside_THV)


@triton.jit
def mla_assemble_backward_kernel(
    dq_ptr, dk_ptr, dv_ptr, cos_ptr, sin_ptr, to_q_ptr, to_kv_ptr, to_key_ptr, length, heads, nope, half, values,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """All heads of some tokens, so that the shared key's gradient is summed here, in float32 and a fixed order."""
    dtype = to_q_ptr.dtype.element_ty
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None, None].to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    channel_K, pair_P = tl.arange(0, BLOCK_K)[None, None, :], tl.arange(0, BLOCK_P)[None, None, :]
    value_V = tl.arange(0, BLOCK_V)[None, None, :]
    inside_T1P = (token < length) & (pair_P < half)
    cos_T1P = tl.load(cos_ptr + token * half + pair_P, inside_T1P, other=0.0)
    sin_T1P = -tl.load(sin_ptr + token * half + pair_P, inside_T1P, other=0.0)
    key_first_THP = tl.zeros((TOKENS, HEADS, BLOCK_P), tl.float32)
    key_second_THP = tl.zeros((TOKENS, HEADS, BLOCK_P), tl.float32)
    for start in range(0, heads, HEADS):
        head = (start + tl.arange(0, HEADS))[None, :, None].to(tl.int64)
        inside_TH = (token < length) & (head < heads)
        inside_THK, inside_THP = inside_TH & (channel_K < nope), inside_TH & (pair_P < half)
        inside_THV = inside_TH & (value_V < values)
        dq_TH = dq_ptr + batch * stride_qb + token * stride_qt + head * stride_qh
        dk_TH = dk_ptr + batch * stride_kb + token * stride_kt + head * stride_kh
        dv_TH = dv_ptr + batch * stride_vb + token * stride_vt + head * stride_vh
        dq_THK = tl.load(dq_TH + channel_K, inside_THK, other=0.0)
        dk_THK = tl.load(dk_TH + channel_K, inside_THK, other=0.0)
        dv_THV = tl.load(dv_TH + value_V, inside_THV, other=0.0)
        first_THP = tl.load(dq_TH + nope + pair_P, inside_THP, other=0.0).to(tl.float32)
        second_THP = tl.load(dq_TH + nope + half + pair_P, inside_THP, other=0.0).to(tl.float32)
        key_first_THP += tl.load(dk_TH + nope + pair_P, inside_THP, other=0.0).to(tl.float32)
        key_second_THP += tl.load(dk_TH + nope + half + pair_P, inside_THP, other=0.0).to(tl.float32)

        first_THP, second_THP = turn(first_THP, second_THP, cos_T1P, sin_T1P)
        row_TH = (batch * length + token) * heads + head
        to_q_TH, to_kv_TH = to_q_ptr + row_TH * (nope + 2 * half), to_kv_ptr + row_TH * (nope + values)
        tl.store(to_q_TH + channel_K, dq_THK, inside_THK)
        tl.store(to_q_TH + nope + pair_P, first_THP.to(dtype), inside_THP)
        tl.store(to_q_TH + nope + half + pair_P, second_THP.to(dtype), inside_THP)
        tl.store(to_kv_TH + channel_K, dk_THK, inside_THK)
        tl.store(to_kv_TH + nope + value_V, dv_THV, inside_THV)
    first_T1P, second_T1P = turn(
        tl.sum(key_first_THP, 1, keep_dims=True), tl.sum(key_second_THP, 1, keep_dims=True), cos_T1P, sin_T1P
    )
    to_key_T1P = to_key_ptr + (batch * length + token) * (2 * half) + pair_P
    tl.store(to_key_T1P, first_T1P.to(dtype), inside_T1P)
    tl.store(to_key_T1P + half, second_T1P.to(dtype), inside_T1P)


@operator("mla_assemble")
def assemble_op(
    q_BTHK: Tensor, kv_BTHX: Tensor, key_BTP: Tensor, cos_TP: Tensor, sin_TP: Tensor, qk_nope_head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    _check(q_BTHK, kv_BTHX, key_BTP, cos_TP, sin_TP, qk_nope_head_dim)
    (b, t, h, _), n, p = q_BTHK.shape, qk_nope_head_dim, key_BTP.shape[2]
    outputs = _outputs(q_BTHK, kv_BTHX, n)
    v = kv_BTHX.shape[3] - n
    chosen = TABLE.choose("mla_assemble_forward", machine_of(q_BTHK.device), H=h)
    grid = ceil_div(t, chosen.blocks["TOKENS"]), ceil_div(h, chosen.blocks["HEADS"]), b
    launch(
        mla_assemble_forward_kernel, grid, q_BTHK, kv_BTHX, key_BTP, cos_TP, sin_TP, *outputs, t, h, n, p // 2, v,
        *q_BTHK.stride()[:3], *kv_BTHX.stride()[:3], *key_BTP.stride()[:2], **chosen.options, **_blocks(n, p, v),
    )  # fmt: skip
    return outputs


def _check(q_BTHK: Tensor, kv_BTHX: Tensor, key_BTP: Tensor, cos_TP: Tensor, sin_TP: Tensor, nope: int) -> None:
    check_rows("the queries", q_BTHK, DTYPES, 4)
    check_rows("keys and values", kv_BTHX, (q_BTHK.dtype,), 4)
    check_rows("the shared key", key_BTP, (q_BTHK.dtype,), 3)
    (b, t, h, k), p = q_BTHK.shape, key_BTP.shape[2]
    if not 0 < nope < kv_BTHX.shape[3]:
        raise ValueError(f"{nope} of {kv_BTHX.shape[3]} channels are keys; it must be some and leave some for values")
    check_shape("the shared key", key_BTP, (b, t, k - nope))
    check_shape("keys and values", kv_BTHX, (b, t, h, kv_BTHX.shape[3]))
    check_tables(cos_TP, sin_TP, t, p)


def _blocks(nope: int, rope: int, values: int) -> dict[str, int]:
    return {
        "BLOCK_K": next_power_of_2(nope),
        "BLOCK_P": next_power_of_2(rope // 2),
        "BLOCK_V": next_power_of_2(values),
    }


@assemble_op.register_fake
def _(q_BTHK: Tensor, kv_BTHX: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(q_BTHK, kv_BTHX, rest[-1])


def _outputs(q_BTHK: Tensor, kv_BTHX: Tensor, nope: int) -> tuple[Tensor, Tensor, Tensor]:
    b, t, h, x = kv_BTHX.shape
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty(b, t, h, x - nope)


@operator("mla_assemble_backward")
def assemble_backward_op(
    dq_BTHK: Tensor, dk_BTHK: Tensor, dv_BTHV: Tensor, cos_TP: Tensor, sin_TP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq_BTHK, dk_BTHK, dv_BTHV = contiguous_rows(dq_BTHK), contiguous_rows(dk_BTHK), contiguous_rows(dv_BTHV)
    (b, t, h, k), v, p = dq_BTHK.shape, dv_BTHV.shape[3], 2 * cos_TP.shape[1]
    outputs = _gradients(dq_BTHK, dv_BTHV, cos_TP)
    chosen = TABLE.choose("mla_assemble_backward", machine_of(dq_BTHK.device), H=h)
    launch(
        mla_assemble_backward_kernel, (ceil_div(t, chosen.blocks["TOKENS"]), b), dq_BTHK, dk_BTHK, dv_BTHV, cos_TP,
        sin_TP, *outputs, t, h, k - p, p // 2, v, *dq_BTHK.stride()[:3], *dk_BTHK.stride()[:3], *dv_BTHV.stride()[:3],
        **chosen.options, **_blocks(k - p, p, v),
    )  # fmt: skip
    return outputs


@assemble_backward_op.register_fake
def _(
    dq_BTHK: Tensor, dk_BTHK: Tensor, dv_BTHV: Tensor, cos_TP: Tensor, sin_TP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(dq_BTHK, dv_BTHV, cos_TP)


def _gradients(dq_BTHK: Tensor, dv_BTHV: Tensor, cos_TP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (b, t, h, k), p = dq_BTHK.shape, 2 * cos_TP.shape[1]
    dkv_BTHX = dq_BTHK.new_empty(b, t, h, k - p + dv_BTHV.shape[3])
    return dq_BTHK.new_empty(b, t, h, k), dkv_BTHX, dq_BTHK.new_empty(b, t, p)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[3], inputs[4])


def _backward(
    ctx: Any, dq_BTHK: Tensor, dk_BTHK: Tensor, dv_BTHV: Tensor
) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
    return *assemble_backward_op(dq_BTHK, dk_BTHK, dv_BTHV, *ctx.saved_tensors), None, None, None


assemble_op.register_autograd(_backward, setup_context=_keep)


def assemble(
    q_BTHK: Tensor, kv_BTHX: Tensor, key_BTP: Tensor, cos_TP: Tensor, sin_TP: Tensor, qk_nope_head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Joined queries and keys, and values, for attention (arXiv:2412.19437, eqs. 2-5 and 7-9). -> q, k, v

    q: (B, T, H, K + P) from the up projection, its last P channels not yet rotated; kv: (B, T, H, K + V);
    key: (B, T, P), the shared key, not yet rotated; cos, sin: float32 (T, P / 2); K: `qk_nope_head_dim`.
    float32 or bfloat16, all three alike; last axes contiguous, other strides free.
    -> (B, T, H, K + P), (B, T, H, K + P), (B, T, H, V), contiguous. Rotation is float32 and rounds once; everything
    else is copied. Raises ValueError for other shapes, dtypes or strides.
    """
    return assemble_op(q_BTHK, kv_BTHX, key_BTP, cos_TP, sin_TP, qk_nope_head_dim)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration: 128 / 64 / 128 channels."""
    for heads in (2, 16, 128):
        q_BTHK, kv_BTHX, down_BTX = (
            torch.empty(2, 4096, *shape, dtype=torch.bfloat16, device="meta")
            for shape in ((heads, 192), (heads, 256), (576,))
        )
        cos_TP = torch.empty(4096, 32, device="meta")
        outputs = assemble_op.launched(q_BTHK, kv_BTHX, down_BTX[..., 512:], cos_TP, cos_TP, 128)
        yield assemble_backward_op.launched(*outputs, cos_TP, cos_TP)
