"""Device functions of the router: affinities, keys that order scores and say their place, and the best of each row."""

from __future__ import annotations

import triton
import triton.language as tl

# Below every key of a score. The key that is taken a-th becomes TAKEN + a.
OUT_OF_REACH = tl.constexpr(-(2**63))
TAKEN = tl.constexpr(-(2**63) + 1)
INT32_MAX = tl.constexpr(2**31 - 1)
MIN_AFFINITY = tl.constexpr(2.0**-126)  # that takes part in a choice as more than zero: normal float32


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) without an exponential that overflows."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def log_sigmoid(x):
    """Finite where the sigmoid itself underflows."""
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def shares(logits_NX, inside_N):
    """Sigmoids over their sum along each row, by their logarithms, so that a row of tiny ones has shares too.

    A logit of -inf has no share; rows that are not inside have only these."""
    log_NX = log_sigmoid(logits_NX)
    largest_N = tl.max(log_NX, 1)
    power_NX = tl.exp(log_NX - tl.where(largest_N > float("-inf"), largest_N, 0.0)[:, None])
    return power_NX / tl.where(inside_N, tl.sum(power_NX, 1), 1.0)[:, None]


@triton.jit
def key_of(score, position, WIDTH: tl.constexpr):
    """An int64 that orders float32 scores, NaN above all as in torch.topk, and equal ones by the lower position."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = tl.where(score != score, INT32_MAX, bits ^ ((bits >> 31) & INT32_MAX))
    return (ordered.to(tl.int64) << 32) | (WIDTH - 1 - position).to(tl.int64)


@triton.jit
def score_of(key):
    """The float32 score of a key: what `key_of` was given."""
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & INT32_MAX)).to(tl.float32, bitcast=True)


@triton.jit
def position_of(key, WIDTH: tl.constexpr):
    """In [0, WIDTH), whatever the key."""
    return (WIDTH - 1) - (key & (WIDTH - 1)).to(tl.int32)


@triton.jit
def expert_at(position, IN_GROUP: tl.constexpr, BLOCK_X: tl.constexpr):
    """The expert of a column, where groups of IN_GROUP experts stand BLOCK_X columns apart."""
    if IN_GROUP == BLOCK_X:
        expert = position  # seen to be contiguous, which is loaded in vectors
    else:
        expert = position // BLOCK_X * IN_GROUP + position % BLOCK_X
    return expert


@triton.jit
def within_best_groups(
    key_NE, GROUPS: tl.constexpr, LIMITED: tl.constexpr, SCORES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """The keys, out of reach outside the LIMITED groups with the largest sum of their SCORES best scores."""
    key_NGX = tl.reshape(key_NE, (BLOCK_N, BLOCK_G, BLOCK_X))
    left_NGX = key_NGX
    sum_NG = tl.zeros((BLOCK_N, BLOCK_G), tl.float32)
    for _ in range(SCORES):
        best_NG = tl.max(left_NGX, 2)
        sum_NG += score_of(best_NG)
        left_NGX = tl.where(left_NGX == best_NG[:, :, None], OUT_OF_REACH, left_NGX)
    group_G = tl.arange(0, BLOCK_G)
    key_NG = tl.where((group_G < GROUPS)[None, :], key_of(sum_NG, group_G[None, :], BLOCK_G), OUT_OF_REACH)
    for _ in range(LIMITED):
        best_N = tl.max(key_NG, 1)
        key_NG = tl.where(key_NG == best_N[:, None], TAKEN, key_NG)
    reached_NGX = tl.where((key_NG == TAKEN)[:, :, None], key_NGX, OUT_OF_REACH)
    return tl.reshape(reached_NGX, (BLOCK_N, BLOCK_G * BLOCK_X))
