"""Maps with SwiGLU between them, routed experts, and maps behind a norm: the fused operators against their parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from numerics import DEVICE, TOLERANCE, assert_compiles, each_pair, error, poisoned, random
from torch import Tensor
from torch.nn import functional as F

from ablate.components.fp8.emulation import Recipe, fp8_product
from ablate.components.fp8.kernel.feed_forward import fp8_feed_forward, fp8_routed_experts
from ablate.components.fp8.kernel.normed import fp8_linear_of_normed, fp8_norm
from ablate.components.moe.module import place
from ablate.model.modules import RMSNorm

FLIPPED = TOLERANCE[torch.bfloat16]  # sums that differ in their last bit can flip a rounding to E4M3 further on
EPS = 1e-6
DTYPES = (torch.float32, torch.bfloat16)


def results(function: Callable[..., Tensor], tensors: Sequence[Tensor], g: Tensor) -> list[Tensor]:
    """Output and gradients."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


def assert_alike(found: Callable[..., Tensor], expected: Callable[..., Tensor], tensors: Any, g: Tensor) -> None:
    wanted = results(expected, tensors, g)
    with poisoned():
        got = results(found, tensors, g)
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.dtype == b.dtype
        assert error(a, b) < FLIPPED, i


def product(x: Tensor, weight: Tensor, sizes: tuple[int, ...] | None, power_of_two: bool) -> Tensor:
    return fp8_product(x, weight, sizes, Recipe("blockwise", power_of_two), None)


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@each_pair(
    {
        "n, i, f, o": [(1, 16, 24, 8), (63, 40, 129, 48), (130, 100, 33, 20)],
        "dtype": DTYPES,
        "power_of_two": [False, True],
    }
)
def test_feed_forward(n: int, i: int, f: int, o: int, dtype: torch.dtype, power_of_two: bool) -> None:
    x, g = random(n, i, dtype=dtype), random(n, o, dtype=dtype, seed=3)
    weights = random(2 * f, i, seed=1), random(o, f, seed=2)

    def apart(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return product(swiglu(product(x, first, None, power_of_two)), second, None, power_of_two)

    assert_alike(lambda *t: fp8_feed_forward(*t, power_of_two=power_of_two, library=False), apart, (x, *weights), g)


@pytest.mark.parametrize("a", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_routed_experts(a: int, dtype: torch.dtype) -> None:
    n, d, f, e = 65, 24, 20, 4
    x, g = random(n, d, dtype=dtype), random(n, d, dtype=dtype, seed=5)
    weights = random(e, 2 * f, d, seed=1), random(e, d, f, seed=2)
    share_NA = random(n, a, seed=3).sigmoid().to(torch.bfloat16).float()  # a number of either dtype
    scores_NE = random(n, e, seed=4)
    scores_NE[:, 2] = -9.0  # nobody's choice
    expert_NA = scores_NE.topk(a).indices
    counts_E = torch.bincount(expert_NA.flatten(), minlength=e)
    where = place(expert_NA, counts_E[None])
    sizes = tuple(counts_E.tolist())
    assert sizes[2] == 0

    def apart(x: Tensor, share_NA: Tensor, first: Tensor, second: Tensor) -> Tensor:
        h = swiglu(product(x[where.token_of_row_P], first, sizes, False))
        y_PD = product(h, second, sizes, False)
        return (y_PD[where.row_of_choice_NA] * share_NA.unsqueeze(-1).to(y_PD.dtype)).sum(1)

    def whole(*tensors: Tensor) -> Tensor:
        token_of_row_P, row_of_choice_NA = where.token_of_row_P.to(torch.int32), where.row_of_choice_NA.to(torch.int32)
        return fp8_routed_experts(*tensors, token_of_row_P, row_of_choice_NA, where.offsets_E, power_of_two=False)

    assert_alike(whole, apart, (x, share_NA, *weights), g)


@each_pair({"n, d": [(1, 16), (63, 136), (130, 40)], "dtype": DTYPES, "power_of_two": [False, True]})
def test_two_maps_behind_one_norm(n: int, d: int, dtype: torch.dtype, power_of_two: bool) -> None:
    x, g = random(n, d), random(n, 30, dtype=dtype, seed=3)
    scale, first, second = random(d, seed=4), random(10, d, seed=1), random(20, d, seed=2)

    def apart(x: Tensor, scale: Tensor, first: Tensor, second: Tensor) -> Tensor:
        y = RMSNorm.forward(_norm(scale), x).to(dtype)
        return torch.cat([product(y, w, None, power_of_two) for w in (first, second)], -1)

    def _norm(scale: Tensor) -> Any:
        norm: Any = RMSNorm(d, EPS, "library")
        del norm.weight
        norm.weight = scale
        return norm

    def whole(x: Tensor, scale: Tensor, first: Tensor, second: Tensor) -> Tensor:
        y = fp8_norm(x, scale, EPS, power_of_two=power_of_two, dtype=dtype)
        maps = (fp8_linear_of_normed(y, w, power_of_two=power_of_two, backend="triton") for w in (first, second))
        return torch.cat(list(maps), -1)

    assert_alike(whole, apart, (x, scale, first, second), g)


def test_nothing_is_kept_where_no_backward_pass_follows() -> None:
    x, first, second = random(5, 16), random(24, 16, seed=1), random(8, 12, seed=2)
    with torch.no_grad():
        y = fp8_norm(x, random(16, seed=3), EPS, power_of_two=False, dtype=torch.float32)
        assert [c.numel() > 0 for c in y.copies] == [True, True, False, False]
        alone = fp8_feed_forward(x, first, second, power_of_two=False, library=False)
    assert torch.equal(
        alone, fp8_feed_forward(x, first.requires_grad_(), second, power_of_two=False, library=False).detach()
    )


def test_no_rows() -> None:
    x = torch.empty(0, 16, device=DEVICE, requires_grad=True)
    first, second = random(24, 16, seed=1).requires_grad_(), random(8, 12, seed=2).requires_grad_()
    y = fp8_feed_forward(x, first, second, power_of_two=False, library=False)
    y.sum().backward()
    assert y.shape == (0, 8)
    assert first.grad is not None
    assert not first.grad.any()


def test_operators_that_compile() -> None:
    x, first, second = random(5, 16).requires_grad_(), random(24, 16, seed=1).requires_grad_(), random(8, 12, seed=2)
    assert_compiles(
        lambda *t: fp8_feed_forward(*t, power_of_two=False, library=False), x, first, second.requires_grad_()
    )
    scale = random(16, seed=3).requires_grad_()

    def behind_a_norm(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        y = fp8_norm(x, scale, EPS, power_of_two=False, dtype=torch.float32)
        return fp8_linear_of_normed(y, weight, power_of_two=False, backend="triton")

    assert_compiles(behind_a_norm, x, scale, first)
