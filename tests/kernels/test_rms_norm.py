"""The norm's kernels against float64: output and both gradients."""

from __future__ import annotations

import pytest
import torch
from numerics import DEVICE, SIZES, assert_close, assert_compiles, each_pair, poisoned, random, strided
from torch.nn import functional as F

from ablate.kernels.rms_norm import rms_norm, rms_norm_op

EPS = 1e-6
DTYPES = (torch.float32, torch.bfloat16)


@each_pair({"rows": SIZES, "dim": [7, 100, 257], "dtype": DTYPES})
def test_output_and_gradients(rows: int, dim: int, dtype: torch.dtype) -> None:
    x, weight = random(rows, dim, dtype=dtype), random(dim, seed=1)
    g = random(rows, dim, dtype=dtype, seed=2)
    check(x, weight, g, dtype)


def test_rows_of_a_wider_tensor_and_a_transposed_gradient() -> None:
    x, weight = strided(random(33, 48)), random(48, seed=1)
    assert not x.is_contiguous()
    check(x, weight, random(48, 33, seed=2).T, torch.float32)


def check(x: torch.Tensor, weight: torch.Tensor, g: torch.Tensor, dtype: torch.dtype) -> None:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with poisoned():
        y = rms_norm(x, weight, EPS)
        found = torch.autograd.grad(y, (x, weight), g)
    wide_x, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = F.rms_norm(wide_x, weight.shape, wide_weight, EPS)
    assert y.dtype == x.dtype
    assert_close(y, expected, dtype, "y")
    for name, a, b in zip("xw", found, torch.autograd.grad(expected, (wide_x, wide_weight), g.double()), strict=True):
        assert_close(a, b, dtype, name)


def test_zeros_give_zeros() -> None:
    x = torch.zeros(3, 8, device=DEVICE, requires_grad=True)
    y = rms_norm(x, torch.ones(8, device=DEVICE), EPS)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_no_rows() -> None:
    assert rms_norm(torch.empty(0, 8, device=DEVICE), torch.ones(8, device=DEVICE), EPS).shape == (0, 8)


def test_the_operator_is_one_that_compiles() -> None:
    x, weight = random(5, 8).requires_grad_(), random(8, seed=1).requires_grad_()
    torch.library.opcheck(rms_norm_op, (x, weight, EPS))
    assert_compiles(lambda a, b: rms_norm(a, b, EPS), x, weight)


@pytest.mark.parametrize(
    ("x", "weight", "sentence"),
    [
        (torch.zeros(2, 8, dtype=torch.float16), torch.ones(8), "float16.*must be one of"),
        (torch.zeros(8, 2).T, torch.ones(8), "last axis must be contiguous"),
        (torch.zeros(2, 8), torch.ones(7), r"shape \(7,\).*must be \(8,\)"),
    ],
)
def test_what_is_refused(x: torch.Tensor, weight: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rms_norm_op(x.to(DEVICE), weight.to(DEVICE), EPS)
