"""SwiGLU and the norm fused with quantisation: against the emulation of the same numbers, and against float64."""

from __future__ import annotations

import pytest
import torch
from numerics import DEVICE, assert_close, each_pair, poisoned, random, strided
from test_fp8_quantise import assert_columns, assert_rows, ends
from torch import Tensor
from torch.nn import functional as F

from ablate.components.fp8.kernel.layout import TILE
from ablate.components.fp8.kernel.norm import rms_norm_quantise
from ablate.components.fp8.kernel.swiglu import swiglu_backward_quantise, swiglu_quantise
from ablate.components.fp8.quantise import SegmentStrips, Strips, Tiling, quantise
from ablate.kernels.rms_norm import rms_norm_backward_op, rms_norm_op

DTYPES = (torch.float32, torch.bfloat16)
EPS = 1e-6
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def numbers(values: Tensor, scales: Tensor) -> Tensor:
    """What a row copy stands for."""
    values = values.cpu().double()
    return values * scales.cpu().double().T.repeat_interleave(TILE, 1)[:, : values.shape[1]]


def column_numbers(values_KS: Tensor, scales_SK: Tensor, sizes: list[int]) -> Tensor:
    """What a column copy stands for, back in the order (rows, channels)."""
    parts, tile = [], 0
    for size in sizes:
        n = -(-size // TILE)
        scale_SK = scales_SK[tile : tile + n].cpu().double().repeat_interleave(TILE, 0)
        parts.append((values_KS[:, tile * TILE : (tile + n) * TILE].cpu().double().T * scale_SK)[:size])
        tile += n
    return torch.cat(parts)


def exact(n: int, f: int, dtype: torch.dtype) -> Tensor:
    """Gates of which silu is exact in any arithmetic: zero, or so large that the sigmoid is 1; any ups."""
    gate = torch.randint(0, 8, (n, f), generator=torch.Generator().manual_seed(0)) * 32.0
    return torch.cat([gate.to(DEVICE), random(n, f, seed=1)], 1).to(dtype)


def unfused(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


@each_pair(
    {
        "f": [7, 100, 256],
        "sizes": [[1], [63], [5, 0, 130]],
        "dtype": DTYPES,
        "power_of_two": [False, True],
    }
)
def test_swiglu_where_it_is_exact_is_the_emulation_s(
    f: int, sizes: list[int], dtype: torch.dtype, power_of_two: bool
) -> None:
    gate_up = exact(sum(sizes), f, dtype)
    with poisoned():
        copies = swiglu_quantise(gate_up, ends(sizes), power_of_two=power_of_two, rows=True, columns=True)
    assert_rows(unfused(gate_up), *copies[:2], power_of_two)
    assert_columns(unfused(gate_up), *copies[2:], power_of_two, sizes)


@both_dtypes
@pytest.mark.parametrize("sizes", [None, [30, 0, 171]], ids=str)
def test_swiglu_against_the_unfused_operations(sizes: list[int] | None, dtype: torch.dtype) -> None:
    """Any gates: an exponential's last bit may decide a rounding, of one number in thousands."""
    gate_up = strided(random(201, 2 * 144, dtype=dtype, scale=3.0))
    offsets_E = None if sizes is None else ends(sizes)
    with poisoned():
        values, scales, _, _ = swiglu_quantise(gate_up, power_of_two=False, rows=True, columns=False)
        _, _, turned, column_scales = swiglu_quantise(gate_up, offsets_E, power_of_two=False, rows=False, columns=True)
    h = unfused(gate_up).cpu()
    columns: Tiling = Strips(-2) if sizes is None else SegmentStrips(sizes, h.device)
    found = numbers(values, scales), column_numbers(turned, column_scales, sizes or [201])
    for got, tiling in zip(found, (Strips(-1), columns), strict=True):
        expected = quantise(h, tiling, power_of_two_scales=False).dequantise().double()
        assert (~torch.isclose(got, expected, rtol=1e-6, atol=0)).float().mean() < 2e-3
        assert_close(got, unfused(gate_up.double()), torch.float8_e4m3fn)


def gradient(gate_up: Tensor, dh: Tensor) -> Tensor:
    gate_up = gate_up.detach().requires_grad_()
    return torch.autograd.grad(unfused(gate_up), gate_up, dh)[0]


@each_pair(
    {
        "sizes, f": [([1], 7), ([5, 0, 130], 100), ([129], 128), ([40, 60], 192)],
        "dtype": DTYPES,
        "power_of_two": [False, True],
    }
)
def test_swiglu_gradient(sizes: list[int], f: int, dtype: torch.dtype, power_of_two: bool) -> None:
    n = sum(sizes)
    gate_up, dh = random(n, 2 * f, dtype=dtype, scale=2.0), random(n, f, dtype=dtype, seed=3)
    how = {"power_of_two": power_of_two, "rows": True}
    with poisoned():
        *copies, plain = swiglu_backward_quantise(gate_up, dh, ends(sizes), **how, columns=True, plain=True)
        rows = swiglu_backward_quantise(gate_up, dh, **how, columns=False)
    assert plain.dtype == dtype
    assert_close(plain, gradient(gate_up.double(), dh.double()), dtype, "plain")
    assert_close(plain, gradient(gate_up, dh), dtype, "autograd")
    assert_rows(plain, copies[0], copies[1], power_of_two)
    assert_columns(plain, copies[2], copies[3], power_of_two, sizes)
    assert_rows(plain, rows[0], rows[1], power_of_two)
    assert all(t.numel() == 0 for t in rows[2:])


def test_swiglu_gradient_is_rounded_where_autograd_s_is() -> None:
    dh = random(65, 48, dtype=torch.bfloat16, seed=3)
    how = {"power_of_two": False, "rows": True, "columns": False, "plain": True}
    gate_up = exact(65, 48, torch.bfloat16)
    assert torch.equal(swiglu_backward_quantise(gate_up, strided(dh), **how)[4], gradient(gate_up, dh))
    gate_up = random(65, 96, dtype=torch.bfloat16)
    differs = swiglu_backward_quantise(gate_up, strided(dh), **how)[4] != gradient(gate_up, dh)
    assert differs.float().mean() < 2e-3  # an exponential's last bit


def test_swiglu_of_large_gates_is_finite() -> None:
    gate_up = torch.tensor([[-1e4, -200.0, 200.0, 1e4, 1.0, 1.0, 1.0, 1.0]], device=DEVICE)
    values, scales, *_ = swiglu_quantise(gate_up, power_of_two=True, rows=True, columns=False)
    assert_close(numbers(values, scales), torch.tensor([[0.0, 0.0, 200.0, 1e4]]), torch.float8_e4m3fn)
    *_, plain = swiglu_backward_quantise(
        gate_up, torch.ones(1, 4, device=DEVICE), power_of_two=True, rows=True, columns=True, plain=True
    )
    assert_close(plain, torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 200.0, 1e4]]), torch.float32)


@each_pair(
    {
        "n, d": [(1, 1), (63, 100), (129, 257), (257, 128)],
        "dtypes": [(torch.float32, None), (torch.bfloat16, None), (torch.float32, torch.bfloat16)],
        "power_of_two": [False, True],
    }
)
def test_norm(n: int, d: int, dtypes: tuple[torch.dtype, torch.dtype | None], power_of_two: bool) -> None:
    x, weight = strided(random(n, d, dtype=dtypes[0], scale=4.0)), random(d, seed=1)
    out = dtypes[1] or dtypes[0]
    with poisoned():
        y, rstd, *copies = rms_norm_quantise(
            x, weight, EPS, power_of_two=power_of_two, columns=True, dtype=dtypes[1]
        )  # fmt: skip
        none, again, *same = rms_norm_quantise(
            x, weight, EPS, power_of_two=power_of_two, columns=False, output=False, dtype=dtypes[1]
        )
    assert y.dtype == out
    assert_close(y, F.rms_norm(x.double(), (d,), weight.double(), EPS), out, "y")
    assert_close(rstd, (x.double().square().mean(-1) + EPS).rsqrt(), torch.float32, "rstd")
    assert_rows(y, copies[0], copies[1], power_of_two)
    assert_columns(y, copies[2], copies[3], power_of_two)
    assert_rows(y, same[0], same[1], power_of_two)
    assert torch.equal(rstd, again)
    assert all(t.numel() == 0 for t in (none, *same[2:]))


def test_norm_s_factors_are_what_its_gradient_takes() -> None:
    x, weight, g = random(33, 48), random(48, seed=1), random(33, 48, seed=2)
    _, rstd, *_ = rms_norm_quantise(x, weight, EPS, power_of_two=False, columns=False, output=False)
    expected = rms_norm_backward_op(x, weight, rms_norm_op(x, weight, EPS)[1], g)
    for a, b in zip(rms_norm_backward_op(x, weight, rstd, g), expected, strict=True):
        assert_close(a, b, torch.float32)


def test_no_rows() -> None:
    gate_up, dh = torch.empty(0, 12, device=DEVICE), torch.empty(0, 6, device=DEVICE)
    how = {"power_of_two": False, "rows": True, "columns": True}
    assert swiglu_quantise(gate_up, ends([0, 0]), **how)[2].shape == (6, 2 * TILE)
    assert swiglu_backward_quantise(gate_up, dh, **how, plain=True)[4].shape == (0, 12)
    weight = torch.ones(12, device=DEVICE)
    assert rms_norm_quantise(gate_up, weight, EPS, power_of_two=False, columns=True)[0].shape == (0, 12)


def test_the_operators_are_ones_that_compile() -> None:
    gate_up, dh = random(5, 24), random(5, 12, seed=1)
    how = {"power_of_two": False, "rows": True, "columns": True}
    torch.library.opcheck(swiglu_quantise, (gate_up, ends([2, 3])), how)
    torch.library.opcheck(swiglu_backward_quantise, (gate_up, dh, ends([2, 3])), how | {"plain": True})
    norm = {"power_of_two": False, "columns": True, "dtype": torch.bfloat16}
    torch.library.opcheck(rms_norm_quantise, (gate_up, random(24), EPS), norm)

    def all_of(gate_up: Tensor, dh: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (
            *swiglu_quantise(gate_up, **how),
            *swiglu_backward_quantise(gate_up, dh, **how),
            *rms_norm_quantise(gate_up, weight, EPS, **norm),
        )

    compiled = torch.compile(all_of, fullgraph=True, backend="aot_eager")
    arguments = (gate_up, dh, random(24))
    for a, b in zip(compiled(*arguments), all_of(*arguments), strict=True):
        assert torch.equal(a.float(), b.float())


def test_what_is_refused() -> None:
    how = {"power_of_two": False, "rows": True, "columns": False}
    with pytest.raises(ValueError, match="7 channels together"):
        swiglu_quantise(random(2, 7), **how)
    with pytest.raises(ValueError, match="ask for at least one copy"):
        swiglu_quantise(random(2, 8), **how | {"rows": False})
    with pytest.raises(ValueError, match=r"shape \(2, 5\); it must be \(2, 4\)"):
        swiglu_backward_quantise(random(2, 8), random(2, 5), **how)
    with pytest.raises(ValueError, match=r"bfloat16; it must be one of torch\.float32"):
        swiglu_backward_quantise(random(2, 8), random(2, 4, dtype=torch.bfloat16), **how)
    with pytest.raises(ValueError, match=r"shape \(7,\); it must be \(8,\)"):
        rms_norm_quantise(random(2, 8), random(7), EPS, power_of_two=False, columns=False)
    with pytest.raises(ValueError, match=r"asked for as torch\.float16"):
        rms_norm_quantise(random(2, 8), random(8), EPS, power_of_two=False, columns=False, dtype=torch.float16)
