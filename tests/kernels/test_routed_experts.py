"""Routed experts whole against a float64 loop over the experts: output, and gradients of all four inputs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from numerics import DEVICE, assert_close, assert_compiles, poisoned, random, strided
from torch import Tensor
from torch.nn import functional as F

from ablate.components.moe.module import place
from ablate.kernels.routed_experts import routed_experts, routed_experts_op

DTYPES = (torch.float32, torch.bfloat16)
NAMES = ("x", "weight", "gate_up", "down")
Plan = tuple[Tensor, Tensor, Tensor]


def routed(n: int, n_activated: int, n_experts: int, only: tuple[int, ...] = ()) -> Plan:
    """token_of_row_P, row_of_choice_NA and offsets_E of a random choice; among `only`, where it is not empty."""
    among = torch.tensor(only or range(n_experts))
    scores = torch.rand(n, len(among), generator=torch.Generator().manual_seed(n))
    expert_NA = among[scores.topk(n_activated).indices]
    where = place(expert_NA, torch.bincount(expert_NA.flatten(), minlength=n_experts)[None])
    return (
        where.token_of_row_P.to(DEVICE, torch.int32),
        where.row_of_choice_NA.to(DEVICE, torch.int32),
        where.offsets_E.to(DEVICE),
    )


def inputs(n: int, a: int, e: int, d: int, f: int, dtype: torch.dtype) -> list[Tensor]:
    return [
        random(n, d, dtype=dtype),
        random(n, a, seed=1).softmax(-1),
        random(e, 2 * f, d, dtype=dtype, seed=2, scale=d**-0.5),
        random(e, d, f, dtype=dtype, seed=3, scale=f**-0.5),
    ]


def expected(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, plan: Plan) -> Tensor:
    token_of_row_P, row_of_choice_NA, offsets_E = (t.long() for t in plan)
    hidden = [
        F.silu(x[token_of_row_P[start:end]] @ gate_up[e].chunk(2)[0].T)
        * (x[token_of_row_P[start:end]] @ gate_up[e].chunk(2)[1].T)
        for e, (start, end) in enumerate(pairwise([0, *offsets_E.tolist()]))
    ]
    y_PD = torch.cat([h @ w.T for h, w in zip(hidden, down, strict=True)])
    return (y_PD[row_of_choice_NA] * weight[..., None]).sum(1)


def check(operands: list[Tensor], plan: Plan, g: Tensor, dtype: torch.dtype) -> None:
    operands = [t.detach().requires_grad_() for t in operands]
    with poisoned():
        y = routed_experts(*operands, *plan)
        found = torch.autograd.grad(y, operands, g)
    wide = [t.detach().double().requires_grad_() for t in operands]
    wanted = expected(*wide, plan)
    assert y.dtype == dtype
    assert_close(y, wanted, dtype, "y")
    for name, a, b, like in zip(NAMES, found, torch.autograd.grad(wanted, wide, g.double()), operands, strict=True):
        assert a.dtype == like.dtype
        assert_close(a, b, dtype, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "a", "e", "only"),
    [
        (1, 1, 4, ()),
        (63, 2, 4, ()),
        (129, 1, 3, (1,)),  # one expert has all
        (100, 3, 8, (0, 2, 3, 7)),  # experts without a token
        (65, 3, 3, ()),  # every expert has every token
    ],
)
def test_output_and_gradients(n: int, a: int, e: int, only: tuple[int, ...], dtype: torch.dtype) -> None:
    check(inputs(n, a, e, 72, 40, dtype), routed(n, a, e, only), random(n, 72, dtype=dtype, seed=4), dtype)


def test_rows_of_a_wider_tensor_and_a_transposed_gradient() -> None:
    x, *others = inputs(33, 2, 4, 16, 24, torch.float32)
    check([strided(x), *others], routed(33, 2, 4), random(16, 33, seed=4).T, torch.float32)


def test_weights_of_zero_still_have_gradients() -> None:
    operands = inputs(20, 2, 4, 16, 8, torch.float32)
    operands[1] = torch.zeros_like(operands[1])
    plan = routed(20, 2, 4)
    weight = operands[1].requires_grad_()
    y = routed_experts(*operands, *plan)
    assert torch.equal(y, torch.zeros_like(y))
    (found,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    wide = [t.detach().double() for t in operands]
    (wanted,) = torch.autograd.grad(expected(*wide[:1], wide[1].requires_grad_(), *wide[2:], plan).sum(), wide[1])
    assert_close(found, wanted, torch.float32)


def test_no_tokens() -> None:
    operands = [t.requires_grad_() for t in inputs(0, 2, 4, 16, 8, torch.float32)]
    with poisoned():
        y = routed_experts(*operands, *routed(0, 2, 4))
        found = torch.autograd.grad(y.sum(), operands)
    assert y.shape == (0, 16)
    assert all(torch.equal(t, torch.zeros_like(t)) for t in found)


def test_nothing_is_kept_without_gradients() -> None:
    operands, plan = inputs(10, 2, 4, 16, 8, torch.float32), routed(10, 2, 4)
    y, kept = routed_experts_op(*operands, *plan, False)
    _, more = routed_experts_op(*operands, *plan, True)
    assert (kept.numel(), more.shape) == (0, (20, 16))
    trained = [t.clone().requires_grad_() for t in operands]
    assert torch.equal(routed_experts(*trained, *plan), y)
    with torch.no_grad():
        assert torch.equal(routed_experts(*trained, *plan), y)


@pytest.mark.parametrize("name", NAMES)
def test_one_gradient_alone(name: str) -> None:
    operands, plan = inputs(10, 2, 4, 16, 8, torch.float32), routed(10, 2, 4)
    together = [t.clone().requires_grad_() for t in operands]
    alone = operands[NAMES.index(name)].requires_grad_()
    wanted = torch.autograd.grad(routed_experts(*together, *plan).sum(), together)
    (found,) = torch.autograd.grad(routed_experts(*operands, *plan).sum(), alone)
    assert torch.equal(found, wanted[NAMES.index(name)])


def test_the_operator_is_one_that_compiles() -> None:
    operands, plan = inputs(9, 2, 4, 16, 8, torch.float32), routed(9, 2, 4)
    operands = [t.requires_grad_() for t in operands]
    torch.library.opcheck(routed_experts_op, (*operands, *plan, True))
    assert_compiles(lambda *x: routed_experts(*x, *plan), *operands)


def test_the_same_from_run_to_run() -> None:
    operands, plan = inputs(100, 3, 4, 40, 24, torch.bfloat16), routed(100, 3, 4)
    operands = [t.requires_grad_() for t in operands]

    def once() -> list[Tensor]:
        y = routed_experts(*operands, *plan)
        return [y, *torch.autograd.grad(y, operands, torch.ones_like(y))]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_what_is_refused() -> None:
    x, weight, gate_up, down = inputs(9, 2, 4, 16, 8, torch.float32)
    token_of_row_P, row_of_choice_NA, offsets_E = routed(9, 2, 4)
    for operands, plan, sentence in (
        ((x[:8], weight, gate_up, down), (token_of_row_P, row_of_choice_NA, offsets_E), r"x has shape \(8, 16\)"),
        (
            (x, weight[:, :1], gate_up, down),
            (token_of_row_P, row_of_choice_NA, offsets_E),
            r"weights of the choices.*\(9, 1\)",
        ),
        (
            (x, weight, gate_up[:, :8], down),
            (token_of_row_P, row_of_choice_NA, offsets_E),
            r"down matrices.*must be \(4, 16, 4\)",
        ),
        (
            (x, weight, gate_up, down),
            (token_of_row_P[1:], row_of_choice_NA, offsets_E),
            r"token_of_row_P has shape \(17,\)",
        ),
        (
            (x, weight, gate_up, down),
            (token_of_row_P.long(), row_of_choice_NA, offsets_E),
            "token_of_row_P is torch.int64",
        ),
        (
            (x.bfloat16(), weight, gate_up, down),
            (token_of_row_P, row_of_choice_NA, offsets_E),
            "float32.*must be one of",
        ),
        (
            (x, weight.bfloat16(), gate_up, down),
            (token_of_row_P, row_of_choice_NA, offsets_E),
            "weights of the choices is|are",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            routed_experts(*operands, *plan)
