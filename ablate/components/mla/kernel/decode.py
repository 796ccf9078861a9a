"""Decoding with latent attention in its absorbed form (arXiv:2412.19437, section 2.1.1), split over the past.

Queries carry the up projection of the keys, so all heads attend to the cached latents themselves and every latent is
read once for both products and all rows of a block: rows are pairs (token, head). The past is cut into splits, each of
which leaves a maximum, a sum and an unscaled product in float32; a second launch joins them in a fixed order.

Products are transposed, positions by rows and R by rows: the long extents fill the 64 lines of a warpgroup's matrix
instruction, so that 16 heads are no more work than 16. With 8 warps and blocks of 64 positions Triton would have both
warpgroups compute the same scores; four warps hold at most 512 by 32 sums, hence at most 32 rows a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.kernels.launch import block_of, ceil_div, describe, launch, machine_of, operator
from ablate.kernels.operands import DTYPES, check_aligned, check_rows, check_shape
from ablate.kernels.table import Table

TABLE = Table(Path(__file__).with_name("decode.json"))
# With bfloat16 also "wgmma"; the choices for float32 multiply without matrix instructions.
KERNELS: dict[str, tuple[str, ...]] = {"mla_decode_forward_kernel": ("tma",), "mla_decode_join_kernel": ()}
LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["start", "blocks_a_split"])
def mla_decode_forward_kernel(
    q_latent_ptr, q_rope_ptr, latent_desc, key_desc, y_ptr, most_ptr, sum_ptr, start, tokens, heads, rank, rope,
    blocks_a_split, scale, stride_lb, stride_lt, stride_lh, stride_rb, stride_rt, stride_rh,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """`scale`: of scores, times log2 e. `most`, `sum`: (B, splits, rows); y: (B, splits, rows, R), or WHOLE the output.

    The descriptors end with the last position, and what lies beyond an end reads zero: a cache's unwritten rest never
    meets the weights, zero as they would be.
    """
    row_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split, batch = tl.program_id(1), tl.program_id(2)
    token_N, head_N = (row_N // heads).to(tl.int64), (row_N % heads).to(tl.int64)
    inside_N1 = (row_N < tokens * heads)[:, None]
    rank_R, rope_P, position_S = tl.arange(0, BLOCK_R)[None, :], tl.arange(0, BLOCK_P)[None, :], tl.arange(0, BLOCK_S)
    from_N = q_latent_ptr + batch.to(tl.int64) * stride_lb + token_N * stride_lt + head_N * stride_lh
    q_latent_NR = tl.load(from_N[:, None] + rank_R, inside_N1 & (rank_R < rank), other=0.0)
    from_N = q_rope_ptr + batch.to(tl.int64) * stride_rb + token_N * stride_rt + head_N * stride_rh
    q_rope_NP = tl.load(from_N[:, None] + rope_P, inside_N1 & (rope_P < rope), other=0.0)

    last_N = start + token_N
    most_N = tl.full((ROWS,), float("-inf"), tl.float32)
    sum_N = tl.zeros((ROWS,), tl.float32)
    y_RN = tl.zeros((BLOCK_R, ROWS), tl.float32)
    end = tl.minimum((split + 1) * blocks_a_split * BLOCK_S, start + tokens)
    for s in range(split * blocks_a_split * BLOCK_S, end, BLOCK_S):
        latent_SR = tl.reshape(latent_desc.load([batch, s, 0]), (BLOCK_S, BLOCK_R))
        key_SP = tl.reshape(key_desc.load([batch, s, 0]), (BLOCK_S, BLOCK_P))
        scores_SN = tl.dot(latent_SR, q_latent_NR.T, input_precision=PRECISION)
        scores_SN = tl.dot(key_SP, q_rope_NP.T, scores_SN, input_precision=PRECISION) * scale
        scores_SN = tl.where((s + position_S)[:, None] <= last_N[None, :], scores_SN, float("-inf"))
        now_N = tl.maximum(most_N, tl.max(scores_SN, 0))
        # An early token sees nothing of a late split: its maximum stays minus infinity, which no difference may meet.
        base_N = tl.where(now_N == float("-inf"), 0.0, now_N)
        weight_SN, shrink_N = tl.exp2(scores_SN - base_N[None, :]), tl.exp2(most_N - base_N)
        sum_N = sum_N * shrink_N + tl.sum(weight_SN, 0)
        y_RN = tl.dot(latent_SR.T, weight_SN.to(latent_SR.dtype), y_RN * shrink_N[None, :], input_precision=PRECISION)
        most_N = now_N

    first = (batch.to(tl.int64) * tl.num_programs(1) + split) * tokens * heads
    if WHOLE:
        y_RN /= sum_N[None, :]
    else:
        tl.store(most_ptr + first + row_N, most_N, row_N < tokens * heads)
        tl.store(sum_ptr + first + row_N, sum_N, row_N < tokens * heads)
    to_NR = y_ptr + (first + row_N.to(tl.int64))[:, None] * rank + rank_R
    tl.store(to_NR, y_RN.T.to(y_ptr.dtype.element_ty), inside_N1 & (rank_R < rank))


@triton.jit(do_not_specialize=["n_splits"])
def mla_decode_join_kernel(
    part_ptr, most_ptr, sum_ptr, y_ptr, n_splits, rows, rank, SPLITS: tl.constexpr, BLOCK_R: tl.constexpr
):
    """One row's share of R. The largest maximum first, then sums over the splits in their order."""
    row, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    rank_R, split_G = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, SPLITS)
    first = batch * n_splits * rows + row
    most_G = tl.full((SPLITS,), float("-inf"), tl.float32)
    for g in range(0, n_splits, SPLITS):
        at_G = first + (g + split_G).to(tl.int64) * rows
        most_G = tl.maximum(most_G, tl.load(most_ptr + at_G, g + split_G < n_splits, other=float("-inf")))
    most = tl.max(most_G, 0)
    sum_G = tl.zeros((SPLITS,), tl.float32)
    y_GR = tl.zeros((SPLITS, BLOCK_R), tl.float32)
    for g in range(0, n_splits, SPLITS):
        inside_G = g + split_G < n_splits
        at_G = first + (g + split_G).to(tl.int64) * rows
        share_G = tl.exp2(tl.load(most_ptr + at_G, inside_G, other=float("-inf")) - most)
        inside_GR = inside_G[:, None] & (rank_R[None, :] < rank)
        part_GR = tl.load(part_ptr + at_G[:, None] * rank + rank_R[None, :], inside_GR, other=0.0)
        sum_G += share_G * tl.load(sum_ptr + at_G, inside_G, other=0.0)
        y_GR += share_G[:, None] * part_GR
    y_R = tl.sum(y_GR, 0) / tl.sum(sum_G, 0)
    tl.store(y_ptr + (batch * rows + row) * rank + rank_R, y_R.to(y_ptr.dtype.element_ty), rank_R < rank)


@operator("mla_latent_decode")
def latent_decode_op(
    q_latent_BTHR: Tensor, q_rope_BTHP: Tensor, latent_BSR: Tensor, key_BSP: Tensor, start: int, scale: float
) -> Tensor:
    _check(q_latent_BTHR, q_rope_BTHP, latent_BSR, key_BSP, start)
    (b, t, h, r), p = q_latent_BTHR.shape, q_rope_BTHP.shape[3]
    y_BTHR = q_latent_BTHR.new_empty(b, t, h, r)
    if not y_BTHR.numel():
        return y_BTHR
    rows, machine, size = t * h, machine_of(latent_BSR.device), latent_BSR.element_size()
    chosen = TABLE.choose("mla_decode_forward", machine, N=rows, R=r, P=p, BYTES=size)
    options = chosen.options
    n_programs, block_rows, block_s = options.pop("PROGRAMS"), options["ROWS"], options["BLOCK_S"]
    splits, blocks_a_split = cut(ceil_div(start + t, block_s), n_programs // (b * ceil_div(rows, block_rows)))
    whole = splits == 1
    parts, most, sums = (y_BTHR, None, None) if whole else _parts(y_BTHR, splits)
    block_r, block_p = block_of(r), block_of(p)
    latent_desc = describe(latent_BSR[:, : start + t], (1, block_s, block_r))
    key_desc = describe(key_BSP[:, : start + t], (1, block_s, block_p))
    launch(
        mla_decode_forward_kernel, (ceil_div(rows, block_rows), splits, b), q_latent_BTHR, q_rope_BTHP, latent_desc,
        key_desc, parts, most, sums, start, t, h, r, p, blocks_a_split, scale * LOG2_E, *q_latent_BTHR.stride()[:3],
        *q_rope_BTHP.stride()[:3], WHOLE=whole, PRECISION="tf32" if size == 2 else "ieee", **options, BLOCK_R=block_r,
        BLOCK_P=block_p,
    )  # fmt: skip
    if not whole:
        chosen = TABLE.choose("mla_decode_join", machine, R=r)
        grid = rows, ceil_div(r, chosen.blocks["BLOCK_R"]), b
        launch(mla_decode_join_kernel, grid, parts, most, sums, y_BTHR, splits, rows, r, **chosen.options)
    return y_BTHR


def _parts(y_BTHR: Tensor, splits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what every split leaves: products (B, splits, rows, R), and maxima and sums (B, splits, rows)."""
    b, t, h, r = y_BTHR.shape
    shapes = (b, splits, t * h, r), (b, splits, t * h), (b, splits, t * h)
    products, most, sums = (y_BTHR.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return products, most, sums


def cut(n_blocks: int, wanted: int) -> tuple[int, int]:
    """Splits of the past, at most `wanted` of them (but one), none empty; and blocks in each."""
    blocks_a_split = ceil_div(n_blocks, max(1, wanted))
    return ceil_div(n_blocks, blocks_a_split), blocks_a_split


def _check(q_latent: Tensor, q_rope: Tensor, latent: Tensor, key: Tensor, start: int) -> None:
    check_rows("the absorbed queries", q_latent, DTYPES, 4)
    check_rows("the rotated queries", q_rope, (q_latent.dtype,), 4)
    b, t, h, r = q_latent.shape
    check_shape("the rotated queries", q_rope, (b, t, h, q_rope.shape[3]))
    for name, cached, width in (("the cache of latents", latent, r), ("the cache of keys", key, q_rope.shape[3])):
        check_rows(name, cached, (q_latent.dtype,), 3)
        check_shape(name, cached, (b, latent.shape[1], width))
        check_aligned(name, cached)
    if start < 0 or start + t > latent.shape[1]:
        raise ValueError(
            f"{t} tokens from position {start} on, in a cache of {latent.shape[1]} positions; "
            "they must stand in it: write them first, and make it larger if they do not fit"
        )


@latent_decode_op.register_fake
def _(
    q_latent_BTHR: Tensor, q_rope_BTHP: Tensor, latent_BSR: Tensor, key_BSP: Tensor, start: int, scale: float
) -> Tensor:
    return q_latent_BTHR.new_empty(q_latent_BTHR.shape)


def latent_decode(
    q_latent_BTHR: Tensor, q_rope_BTHP: Tensor, latent_BSR: Tensor, key_BSP: Tensor, start: int, scale: float
) -> Tensor:
    """softmax(scale (q_latent latent^T + q_rope key^T)) latent over positions up to each token's own.

    arXiv:2412.19437, eqs. 10 and 2-5 with the up projections absorbed: q_latent is the position-free query times the
    keys' up projection, and the caller multiplies the result by that of the values.
    q_latent: (B, T, H, R) and q_rope: (B, T, H, P), rotated, of tokens at positions start .. start + T - 1; any
    strides but the last. latent: (B, S, R), key: (B, S, P): a cache in which those tokens already stand, S at least
    start + T; positions beyond are not read; strides in multiples of 16 bytes. float32 or bfloat16, all alike.
    -> (B, T, H, R). Softmax and sums are float32; weights are rounded to the cache's dtype. The number of splits
    follows from shapes alone, so results repeat bit for bit. Has no gradient. Raises ValueError for other shapes,
    dtypes or strides, or where the table has no configuration for the sizes.
    """
    return latent_decode_op(q_latent_BTHR, q_rope_BTHP, latent_BSR, key_BSP, start, scale)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    for batch, heads, r, p, dtype in (
        (4, 16, 512, 64, torch.bfloat16),
        (4, 128, 512, 64, torch.bfloat16),
        (512, 16, 512, 64, torch.bfloat16),  # enough sequences for one split
        (512, 128, 512, 64, torch.bfloat16),
        (4, 16, 32, 16, torch.float32),
        (4, 16, 64, 64, torch.float32),
    ):
        q_BTHR, q_BTHP, latent_BSR, key_BSP = (
            torch.empty(batch, *shape, dtype=dtype, device="meta")
            for shape in ((1, heads, r), (1, heads, p), (8192, r), (8192, p))
        )
        yield latent_decode_op.launched(q_BTHR, q_BTHP, latent_BSR, key_BSP, 4096, 0.1)
