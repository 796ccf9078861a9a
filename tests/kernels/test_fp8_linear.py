"""Linear maps in E4M3 by kernels against float64 and against the emulation: output and both gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from numerics import DEVICE, assert_close, assert_compiles, each_pair, poisoned, random, strided
from torch import Tensor, nn

from ablate.components.fp8 import reference
from ablate.components.fp8.emulation import Recipe
from ablate.components.fp8.kernel.linear import (
    fp8_grouped_linear,
    fp8_grouped_linear_op,
    fp8_linear,
    fp8_linear_op,
    kept,
)
from ablate.components.fp8.module import Fp8GroupedLinear, Fp8Linear

DTYPES = (torch.float32, torch.bfloat16)
SHAPES = [(1, 63, 100), (129, 100, 257), (257, 129, 63), (128, 128, 128)]  # tokens, inputs, outputs
# Further ones of the products and of the copies that these are made of: test_fp8_product.py, test_fp8_quantise.py.
SEGMENTS = [[5, 0, 130, 257], [1, 1, 1, 1]]


def sums(dtype: torch.dtype) -> torch.dtype:
    """What decides the precision: tensor cores keep about 14 bits of a sum of FP8 products."""
    return dtype if DEVICE == "cpu" else torch.bfloat16


def ends(sizes: Sequence[int]) -> Tensor:
    return torch.tensor(sizes, device=DEVICE).cumsum(0).to(torch.int32)


def linear(x: Tensor, weight: Tensor, power_of_two: bool = False) -> Tensor:
    return fp8_linear(x, weight, power_of_two=power_of_two, backend="triton")


def run(x: Tensor, weight: Tensor, g: Tensor, offsets: Tensor | None, power_of_two: bool) -> list[Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with poisoned():
        if offsets is None:
            y = linear(x, weight, power_of_two)
        else:
            y = fp8_grouped_linear(x, weight, offsets, power_of_two=power_of_two)
        found = torch.autograd.grad(y, (x, weight), g)
    assert [t.dtype for t in (y, *found)] == [x.dtype, x.dtype, weight.dtype]
    return [y, *found]


def check(
    x: Tensor, weight: Tensor, g: Tensor, dtype: torch.dtype, sizes: Sequence[int] | None, power_of_two: bool
) -> None:
    found = run(x, weight, g, None if sizes is None else ends(sizes), power_of_two)
    x, weight, g = x.cpu(), weight.cpu(), g.cpu()
    if sizes is None:
        expected: Sequence[Tensor] = reference.products(x, weight, g, power_of_two_scales=power_of_two)
    else:
        parts = [
            reference.products(*each, power_of_two_scales=power_of_two)
            for each in zip(x.split(sizes), weight, g.split(sizes), strict=True)
        ]
        y, dx, dw = zip(*parts, strict=True)
        expected = torch.cat(y), torch.cat(dx), torch.stack(dw)
    for name, a, b in zip(("y", "x", "w"), found, expected, strict=True):
        assert_close(a, b, sums(weight.dtype if name == "w" else dtype), name)


@each_pair({"shape": SHAPES, "dtype": DTYPES, "power_of_two": [False, True]})
def test_output_and_gradients(shape: tuple[int, int, int], dtype: torch.dtype, power_of_two: bool) -> None:
    n, i, o = shape
    x, weight, g = random(n, i, dtype=dtype), random(o, i, seed=1), random(n, o, dtype=dtype, seed=2)
    check(x, weight, g, dtype, None, power_of_two)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("sizes", SEGMENTS, ids=str)
def test_experts(sizes: list[int], power_of_two: bool) -> None:
    dtype = torch.bfloat16 if power_of_two else torch.float32
    p, i, o = sum(sizes), 100, 130
    x, weight, g = random(p, i, dtype=dtype), random(4, o, i, seed=1), random(p, o, dtype=dtype, seed=2)
    check(x, weight, g, dtype, sizes, power_of_two)


@pytest.mark.parametrize("sizes", [None, [3, 30]], ids=str)
def test_a_weight_in_bfloat16_and_tensors_that_are_not_contiguous(sizes: list[int] | None) -> None:
    leading = () if sizes is None else (2,)
    weight = strided(random(*leading, 40, 48, dtype=torch.bfloat16, seed=1))
    x = strided(random(33, 48, dtype=torch.bfloat16))
    check(x, weight, random(40, 33, dtype=torch.bfloat16, seed=2).T, torch.bfloat16, sizes, False)
    check(random(48, 33).T, weight.float(), random(1, 40, seed=2).expand(33, 40), torch.float32, sizes, True)


@pytest.mark.parametrize("sizes", [None, [20, 0, 13]], ids=str)
@pytest.mark.parametrize("power_of_two", [False, True])
def test_the_module_gives_what_the_emulation_gives(power_of_two: bool, sizes: list[int] | None) -> None:
    recipe, results = Recipe("blockwise", power_of_two), []
    for backend in ("emulated", "triton"):
        arguments: tuple[Tensor, ...] = (random(33, 140).requires_grad_(),)
        if sizes is None:
            module: Any = Fp8Linear(140, 70, recipe=recipe, backend=backend)
        else:
            module = Fp8GroupedLinear(3, 140, 70, recipe=recipe, backend=backend)
            arguments = (*arguments, ends(sizes))
        module.weight = nn.Parameter(random(*module.weight.shape, seed=1))
        with torch.autocast(DEVICE, torch.bfloat16):
            y = module(*arguments)
        y.backward(random(33, 70, dtype=torch.bfloat16, seed=2))
        assert y.dtype == torch.bfloat16
        results.append((y, arguments[0].grad, module.weight.grad))
    for name, a, b in zip(("y", "x", "w"), *results, strict=True):
        # Both round the same sum: half a unit apart at most, and seldom that.
        assert_close(b, a.double(), sums(torch.float32) if name == "w" else torch.bfloat16, name)


@pytest.mark.parametrize(("x_wants", "weight_wants"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("experts", [False, True])
def test_nothing_is_kept_or_computed_that_is_not_needed(x_wants: bool, weight_wants: bool, experts: bool) -> None:
    leading = (2,) if experts else ()
    x, weight = random(9, 20).requires_grad_(x_wants), random(*leading, 24, 20, seed=1).requires_grad_(weight_wants)
    assert kept(x, weight) == (weight_wants, x_wants)
    if experts:
        y, columns, _, transposed, _ = fp8_grouped_linear_op(x, weight, ends([4, 5]), False, *kept(x, weight))
    else:
        y, columns, _, transposed, _ = fp8_linear_op(x, weight, False, False, *kept(x, weight))
    assert (columns.numel() > 0, transposed.numel() > 0) == (weight_wants, x_wants)
    assert y.requires_grad == (x_wants or weight_wants)
    if y.requires_grad:
        y.sum().backward()
    assert ((x.grad is not None), (weight.grad is not None)) == (x_wants, weight_wants)
    with torch.no_grad():
        assert kept(x, weight) == (False, False)


@pytest.mark.parametrize("experts", [False, True])
def test_no_tokens(experts: bool) -> None:
    x, weight = random(0, 20).requires_grad_(), random(*((2,) if experts else ()), 24, 20, seed=1).requires_grad_()
    y = fp8_grouped_linear(x, weight, ends([0, 0]), power_of_two=False) if experts else linear(x, weight)
    y.sum().backward()
    assert y.shape == (0, 24)
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_the_operators_are_ones_that_compile() -> None:
    x, weight, experts = (
        random(9, 20).requires_grad_(),
        random(24, 20, seed=1).requires_grad_(),
        random(2, 24, 20, seed=1).requires_grad_(),
    )
    offsets = ends([4, 5])
    for keep in ((True, True), (False, False)):
        wanted = (x, weight, experts) if keep[0] else (x.detach(), weight.detach(), experts.detach())
        # The check of AOT dispatch sums outputs, which torch cannot do with FP8; compiling below stands for it.
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(fp8_linear_op, (*wanted[:2], False, False, *keep), test_utils=checks)
        arguments = (wanted[0], wanted[2], offsets, False, *keep)
        torch.library.opcheck(fp8_grouped_linear_op, arguments, test_utils=checks)
    assert_compiles(linear, x, weight)
    assert_compiles(lambda a, b: fp8_grouped_linear(a, b, offsets, power_of_two=True), x, experts)


def test_the_same_every_time() -> None:
    x, weight, g = random(70, 40), random(24, 40, seed=1), random(70, 24, seed=2)
    first, second = (run(x, weight, g, None, False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_refused() -> None:
    x, weight = random(9, 20), random(24, 20, seed=1)
    with pytest.raises(ValueError, match=r"backend is 'emulated'; .* triton, library"):
        fp8_linear(x, weight, power_of_two=False, backend="emulated")
    with pytest.raises(
        ValueError, match=r"backend is 'library', and cuBLAS reads the scales .* multiples of 4, and .* 9"
    ):
        fp8_linear(x, weight, power_of_two=False, backend="library")
    with pytest.raises(ValueError, match="backend is 'library', and cuBLAS needs multiples of 16"):
        fp8_linear(x[:8], weight, power_of_two=False, backend="library")
    with pytest.raises(ValueError, match=r"\(9, 20\) and \(20, 24\); not \(N, I\) and \(O, I\)"):
        linear(x, weight.T)
    with pytest.raises(ValueError, match=r"not \(N, I\) and \(E, O, I\)"):
        fp8_grouped_linear(x, weight, ends([9]), power_of_two=False)
    with pytest.raises(ValueError, match="float16"):
        linear(x.half(), weight)
