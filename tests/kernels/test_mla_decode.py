"""Absorbed decoding, split over the past, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numerics import DEVICE, assert_close, assert_compiles, each_pair, poisoned, random, strided
from torch import Tensor

from ablate.components.mla.kernel.decode import cut, latent_decode, latent_decode_op
from ablate.kernels.table import Configuration, forced

DTYPES = (torch.float32, torch.bfloat16)
SCALE = 0.2


def reference(q_BTHR: Tensor, q_BTHP: Tensor, latent_BSR: Tensor, key_BSP: Tensor, start: int, scale: float) -> Tensor:
    """One token after the other, in float64, each with the positions up to its own."""
    q_BTHR, q_BTHP, latent_BSR, key_BSP = (t.double() for t in (q_BTHR, q_BTHP, latent_BSR, key_BSP))
    outputs = []
    for t in range(q_BTHR.shape[1]):
        latents, keys = latent_BSR[:, : start + t + 1], key_BSP[:, : start + t + 1]
        scores = (q_BTHR[:, t] @ latents.mT + q_BTHP[:, t] @ keys.mT) * scale
        outputs.append(scores.softmax(-1) @ latents)
    return torch.stack(outputs, 1)


def inputs(
    length: int, tokens: int, heads: int, rank: int = 32, rope: int = 8, dtype: torch.dtype = torch.float32,
    capacity: int | None = None, batch: int = 2,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The last `tokens` of `length` positions ask; what the cache holds beyond is NaN."""
    q_latent, q_rope = (random(batch, tokens, heads, n, dtype=dtype, seed=n) for n in (rank, rope))
    latent, key = (random(batch, capacity or length + 7, n, dtype=dtype, seed=2 * n) for n in (rank, rope))
    latent[:, length:] = key[:, length:] = float("nan")
    return q_latent, q_rope, latent, key


@each_pair(
    {
        "length, tokens": [(1, 1), (4, 4), (100, 1), (100, 4), (257, 1), (257, 4)],
        "heads": [1, 16],
        "dtype": DTYPES,
    }
)
def test_output(length: int, tokens: int, heads: int, dtype: torch.dtype) -> None:
    check(*inputs(length, tokens, heads, dtype=dtype), length - tokens, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rank", "rope", "heads"), [(24, 8, 3), (48, 24, 5), (8, 16, 17)])
def test_sizes_that_are_not_powers_of_two(rank: int, rope: int, heads: int, dtype: torch.dtype) -> None:
    check(*inputs(63, 3, heads, rank, rope, dtype), 60, dtype)


def check(q_latent: Tensor, q_rope: Tensor, latent: Tensor, key: Tensor, start: int, dtype: torch.dtype) -> Tensor:
    with poisoned():
        y = latent_decode(q_latent, q_rope, latent, key, start, SCALE)
    assert y.dtype == dtype
    assert y.is_contiguous()
    assert_close(y, reference(q_latent, q_rope, latent, key, start, SCALE), dtype)
    return y


@pytest.mark.parametrize("n_programs", [1, 2, 6, 40, 1000])
def test_any_number_of_splits(n_programs: int) -> None:
    """One program a sequence writes the output itself; more leave parts; never more than there are blocks."""
    operands = inputs(257, 4, 3)
    with forced("mla_decode_forward", splits(n_programs)):
        y = check(*operands, 253, torch.float32)
        assert torch.equal(y, latent_decode(*operands, 253, SCALE))


def splits(n_programs: int, rows: int = 16, block_s: int = 16) -> Configuration:
    return Configuration(blocks={"ROWS": rows, "BLOCK_S": block_s, "PROGRAMS": n_programs})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_of_rows_and_positions_as_on_a_device(dtype: torch.dtype) -> None:
    """51 rows in blocks of 32 of which the last is not full; 129 positions in blocks of 64, likewise."""
    with forced("mla_decode_forward", splits(8, rows=32, block_s=64)):
        check(*inputs(129, 3, 17, dtype=dtype), 126, dtype)


def test_a_split_that_early_tokens_do_not_see() -> None:
    """Twenty tokens from the start on: the first sixteen see nothing of the second split."""
    with forced("mla_decode_forward", splits(1000)):
        check(*inputs(20, 20, 2), 0, torch.float32)
    with forced("mla_decode_forward", splits(1)):
        check(*inputs(20, 20, 2), 0, torch.float32)


def test_large_scores_do_not_overflow() -> None:
    q_latent, q_rope, latent, key = inputs(100, 2, 3)
    check(q_latent * 300, q_rope, latent, key, 98, torch.float32)


def test_positions_behind_the_tokens_are_not_read() -> None:
    """The cache goes on with numbers of other requests; the result is that of a cache which ends."""
    q_latent, q_rope, latent, key = inputs(60, 2, 3, capacity=64)
    clean = latent_decode(q_latent, q_rope, latent[:, :60], key[:, :60], 58, SCALE)
    for rest in (1e4, float("nan"), float("inf")):
        latent[:, 60:] = key[:, 60:] = rest
        assert torch.equal(latent_decode(q_latent, q_rope, latent, key, 58, SCALE), clean)


def test_strided_operands() -> None:
    """Queries as einsum leaves them, heads first; caches of which other layers hold the rest."""
    q_latent, q_rope, latent, key = inputs(63, 4, 5)
    q_latent = q_latent.transpose(1, 2).contiguous().transpose(1, 2)
    check(q_latent, strided(q_rope), strided(latent), strided(key), 59, torch.float32)


def test_cut() -> None:
    assert cut(1, 100) == (1, 1)
    assert cut(10, 0) == (1, 10)
    assert cut(10, 4) == (4, 3)
    assert cut(9, 8) == (5, 2)
    for n_blocks in range(1, 40):
        for wanted in range(1, 12):
            n, each = cut(n_blocks, wanted)
            assert n <= wanted
            assert (n - 1) * each < n_blocks <= n * each


def test_no_tokens() -> None:
    assert latent_decode(*inputs(9, 0, 3), 9, SCALE).shape == (2, 0, 3, 32)


def test_the_operator_is_one_that_compiles() -> None:
    operands = inputs(33, 2, 3)
    torch.library.opcheck(latent_decode_op, (*operands, 31, SCALE))
    assert_compiles(lambda a, b, c, d: latent_decode(a, b, c, d, 31, SCALE), *operands)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"q_latent": torch.zeros(2, 3, 4, 32).half()}, "absorbed queries is torch.float16; it must be one of"),
        ({"q_rope": torch.zeros(2, 3, 5, 8)}, r"rotated queries has shape .*must be \(2, 3, 4, 8\)"),
        ({"q_rope": torch.zeros(2, 3, 4, 8).bfloat16()}, "rotated queries is torch.bfloat16"),
        ({"latent": torch.zeros(2, 9, 36)}, r"cache of latents has shape .*must be \(2, 9, 32\)"),
        ({"latent": torch.zeros(2, 9, 33)[..., :32]}, "cache of latents starts at byte .*multiples of 16"),
        ({"key": torch.zeros(2, 8, 8)}, r"cache of keys has shape .*must be \(2, 9, 8\)"),
        ({"start": 7}, "3 tokens from position 7 on, in a cache of 9 positions"),
        ({"start": -1}, "from position -1 on"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {"q_latent": torch.zeros(2, 3, 4, 32), "q_rope": torch.zeros(2, 3, 4, 8)}
    given |= {"latent": torch.zeros(2, 9, 32), "key": torch.zeros(2, 9, 8), "start": 6, **changed}
    with pytest.raises(ValueError, match=sentence):
        latent_decode_op(*(v.to(DEVICE) if isinstance(v, Tensor) else v for v in given.values()), SCALE)
