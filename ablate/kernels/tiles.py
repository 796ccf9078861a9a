"""Device functions that say which tile a program works on: of a product, and among rows sorted by expert."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_at(number, m_tiles, n_tiles, GROUP_M: tl.constexpr):
    """Row and column of a product's tile by its number, in bands of GROUP_M rows that share what they read in L2."""
    band = number // (GROUP_M * n_tiles)
    within = number - band * GROUP_M * n_tiles
    # At least 1, for a number that no tile has.
    height = tl.maximum(tl.minimum(m_tiles - band * GROUP_M, GROUP_M), 1)
    return band * GROUP_M + within % height, within // height


@triton.jit
def expert_rows(offsets_ptr, n_experts, BLOCK_E: tl.constexpr):
    """First row of every expert, and the one after its last; 0 of what is no expert."""
    expert_E = tl.arange(0, BLOCK_E)
    end_E = tl.load(offsets_ptr + expert_E, expert_E < n_experts, other=0)
    start_E = tl.load(offsets_ptr + expert_E - 1, (expert_E > 0) & (expert_E < n_experts), other=0)
    return start_E, end_E


@triton.jit
def expert_tiles(start_E, end_E, SIZE: tl.constexpr):
    """First tile of SIZE rows of every expert, and the one after its last: tiles start anew at every expert."""
    tiles_E = tl.cdiv(end_E - start_E, SIZE)
    last_E = tl.cumsum(tiles_E, 0)
    return last_E - tiles_E, last_E


@triton.jit
def tiles_of_experts(offsets_ptr, n_experts, SIZE: tl.constexpr, BLOCK_E: tl.constexpr):
    """First row of every expert and the one after its last, the same of its tiles, and how many tiles there are."""
    start_E, end_E = expert_rows(offsets_ptr, n_experts, BLOCK_E)
    first_E, last_E = expert_tiles(start_E, end_E, SIZE)
    return start_E, end_E, first_E, last_E, tl.max(last_E, 0)


@triton.jit
def expert_of_tile(tile, start_E, end_E, first_E, last_E, SIZE: tl.constexpr, BLOCK_E: tl.constexpr):
    """The expert that a tile belongs to, the tile's first row, the end of the expert's rows; 0 where it has none."""
    mine_E = (first_E <= tile) & (tile < last_E)
    expert = tl.sum(tl.where(mine_E, tl.arange(0, BLOCK_E), 0), 0)
    start = tl.sum(tl.where(mine_E, start_E + (tile - first_E) * SIZE, 0), 0)
    return expert, start, tl.sum(tl.where(mine_E, end_E, 0), 0)
