"""Latent attention's backward kernels: one for queries, one for keys and values, and the sums both start from.

Weights are computed anew from the logarithms that the forward pass kept (FlashAttention, arXiv:2205.14135).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ablate.components.mla.kernel.attention_blocks import (
    head_rows,
    keys_and_scores,
    query_block,
    shared_rows,
    spread,
    store_rows,
)


@triton.jit
def mla_attention_backward_delta_kernel(
    o_ptr, do_ptr, delta_ptr, n_tokens, n_heads, stride_gb, stride_gt, stride_gh, DIM_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Of each query and head the sum of output times gradient: what the weights' gradients share."""
    batch, head = tl.program_id(1) // n_heads, tl.program_id(1) % n_heads
    row_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column_V = tl.arange(0, BLOCK_V)
    inside_MV = (row_M[:, None] < n_tokens) & (column_V[None, :] < DIM_V)
    wide_M = row_M.to(tl.int64)
    o_M = o_ptr + ((batch.to(tl.int64) * n_tokens + wide_M) * n_heads + head) * DIM_V
    do_M = do_ptr + batch.to(tl.int64) * stride_gb + wide_M * stride_gt + head.to(tl.int64) * stride_gh
    o_MV = tl.load(o_M[:, None] + column_V[None, :], inside_MV, other=0.0).to(tl.float32)
    do_MV = tl.load(do_M[:, None] + column_V[None, :], inside_MV, other=0.0).to(tl.float32)
    delta_ptr += tl.program_id(1).to(tl.int64) * n_tokens
    tl.store(delta_ptr + row_M, tl.sum(o_MV * do_MV, 1), row_M < n_tokens)


@triton.jit
def add_to_queries(
    dq_nope_MK, dq_rope_MP, q_nope_MK, q_rope_MP, do_MV, lse_M, delta_M, k_nope_desc, k_rope_desc, v_desc, row_M,
    document_M, batch, head, start_n, scale_log2, PARTIAL: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The queries' gradients, without the scale, with one more block of keys."""
    k_nope_NK, k_rope_NP, s_MN = keys_and_scores(
        q_nope_MK, q_rope_MP, k_nope_desc, k_rope_desc, row_M, document_M, batch, head, start_n,
        PARTIAL, BLOCK_N, BLOCK_K, BLOCK_P,
    )  # fmt: skip
    p_MN = tl.exp2(s_MN * scale_log2 - lse_M[:, None])
    v_NV = head_rows(v_desc, batch, head, start_n, BLOCK_N, BLOCK_V)
    dp_MN = tl.dot(do_MV, v_NV.T, input_precision="ieee")
    ds_MN = (p_MN * (dp_MN - delta_M[:, None])).to(q_nope_MK.dtype)
    dq_nope_MK = tl.dot(ds_MN, k_nope_NK, dq_nope_MK, input_precision="ieee")
    dq_rope_MP = tl.dot(ds_MN, k_rope_NP, dq_rope_MP, input_precision="ieee")
    return dq_nope_MK, dq_rope_MP


@triton.jit
def mla_attention_backward_query_kernel(
    q_nope_desc, q_rope_desc, k_nope_desc, k_rope_desc, v_desc, do_desc, document_ptr, lse_ptr, delta_ptr,
    dq_nope_ptr, dq_rope_ptr, n_tokens, n_heads, scale, scale_log2, DIM_K: tl.constexpr, DIM_P: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of queries of one head."""
    batch, head, start_m, row_M, document_M, q_nope_MK, q_rope_MP, first, full, full_end, n_partial = query_block(
        q_nope_desc, q_rope_desc, document_ptr, n_tokens, n_heads, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_P
    )
    do_MV = head_rows(do_desc, batch, head, start_m, BLOCK_M, BLOCK_V)
    place_M = tl.program_id(1).to(tl.int64) * n_tokens + row_M
    # Rows beyond the last weigh nothing.
    lse_M = tl.load(lse_ptr + place_M, row_M < n_tokens, other=float("inf"))
    delta_M = tl.load(delta_ptr + place_M, row_M < n_tokens, other=0.0)
    dq_nope_MK = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    dq_rope_MP = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
    for start_n in range(full, full_end, BLOCK_N):
        dq_nope_MK, dq_rope_MP = add_to_queries(
            dq_nope_MK, dq_rope_MP, q_nope_MK, q_rope_MP, do_MV, lse_M, delta_M, k_nope_desc, k_rope_desc, v_desc,
            row_M, document_M, batch, head, start_n, scale_log2, False, BLOCK_N, BLOCK_K, BLOCK_P, BLOCK_V,
        )  # fmt: skip
    for block in range(n_partial):
        start_n = spread(block, first, full, full_end, BLOCK_N)
        dq_nope_MK, dq_rope_MP = add_to_queries(
            dq_nope_MK, dq_rope_MP, q_nope_MK, q_rope_MP, do_MV, lse_M, delta_M, k_nope_desc, k_rope_desc, v_desc,
            row_M, document_M, batch, head, start_n, scale_log2, True, BLOCK_N, BLOCK_K, BLOCK_P, BLOCK_V,
        )  # fmt: skip
    store_rows(dq_nope_ptr, dq_nope_MK * scale, batch, head, row_M, n_tokens, n_heads, DIM_K, BLOCK_K)
    store_rows(dq_rope_ptr, dq_rope_MP * scale, batch, head, row_M, n_tokens, n_heads, DIM_P, BLOCK_P)


@triton.jit
def query_blocks(last_ptr, batch, start_n, n_tokens, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """What sees a block of keys: the first query block, the range that sees all of it, how many other blocks."""
    first = start_n // BLOCK_M * BLOCK_M
    full = tl.cdiv(start_n + BLOCK_N - 1, BLOCK_M) * BLOCK_M
    if last_ptr is not None:
        last_ptr += batch.to(tl.int64) * n_tokens
        end = tl.load(last_ptr + tl.minimum(start_n + BLOCK_N, n_tokens) - 1) + 1
        full_end = (tl.load(last_ptr + start_n) + 1) // BLOCK_M * BLOCK_M
    else:
        end = n_tokens
        # Rows beyond the last need no mask: they weigh nothing.
        full_end = tl.cdiv(n_tokens, BLOCK_M) * BLOCK_M
    full_end = tl.maximum(full_end, full)
    n_partial = tl.cdiv(end - first, BLOCK_M) - (full_end - full) // BLOCK_M
    return first, full, full_end, n_partial


@triton.jit
def add_to_keys(
    dk_nope_NK, dk_rope_NP, dv_NV, k_nope_NK, k_rope_NP, v_NV, q_nope_desc, q_rope_desc, do_desc, lse_ptr, delta_ptr,
    key_N, last_N, n_tokens, batch, head, start_m, scale_log2, PARTIAL: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Gradients of keys, without the scale, and values, with one more block of queries. Scores stand transposed."""
    row_M = start_m + tl.arange(0, BLOCK_M)
    q_nope_MK = head_rows(q_nope_desc, batch, head, start_m, BLOCK_M, BLOCK_K)
    q_rope_MP = head_rows(q_rope_desc, batch, head, start_m, BLOCK_M, BLOCK_P)
    s_NM = tl.dot(k_nope_NK, q_nope_MK.T, input_precision="ieee")
    s_NM = tl.dot(k_rope_NP, q_rope_MP.T, s_NM, input_precision="ieee")
    if PARTIAL:
        seen_NM = (row_M[None, :] >= key_N[:, None]) & (row_M[None, :] <= last_N[:, None])
        s_NM = tl.where(seen_NM, s_NM, float("-inf"))
    lse_M = tl.load(lse_ptr + row_M, row_M < n_tokens, other=float("inf"))
    p_NM = tl.exp2(s_NM * scale_log2 - lse_M[None, :])
    do_MV = head_rows(do_desc, batch, head, start_m, BLOCK_M, BLOCK_V)
    dv_NV = tl.dot(p_NM.to(do_MV.dtype), do_MV, dv_NV, input_precision="ieee")
    dp_NM = tl.dot(v_NV, do_MV.T, input_precision="ieee")
    delta_M = tl.load(delta_ptr + row_M, row_M < n_tokens, other=0.0)
    ds_NM = (p_NM * (dp_NM - delta_M[None, :])).to(q_nope_MK.dtype)
    dk_nope_NK = tl.dot(ds_NM, q_nope_MK, dk_nope_NK, input_precision="ieee")
    dk_rope_NP = tl.dot(ds_NM, q_rope_MP, dk_rope_NP, input_precision="ieee")
    return dk_nope_NK, dk_rope_NP, dv_NV


@triton.jit
def mla_attention_backward_key_kernel(
    q_nope_desc, q_rope_desc, k_nope_desc, k_rope_desc, v_desc, do_desc, last_ptr, lse_ptr, delta_ptr,
    dk_nope_ptr, dk_rope_ptr, dv_ptr, n_tokens, n_heads, scale, scale_log2, DIM_K: tl.constexpr, DIM_P: tl.constexpr,
    DIM_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values of one head; of the shared key, this head's part."""
    start_n = tl.program_id(0) * BLOCK_N
    batch, head = tl.program_id(1) // n_heads, tl.program_id(1) % n_heads
    key_N = start_n + tl.arange(0, BLOCK_N)
    first, full, full_end, n_partial = query_blocks(last_ptr, batch, start_n, n_tokens, BLOCK_M, BLOCK_N)
    if last_ptr is not None:
        last_place = batch.to(tl.int64) * n_tokens + tl.minimum(key_N, n_tokens - 1)
        last_N = tl.load(last_ptr + last_place)
    else:
        last_N = tl.full((BLOCK_N,), n_tokens, tl.int32)
    k_nope_NK = head_rows(k_nope_desc, batch, head, start_n, BLOCK_N, BLOCK_K)
    k_rope_NP = shared_rows(k_rope_desc, batch, start_n, BLOCK_N, BLOCK_P)
    v_NV = head_rows(v_desc, batch, head, start_n, BLOCK_N, BLOCK_V)
    lse_ptr += tl.program_id(1).to(tl.int64) * n_tokens
    delta_ptr += tl.program_id(1).to(tl.int64) * n_tokens
    dk_nope_NK = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    dk_rope_NP = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    dv_NV = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for block in range(n_partial):
        start_m = spread(block, first, full, full_end, BLOCK_M)
        dk_nope_NK, dk_rope_NP, dv_NV = add_to_keys(
            dk_nope_NK, dk_rope_NP, dv_NV, k_nope_NK, k_rope_NP, v_NV, q_nope_desc, q_rope_desc, do_desc, lse_ptr,
            delta_ptr, key_N, last_N, n_tokens, batch, head, start_m, scale_log2, True, BLOCK_M, BLOCK_K, BLOCK_P,
            BLOCK_V,
        )  # fmt: skip
    for start_m in range(full, full_end, BLOCK_M):
        dk_nope_NK, dk_rope_NP, dv_NV = add_to_keys(
            dk_nope_NK, dk_rope_NP, dv_NV, k_nope_NK, k_rope_NP, v_NV, q_nope_desc, q_rope_desc, do_desc, lse_ptr,
            delta_ptr, key_N, last_N, n_tokens, batch, head, start_m, scale_log2, False, BLOCK_M, BLOCK_K, BLOCK_P,
            BLOCK_V,
        )  # fmt: skip
    store_rows(dk_nope_ptr, dk_nope_NK * scale, batch, head, key_N, n_tokens, n_heads, DIM_K, BLOCK_K)
    store_rows(dk_rope_ptr, dk_rope_NP * scale, batch, head, key_N, n_tokens, n_heads, DIM_P, BLOCK_P)
    store_rows(dv_ptr, dv_NV, batch, head, key_N, n_tokens, n_heads, DIM_V, BLOCK_V)
