"""Latent attention's forward kernel: softmax over key blocks that pass by once (FlashAttention, arXiv:2205.14135)."""

from __future__ import annotations

import triton
import triton.language as tl

from ablate.components.mla.kernel.attention_blocks import head_rows, keys_and_scores, query_block, spread, store_rows

# A score's stand-in before any key was seen: finite, since the difference of two infinities is not a number.
MIN_SCORE: tl.constexpr = tl.constexpr(-1e38)


@triton.jit
def add_keys(
    acc_MV, top_M, sum_M, q_nope_MK, q_rope_MP, k_nope_desc, k_rope_desc, v_desc, row_M, document_M, batch, head,
    start_n, scale_log2, PARTIAL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The sums over keys, their logarithmic scale `top` and the sum of weights, with one more block of keys."""
    _, _, s_MN = keys_and_scores(
        q_nope_MK, q_rope_MP, k_nope_desc, k_rope_desc, row_M, document_M, batch, head, start_n,
        PARTIAL, BLOCK_N, BLOCK_K, BLOCK_P,
    )  # fmt: skip
    new_M = tl.maximum(top_M, tl.max(s_MN, 1) * scale_log2)
    p_MN = tl.exp2(s_MN * scale_log2 - new_M[:, None])
    shrink_M = tl.exp2(top_M - new_M)
    sum_M = sum_M * shrink_M + tl.sum(p_MN, 1)
    v_NV = head_rows(v_desc, batch, head, start_n, BLOCK_N, BLOCK_V)
    acc_MV = tl.dot(p_MN.to(v_NV.dtype), v_NV, acc_MV * shrink_M[:, None], input_precision="ieee")
    return acc_MV, new_M, sum_M


@triton.jit
def mla_attention_forward_kernel(
    q_nope_desc, q_rope_desc, k_nope_desc, k_rope_desc, v_desc, document_ptr, o_ptr, lse_ptr, n_tokens, n_heads,
    scale_log2, DIM_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Outputs of one block of queries of one head, and the base-2 logarithms of their sums of exponentials."""
    batch, head, _, row_M, document_M, q_nope_MK, q_rope_MP, first, full, full_end, n_partial = query_block(
        q_nope_desc, q_rope_desc, document_ptr, n_tokens, n_heads, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_P
    )
    acc_MV = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    top_M = tl.full((BLOCK_M,), MIN_SCORE, tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    for start_n in range(full, full_end, BLOCK_N):
        acc_MV, top_M, sum_M = add_keys(
            acc_MV, top_M, sum_M, q_nope_MK, q_rope_MP, k_nope_desc, k_rope_desc, v_desc, row_M, document_M, batch,
            head, start_n, scale_log2, False, BLOCK_N, BLOCK_K, BLOCK_P, BLOCK_V,
        )  # fmt: skip
    for block in range(n_partial):
        start_n = spread(block, first, full, full_end, BLOCK_N)
        acc_MV, top_M, sum_M = add_keys(
            acc_MV, top_M, sum_M, q_nope_MK, q_rope_MP, k_nope_desc, k_rope_desc, v_desc, row_M, document_M, batch,
            head, start_n, scale_log2, True, BLOCK_N, BLOCK_K, BLOCK_P, BLOCK_V,
        )  # fmt: skip
    lse_ptr += tl.program_id(1).to(tl.int64) * n_tokens
    tl.store(lse_ptr + row_M, top_M + tl.log2(sum_M), row_M < n_tokens)
    store_rows(o_ptr, acc_MV / sum_M[:, None], batch, head, row_M, n_tokens, n_heads, DIM_V, BLOCK_V)
