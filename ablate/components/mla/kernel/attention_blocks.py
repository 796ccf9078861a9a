"""Device functions that latent attention's forward and backward kernels share: blocks of rows, and their scores.

Keys are two products summed: the heads' own parts, and one rotated part that all heads read from the same memory.
Letters: M queries and N keys of a block, K position-free, P rotated and V value channels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_rows(desc, batch, head, start, BLOCK: tl.constexpr, DIM: tl.constexpr):
    """Rows of one head from `start`; zeros beyond the last."""
    return desc.load([batch, head, start, 0]).reshape(BLOCK, DIM)


@triton.jit
def shared_rows(desc, batch, start, BLOCK: tl.constexpr, DIM: tl.constexpr):
    """Rows of what all heads share."""
    return desc.load([batch, start, 0]).reshape(BLOCK, DIM)


@triton.jit
def spread(block, first, full, full_end, BLOCK: tl.constexpr):
    """Where the `block`-th partly visible block starts: those begin at `first` and leave out `full` to `full_end`."""
    start = first + block * BLOCK
    return start + tl.where(start >= full, full_end - full, 0)


@triton.jit
def key_blocks(document_ptr, batch, start_m, n_tokens, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """What a block of queries sees: the first key block, the range that all of it sees whole, how many other blocks."""
    end = tl.minimum(start_m + BLOCK_M, n_tokens)
    if document_ptr is not None:
        document_ptr += batch.to(tl.int64) * n_tokens
        first = tl.load(document_ptr + start_m) // BLOCK_N * BLOCK_N
        full = tl.cdiv(tl.load(document_ptr + end - 1), BLOCK_N) * BLOCK_N
    else:
        first = start_m * 0
        full = start_m * 0
    full_end = tl.maximum((start_m + 1) // BLOCK_N * BLOCK_N, full)
    n_partial = tl.cdiv(end - first, BLOCK_N) - (full_end - full) // BLOCK_N
    return first, full, full_end, n_partial


@triton.jit
def rows_documents(document_ptr, batch, row_M, n_tokens):
    """First key that each query may see; of rows beyond the last, that of the last."""
    if document_ptr is not None:
        document_ptr += batch.to(tl.int64) * n_tokens
        document_M = tl.load(document_ptr + tl.minimum(row_M, n_tokens - 1))
    else:
        document_M = row_M * 0
    return document_M


@triton.jit
def hide(s_MN, row_M, document_M, start_n, BLOCK_N: tl.constexpr):
    """Scores, minus infinity where the key is later than the query or of an earlier document."""
    key_N = start_n + tl.arange(0, BLOCK_N)
    seen_MN = (key_N[None, :] <= row_M[:, None]) & (key_N[None, :] >= document_M[:, None])
    return tl.where(seen_MN, s_MN, float("-inf"))


@triton.jit
def query_block(
    q_nope_desc, q_rope_desc, document_ptr, n_tokens, n_heads,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A program's block of queries of one head: where it is, its queries, and the blocks of keys that it sees.

    Returns batch, head, start; positions, first visible keys, both parts of the queries; and what `key_blocks` does.
    """
    # Later queries see more keys: they start first, so that none is left to run alone.
    start_m = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    batch, head = tl.program_id(1) // n_heads, tl.program_id(1) % n_heads
    row_M = start_m + tl.arange(0, BLOCK_M)
    first, full, full_end, n_partial = key_blocks(document_ptr, batch, start_m, n_tokens, BLOCK_M, BLOCK_N)
    document_M = rows_documents(document_ptr, batch, row_M, n_tokens)
    q_nope_MK = head_rows(q_nope_desc, batch, head, start_m, BLOCK_M, BLOCK_K)
    q_rope_MP = head_rows(q_rope_desc, batch, head, start_m, BLOCK_M, BLOCK_P)
    return batch, head, start_m, row_M, document_M, q_nope_MK, q_rope_MP, first, full, full_end, n_partial


@triton.jit
def keys_and_scores(
    q_nope_MK, q_rope_MP, k_nope_desc, k_rope_desc, row_M, document_M, batch, head, start_n,
    PARTIAL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Both parts of a block of keys from `start_n`, and the queries' scores without the scale; PARTIAL: hidden ones."""
    k_nope_NK = head_rows(k_nope_desc, batch, head, start_n, BLOCK_N, BLOCK_K)
    k_rope_NP = shared_rows(k_rope_desc, batch, start_n, BLOCK_N, BLOCK_P)
    s_MN = tl.dot(q_nope_MK, k_nope_NK.T, input_precision="ieee")
    s_MN = tl.dot(q_rope_MP, k_rope_NP.T, s_MN, input_precision="ieee")
    if PARTIAL:
        s_MN = hide(s_MN, row_M, document_M, start_n, BLOCK_N)
    return k_nope_NK, k_rope_NP, s_MN


@triton.jit
def store_rows(
    x_ptr, x_MD, batch, head, row_M, n_tokens, n_heads, DIM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Rows of one head into a contiguous (B, T, H, DIM)."""
    column_D = tl.arange(0, BLOCK)
    place_M = ((batch.to(tl.int64) * n_tokens + row_M) * n_heads + head) * DIM
    inside_MD = (row_M[:, None] < n_tokens) & (column_D[None, :] < DIM)
    tl.store(x_ptr + place_M[:, None] + column_D[None, :], x_MD.to(x_ptr.dtype.element_ty), inside_MD)
