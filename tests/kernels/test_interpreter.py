"""The interpreter that kernels are tested in must itself be right: conversions, products, and what they are made of."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from numerics import covering, error, random
from torch import Tensor

from ablate.kernels.launch import INTERPRETED, launch

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="a device runs the kernels here, not the interpreter")


@triton.jit
def convert_kernel(x_ptr, y_ptr, n, BLOCK_N: tl.constexpr):
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(y_ptr + i, tl.load(x_ptr + i, i < n).to(y_ptr.dtype.element_ty), i < n)


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), input_precision="ieee"))


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr, SIZE: tl.constexpr):
    """Everything in the format of the inputs."""
    i = tl.arange(0, SIZE)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(out_ptr + i, x + y)
    tl.store(out_ptr + SIZE + i, x * y)
    tl.store(out_ptr + 2 * SIZE + i, tl.where(x > y, x, y))
    tl.store(out_ptr + 3 * SIZE + i, -x)


@triton.jit
def count_kernel(n_ptr, out_ptr):
    total = 0
    for k in range(tl.load(n_ptr)):
        total += k
    tl.store(out_ptr, total)


def converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    y = torch.empty(x.shape, dtype=dtype)
    launch(convert_kernel, (triton.cdiv(x.numel(), 256),), x, y, x.numel(), BLOCK_N=256)
    return y


def every_bfloat16() -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def edges(dtype: torch.dtype) -> Tensor:
    """Numbers of a narrow format, the middles between them, and the floats on both sides of those."""
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).float()
    finite = codes[codes.isfinite()].unique()
    middle = (finite[1:] + finite[:-1]) / 2
    near = [torch.nextafter(middle, finite[1:]), torch.nextafter(middle, finite[:-1])]
    return torch.cat([finite, middle, *near, torch.tensor([1e5, -1e5, 1e-12, float("inf"), -float("inf")])])


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float8_e4m3fn, 448.0), (torch.float8_e5m2, 57344.0)], ids=str)
def test_eight_bits_are_rounded_to_even_and_saturate(dtype: torch.dtype, largest: float) -> None:
    x = edges(dtype)
    assert torch.equal(converted(x, dtype).view(torch.uint8), x.clamp(-largest, largest).to(dtype).view(torch.uint8))
    assert converted(torch.tensor([float("nan")]), dtype).float().isnan().all()


def test_bfloat16_is_rounded_to_even() -> None:
    x = random(4096, scale=100.0).cpu()
    assert torch.equal(converted(x, torch.bfloat16), x.to(torch.bfloat16))
    assert not torch.equal(x.view(torch.int32) & -65536, x.to(torch.bfloat16).float().view(torch.int32)), (
        "a cut differs"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_widening_is_exact(dtype: torch.dtype) -> None:
    x = every_bfloat16() if dtype == torch.bfloat16 else torch.arange(256).to(torch.uint8).view(dtype)
    assert torch.equal(converted(x, torch.float32).nan_to_num(7.0), x.float().nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn], ids=str)
def test_products_sum_in_float32(dtype: torch.dtype) -> None:
    a, b = random(32, 32).cpu().to(dtype), random(32, 32, seed=1).cpu().to(dtype)
    c = torch.empty(32, 32)
    launch(product_kernel, (1,), a, b, c, SIZE=32)
    assert error(c, a.double() @ b.double()) < 3e-7


def test_bfloat16_arithmetic_is_rounded_once() -> None:
    x, y = random(64).cpu().to(torch.bfloat16), random(64, seed=1).cpu().to(torch.bfloat16)
    out = torch.empty(4, 64, dtype=torch.bfloat16)
    launch(arithmetic_kernel, (1,), x, y, out, SIZE=64)
    for found, expected in zip(out, (x + y, x * y, torch.maximum(x, y), -x), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("sizes", [(2, 2), (5, 3, 3), (4, 2, 2, 2), (7, 2, 4)], ids=str)
def test_any_two_values_of_two_axes_meet_in_a_case(sizes: tuple[int, ...]) -> None:
    found = covering(sizes)
    for one, other in combinations(range(len(sizes)), 2):
        together = {(case[one], case[other]) for case in found}
        assert together == set(product(range(sizes[one]), range(sizes[other])))
    assert len(found) <= sizes[0] * max(sizes[1:]) + 1


def test_a_loaded_number_bounds_a_loop() -> None:
    out: Any = torch.zeros(1, dtype=torch.int32)
    launch(count_kernel, (1,), torch.tensor([5], dtype=torch.int32), out)
    assert int(out) == 10
