"""How quantised matrices lie in memory: what quantisation writes and products read.

A number is its E4M3 value times the scale of its tile (arXiv:2412.19437, section 3.3.2). All scales are float32.

Rows, tiles of 1 x 128, of x (N, K), which is multiplied along its last axis:
    values_NK  E4M3 (N, K), last axis contiguous, row stride padded to a multiple of 16
    scales_KN  (ceil(K/128), N) contiguous: row n, channels from 128 kb on, has scales_KN[kb, n]
Columns, tiles of 128 x 1, of x (N, K), which is multiplied along its rows (the tokens), transposed:
    values_KS  E4M3 (K, S 128) contiguous; tile s of the tokens fills positions [128 s, 128 s + 128), beyond the
               tile's own tokens with zeros (NaN where the tile's scale is not finite)
    scales_SK  (S, K) contiguous
  Of one matrix S = ceil(N/128). Of rows sorted by expert, with offsets_E (int32, ends of the experts' rows), tiles
  start anew at every expert: expert e has ceil(size_e/128) of them, after those of the experts before it. As sizes are
  known only on the device, S = N // 128 + E, which always suffices; tiles at the end that no expert has are unwritten.
  With token_of_row_P (int32) row p of what is quantised is x[token_of_row_P[p]], and N is the number of these.
Weights, tiles of 128 x 128, of (E, O, I), or (O, I) without the E of everything:
    values_EOI  E4M3, row stride padded to a multiple of 16
    values_EIO  the same numbers transposed, row stride padded to a multiple of 16
    scales_EOI  (E, ceil(O/128), ceil(I/128)) contiguous
What pads a row is zero, but nothing may depend on that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ablate.kernels.launch import ceil_div

TILE = 128
E4M3 = torch.float8_e4m3fn
ROW_BYTES = 16  # rows start at multiples of this, as the tensor memory accelerator asks


Copies = tuple[Tensor, Tensor, Tensor, Tensor]  # Rows and Columns, as operators return them


class Rows(NamedTuple):
    """A matrix in tiles of 1 x 128."""

    values_NK: Tensor
    scales_KN: Tensor


class Columns(NamedTuple):
    """A matrix in tiles of 128 x 1, transposed."""

    values_KS: Tensor
    scales_SK: Tensor


class Weight(NamedTuple):
    """Matrices in tiles of 128 x 128, and the same numbers transposed."""

    values_EOI: Tensor
    values_EIO: Tensor
    scales_EOI: Tensor


def padded(width: int) -> int:
    """Elements from one row of E4M3 numbers to the next."""
    return ceil_div(width, ROW_BYTES) * ROW_BYTES


def token_tiles(n: int, n_experts: int | None) -> int:
    """S: tiles of 128 tokens of one matrix, or the most that n rows of several experts can need."""
    return ceil_div(n, TILE) if n_experts is None else n // TILE + n_experts


def new_rows(like: Tensor, n: int, k: int) -> Rows:
    """Unwritten, on the device of `like`."""
    return Rows(
        like.new_empty(n, padded(k), dtype=E4M3)[:, :k], like.new_empty(ceil_div(k, TILE), n, dtype=torch.float32)
    )


def new_columns(like: Tensor, n: int, k: int, n_experts: int | None) -> Columns:
    """Unwritten, on the device of `like`; n_experts None is one matrix."""
    s = token_tiles(n, n_experts)
    return Columns(like.new_empty(k, s * TILE, dtype=E4M3), like.new_empty(s, k, dtype=torch.float32))


def new_weight(like: Tensor) -> Weight:
    """Unwritten, for matrices of the shape of `like`."""
    *e, o, i = like.shape
    return Weight(
        like.new_empty(*e, o, padded(i), dtype=E4M3)[..., :i],
        like.new_empty(*e, i, padded(o), dtype=E4M3)[..., :o],
        like.new_empty(*e, ceil_div(o, TILE), ceil_div(i, TILE), dtype=torch.float32),
    )


def no_rows(like: Tensor) -> Rows:
    """What stands for a row copy that was not asked for: empty tensors."""
    return Rows(like.new_empty(0, 0, dtype=E4M3), like.new_empty(0, 0, dtype=torch.float32))


def no_columns(like: Tensor) -> Columns:
    """What stands for a column copy that was not asked for: empty tensors."""
    return Columns(like.new_empty(0, 0, dtype=E4M3), like.new_empty(0, 0, dtype=torch.float32))
