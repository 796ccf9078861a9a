"""Combining sorted rows: sums, the gradients of rows and weights, against float64."""

from __future__ import annotations

import pytest
import torch
from numerics import DEVICE, assert_close, assert_compiles, each_pair, poisoned, random, strided
from torch import Tensor

from ablate.kernels.combine import combine, combine_op

DTYPES = (torch.float32, torch.bfloat16)


def permutation(tokens: int, activated: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    place_P = torch.randperm(tokens * activated, generator=generator)
    return place_P.view(tokens, activated).to(DEVICE, torch.int32)


def expected(y_PD: Tensor, weight_NA: Tensor | None, row_of_choice_NA: Tensor) -> Tensor:
    weight_NA = torch.ones(row_of_choice_NA.shape, device=DEVICE) if weight_NA is None else weight_NA
    return torch.einsum("nad,na->nd", y_PD.double()[row_of_choice_NA], weight_NA.double())


def check(y_PD: Tensor, weight_NA: Tensor | None, row_of_choice_NA: Tensor, g_ND: Tensor) -> None:
    dtype = y_PD.dtype
    inputs = [x.detach().requires_grad_() for x in (y_PD, weight_NA) if x is not None]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    with poisoned():
        out_ND = combine(inputs[0], *(inputs[1:] or [None]), row_of_choice_NA)
        found = torch.autograd.grad(out_ND, inputs, g_ND)
    reference_ND = expected(wide[0], *(wide[1:] or [None]), row_of_choice_NA)
    assert out_ND.dtype == dtype
    assert_close(out_ND, reference_ND, dtype, "sums")
    for name, x, a, b in zip(
        ("rows", "weights"), inputs, found, torch.autograd.grad(reference_ND, wide, g_ND.double()), strict=False
    ):
        assert a.dtype == x.dtype
        assert_close(a, b, x.dtype, name)


@each_pair({"weighed": [True, False], "activated": [1, 2, 3], "dim": [1, 100, 257], "dtype": DTYPES})
def test_sums_and_gradients(weighed: bool, activated: int, dim: int, dtype: torch.dtype) -> None:
    tokens = 63
    y_PD = random(tokens * activated, dim, dtype=dtype)
    weight_NA = random(tokens, activated, seed=1) if weighed else None
    check(y_PD, weight_NA, permutation(tokens, activated), random(tokens, dim, dtype=dtype, seed=2))


@pytest.mark.parametrize("tokens", [1, 129])
def test_other_numbers_of_tokens(tokens: int) -> None:
    check(random(tokens * 9, 40), random(tokens, 9, seed=1), permutation(tokens, 9), random(tokens, 40, seed=2))


def test_rows_of_a_wider_tensor_and_a_transposed_gradient() -> None:
    y_PD = strided(random(66, 48))
    assert not y_PD.is_contiguous()
    check(y_PD, random(33, 2, seed=1), permutation(33, 2), random(48, 33, seed=2).T)


def test_choices_are_summed_in_their_order() -> None:
    """In float32 the sum of these four depends on the order: only 0 + 1e8 - 1e8 + 1 + 1 keeps both ones."""
    y_PD = torch.tensor([[1.0], [-1e8], [1.0], [1e8]], device=DEVICE)
    row_of_choice_NA = torch.tensor([[3, 1, 0, 2]], dtype=torch.int32, device=DEVICE)
    assert combine(y_PD, None, row_of_choice_NA).item() == 2.0


def test_twice_the_same_bits() -> None:
    y_PD, weight_NA, row_of_choice_NA = random(50 * 3, 70), random(50, 3, seed=1), permutation(50, 3)
    runs = []
    for _ in range(2):
        inputs = (y_PD.clone().requires_grad_(), weight_NA.clone().requires_grad_())
        out_ND = combine(*inputs, row_of_choice_NA)
        runs.append([out_ND, *torch.autograd.grad(out_ND.square().sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_no_tokens() -> None:
    y_PD, weight_NA = random(0, 8).requires_grad_(), random(0, 2).requires_grad_()
    out_ND = combine(y_PD, weight_NA, permutation(0, 2))
    assert out_ND.shape == (0, 8)
    assert [g.shape for g in torch.autograd.grad(out_ND.sum(), (y_PD, weight_NA))] == [(0, 8), (0, 2)]


def test_the_operator_is_one_that_compiles() -> None:
    y_PD, weight_NA, row_of_choice_NA = random(10, 8).requires_grad_(), random(5, 2).requires_grad_(), permutation(5, 2)
    for weights in (weight_NA, None):
        torch.library.opcheck(combine_op, (y_PD, weights, row_of_choice_NA))
    assert_compiles(combine, y_PD, weight_NA, row_of_choice_NA)
    assert_compiles(lambda y: combine(y, None, row_of_choice_NA), y_PD)


@pytest.mark.parametrize(
    ("y", "weight", "place", "sentence"),
    [
        (torch.zeros(4, 8, dtype=torch.float16), None, torch.zeros(2, 2, dtype=torch.int32), "float16.*must be one of"),
        (torch.zeros(8, 4).T, None, torch.zeros(2, 2, dtype=torch.int32), "last axis must be contiguous"),
        (torch.zeros(5, 8), None, torch.zeros(2, 2, dtype=torch.int32), r"shape \(5, 8\); it must be \(4, 8\)"),
        (torch.zeros(4, 8), torch.zeros(2, 1), torch.zeros(2, 2, dtype=torch.int32), r"it must be \(2, 2\)"),
        (torch.zeros(4, 8), None, torch.zeros(2, 2, dtype=torch.int64), "int64; it must be one of torch.int32"),
        (torch.zeros(4, 8), None, torch.zeros(2, 3, dtype=torch.int32)[:, :2], "call contiguous"),
    ],
)
def test_what_is_refused(y: Tensor, weight: Tensor | None, place: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        combine_op(y.to(DEVICE), None if weight is None else weight.to(DEVICE), place.to(DEVICE))
