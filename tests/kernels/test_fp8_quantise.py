"""Quantisation kernels against the emulated backend, bit for bit: values, scales, layouts, padding, divergence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numerics import DEVICE, each_pair, poisoned, random, strided
from torch import Tensor

from ablate.components.fp8.kernel.layout import TILE
from ablate.components.fp8.kernel.quantise import quantise_activation, quantise_weight
from ablate.components.fp8.quantise import Blocks, SegmentStrips, Strips, Tiling, quantise

DTYPES = (torch.float32, torch.bfloat16)
SHAPES = [(1, 1), (63, 100), (129, 257), (300, 128)]
SEGMENTS = [[5, 0, 130, 257], [0, 0, 0, 200], [128, 256], [1]]
both_scales = pytest.mark.parametrize("power_of_two", [False, True], ids=["float", "power"])
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def codes(values: Tensor) -> Tensor:
    """The bytes, with one code for either sign of NaN."""
    bits = values.cpu().view(torch.uint8)
    return torch.where(bits & 0x7F == 0x7F, 0x7F, bits)


def emulated(x: Tensor, tiling: Tiling, power_of_two: bool) -> tuple[Tensor, list[Tensor]]:
    """On a processor: a GPU's torch divides by 448 as it multiplies by the rounded reciprocal."""
    with np.errstate(invalid="ignore"):
        made = quantise(x.detach().cpu(), tiling, power_of_two_scales=power_of_two)
    return codes(made.values), list(made.scales)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach().cpu(), expected, rtol=0, atol=0, equal_nan=True)


def assert_rows(x: Tensor, values_NK: Tensor, scales_KN: Tensor, power_of_two: bool) -> None:
    codes_NK, scales = emulated(x, Strips(-1), power_of_two)
    assert values_NK.stride(0) % 16 == 0
    assert scales_KN.is_contiguous()
    assert torch.equal(codes(values_NK), codes_NK)
    assert_same(scales_KN, torch.cat([s.reshape(x.shape[0], -1) for s in scales], 1).T)


def assert_columns(
    x: Tensor, values_KS: Tensor, scales_SK: Tensor, power_of_two: bool, sizes: list[int] | None = None
) -> None:
    n, k = x.shape
    segments = [n] if sizes is None else sizes
    tiling = Strips(-2) if sizes is None else SegmentStrips(sizes, torch.device("cpu"))
    codes_NK, scales = emulated(x, tiling, power_of_two)
    n_tiles = -(-n // TILE) if sizes is None else n // TILE + len(sizes)
    assert values_KS.shape == (k, n_tiles * TILE)
    assert scales_SK.shape == (n_tiles, k)
    assert values_KS.is_contiguous()
    assert scales_SK.is_contiguous()
    used = sum(-(-size // TILE) for size in segments)
    assert used <= n_tiles
    assert_same(scales_SK[:used], torch.cat([s.reshape(-1, k) for s in scales]))
    # Where each row stands among the padded positions; the other positions of used tiles are zero.
    tiles = [list(range(start, start + size)) for size, start in zip(segments, starts(segments), strict=True)]
    position_N = torch.tensor([p for tile in tiles for p in tile], dtype=torch.int64)
    expected_SK = torch.zeros(used * TILE, k, dtype=torch.uint8)
    expected_SK[position_N] = codes_NK
    assert torch.equal(codes(values_KS)[:, : used * TILE].T, expected_SK)


def starts(segments: list[int]) -> list[int]:
    ends = np.cumsum([-(-size // TILE) * TILE for size in segments])
    return [0, *ends[:-1].tolist()]


def ends(sizes: list[int]) -> Tensor:
    return torch.tensor(sizes, device=DEVICE).cumsum(0).to(torch.int32)


def spread(n: int, k: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers with tiles of very different magnitude."""
    x = random(n, k) * random(n, 1, seed=1).mul(6).exp2() * random(1, k, seed=2).mul(6).exp2()
    return x.to(dtype)


@each_pair({"n, k": SHAPES, "dtype": DTYPES, "power_of_two": [False, True]})
def test_rows_and_columns_are_the_emulation_s(n: int, k: int, dtype: torch.dtype, power_of_two: bool) -> None:
    x = spread(n, k, dtype)
    with poisoned():
        copies = quantise_activation(x, power_of_two=power_of_two, rows=True, columns=True)
        rows = quantise_activation(x, power_of_two=power_of_two, rows=True, columns=False)
        columns = quantise_activation(x, power_of_two=power_of_two, rows=False, columns=True)
    assert_rows(x, *copies[:2], power_of_two)
    assert_columns(x, *copies[2:], power_of_two)
    assert_rows(x, *rows[:2], power_of_two)
    assert_columns(x, *columns[2:], power_of_two)
    assert all(t.numel() == 0 for t in (*rows[2:], *columns[:2]))


@both_scales
@pytest.mark.parametrize("sizes", SEGMENTS, ids=str)
def test_column_tiles_start_anew_at_every_expert(sizes: list[int], power_of_two: bool) -> None:
    x = spread(sum(sizes), 130, torch.bfloat16)
    with poisoned():
        copies = quantise_activation(x, ends(sizes), power_of_two=power_of_two, rows=True, columns=True)
    assert_rows(x, *copies[:2], power_of_two)
    assert_columns(x, *copies[2:], power_of_two, sizes)


@pytest.mark.parametrize("sizes", [[5, 0, 130], None], ids=str)
def test_rows_are_gathered_and_may_be_repeated(sizes: list[int] | None) -> None:
    x = spread(40, 100, torch.float32)
    token_of_row_P = torch.randint(0, 40, (135,), generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.int32)
    offsets_E = None if sizes is None else ends(sizes)
    with poisoned():
        copies = quantise_activation(x, offsets_E, token_of_row_P, power_of_two=False, rows=False, columns=True)
    assert_columns(x[token_of_row_P.long()], *copies[2:], False, sizes)


@each_pair(
    {
        "shape": [(1, 1), (63, 100), (129, 257), (3, 130, 40), (2, 256, 128)],
        "dtype": DTYPES,
        "power_of_two": [False, True],
    }
)
def test_weights_are_the_emulation_s(shape: tuple[int, ...], dtype: torch.dtype, power_of_two: bool) -> None:
    weight = spread(shape[-2] * (shape[0] if len(shape) == 3 else 1), shape[-1], dtype).view(shape)
    with poisoned():
        values, transposed, scales = quantise_weight(weight, power_of_two=power_of_two)
    assert values.shape == shape
    assert transposed.shape == (*shape[:-2], shape[-1], shape[-2])
    assert not values.stride(-2) % 16
    assert not transposed.stride(-2) % 16
    assert scales.shape == (*shape[:-2], -(-shape[-2] // TILE), -(-shape[-1] // TILE))
    flat = [t.reshape(-1, *t.shape[-2:]) for t in (weight, codes(values), codes(transposed), scales)]
    for matrix, found, turned, of_tiles in zip(*flat, strict=True):
        expected, _ = emulated(matrix, Blocks(TILE), power_of_two)
        assert torch.equal(found, expected)
        assert torch.equal(turned, expected.T)
        for i, o in np.ndindex(*of_tiles.shape):
            tile = matrix[TILE * i : TILE * (i + 1), TILE * o : TILE * (o + 1)]
            assert_same(of_tiles[i, o], emulated(tile, Blocks(0), power_of_two)[1][0].squeeze())


@both_dtypes
def test_rows_of_a_wider_tensor(dtype: torch.dtype) -> None:
    x = strided(spread(65, 48, dtype))
    assert not x.is_contiguous()
    copies = quantise_activation(x, power_of_two=False, rows=True, columns=True)
    assert_rows(x, *copies[:2], False)
    assert_columns(x, *copies[2:], False)
    weight = strided(spread(65, 48, dtype))
    assert torch.equal(codes(quantise_weight(weight, power_of_two=False)[0]), emulated(weight, Blocks(128), False)[0])


@both_scales
def test_quotients_next_to_where_rounding_changes(power_of_two: bool) -> None:
    """Scales of all sizes; numbers at and a few units beside the middle of every two neighbours in E4M3."""
    e4m3 = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    middle_M = (e4m3[1:] + e4m3[:-1]) / 2
    largest_N = random(96).abs().cpu().double() * torch.linspace(-140, 120, 96).double().exp2()
    scale_N = emulated(largest_N.float()[:, None], Strips(-1), power_of_two)[1][0].flatten().double()
    x = (scale_N[:, None] * middle_M).float()
    # In float32 bits, so that a unit is the last place whatever the size.
    x_UNM = torch.stack([(x.view(torch.int32) + unit).clamp_min(0).view(torch.float32) for unit in range(-3, 4)])
    x_UNM = torch.minimum(x_UNM, largest_N.float()[:, None]) * torch.tensor([1, -1]).repeat(63)
    x_NK = torch.cat([largest_N.float().repeat(7)[:, None], x_UNM.flatten(0, 1), torch.zeros(7 * 96, 1).neg()], 1)
    assert x_NK.shape[1] == TILE
    x_NK = x_NK.to(DEVICE)
    rows = quantise_activation(x_NK, power_of_two=power_of_two, rows=True, columns=False)
    assert_rows(x_NK, *rows[:2], power_of_two)
    columns = quantise_activation(x_NK.T.contiguous(), power_of_two=power_of_two, rows=False, columns=True)
    assert_columns(x_NK.T, *columns[2:], power_of_two)


@both_scales
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_divergence_shows_in_the_scales_of_its_tiles(bad: float, power_of_two: bool) -> None:
    x = random(130, 140)
    x[3, 5] = x[129, 139] = bad
    with np.errstate(invalid="ignore"):
        copies = quantise_activation(x, power_of_two=power_of_two, rows=True, columns=True)
        _, _, scales = quantise_weight(x, power_of_two=power_of_two)
    assert_rows(x, *copies[:2], power_of_two)
    assert (~copies[1].isfinite()).nonzero().tolist() == [[0, 3], [1, 129]]
    assert (~copies[3].isfinite()).nonzero().tolist() == [[0, 5], [1, 139]]
    codes_NK, _ = emulated(x, Strips(-2), power_of_two)
    assert torch.equal(codes(copies[2])[:, :130].T, codes_NK)
    assert (~scales.isfinite()).tolist() == [[True, False], [False, True]]


def test_zeros_have_the_smallest_scale_and_their_sign() -> None:
    x = torch.tensor([[0.0, -0.0]], device=DEVICE).repeat(2, 1)
    for power_of_two in (False, True):
        values, scales, turned, _ = quantise_activation(x, power_of_two=power_of_two, rows=True, columns=True)
        assert scales.unique().tolist() == [2.0**-126]
        assert codes(values).tolist() == [[0, 0x80]] * 2
        assert codes(turned)[:, :2].T.tolist() == [[0, 0x80]] * 2


def test_no_rows() -> None:
    x = torch.empty(0, 130, device=DEVICE)
    values, scales, turned, column_scales = quantise_activation(x, power_of_two=False, rows=True, columns=True)
    assert (values.shape, scales.shape, turned.shape, column_scales.shape) == ((0, 130), (2, 0), (130, 0), (0, 130))
    grouped = quantise_activation(x, ends([0, 0]), power_of_two=False, rows=False, columns=True)
    assert (grouped[2].shape, grouped[3].shape) == ((130, 256), (2, 130))


def test_the_operators_are_ones_that_compile() -> None:
    x, token_of_row_P = random(5, 20), torch.tensor([4, 4, 0], device=DEVICE, dtype=torch.int32)
    how = {"power_of_two": False, "rows": True, "columns": True}
    torch.library.opcheck(quantise_activation, (x, ends([2, 3])), how)
    torch.library.opcheck(quantise_activation, (x, None, token_of_row_P), how | {"rows": False})
    torch.library.opcheck(quantise_weight, (random(2, 5, 20),), {"power_of_two": True})
    compiled = torch.compile(lambda x: quantise_activation(x, **how), fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x), quantise_activation(x, **how), strict=True):
        assert torch.equal(a.float(), b.float())


@pytest.mark.parametrize(
    ("x", "options", "sentence"),
    [
        (torch.zeros(2, 8, dtype=torch.float16), {}, "float16.*must be one of"),
        (torch.zeros(8, 2).T, {}, "last axis must be contiguous"),
        (torch.zeros(2, 2, 8), {}, "must have 2 axes"),
        (torch.zeros(2, 8), {"rows": False, "columns": False}, "ask for at least one copy"),
        (torch.zeros(2, 8), {"token_of_row_P": torch.zeros(2, dtype=torch.int32)}, "before they are gathered"),
        (torch.zeros(2, 8), {"offsets_E": torch.tensor([2])}, "int64; it must be one of torch.int32"),
        (torch.zeros(2, 8), {"offsets_E": torch.zeros(0, dtype=torch.int32)}, "pass None for one matrix"),
    ],
)
def test_what_is_refused(x: Tensor, options: dict[str, object], sentence: str) -> None:
    moved = {name: o.to(DEVICE) if isinstance(o, Tensor) else o for name, o in options.items()}
    with pytest.raises(ValueError, match=sentence):
        quantise_activation(x.to(DEVICE), **{"power_of_two": False, "rows": True, "columns": True, **moved})


def test_a_weight_of_one_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(O, I\)"):
        quantise_weight(torch.zeros(3, device=DEVICE), power_of_two=False)
