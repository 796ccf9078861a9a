"""The router's kernels against the equations token by token, and against the module in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numerics import DEVICE, assert_close, assert_compiles, each_pair, poisoned, random, strided
from torch import Tensor

from ablate.components.moe.kernel import Routed, place_op, route, route_backward_op, route_op
from ablate.components.moe.module import Router, place
from ablate.components.moe.reference import choose
from ablate.components.moe.spec import RoutedExperts

GAP = 1e-6  # between any two scores that a choice compares: more than float32 takes from them


def node_of(experts: int, groups: int, limited: int, activated: int) -> RoutedExperts:
    return RoutedExperts(
        n_routed_experts=experts, n_expert_groups=groups, n_limited_groups=limited, n_activated_experts=activated,
        n_shared_experts=0, expert_hidden_dim=1, route_scale=2.5,
    )  # fmt: skip


NODES = [
    node_of(8, 1, 1, 1),
    node_of(8, 4, 2, 2),
    node_of(40, 5, 2, 9),
    node_of(40, 8, 3, 2),
    node_of(40, 40, 9, 9),
    node_of(64, 8, 4, 9),
    node_of(64, 1, 1, 9),
]


def names(node: RoutedExperts) -> str:
    return f"{node.n_activated_experts}of{node.n_routed_experts}in{node.n_limited_groups}of{node.n_expert_groups}"


def routed(node: RoutedExperts, logits_NE: Tensor, bias_E: Tensor | None, sequences: int) -> Routed:
    return route(
        logits_NE, bias_E, n_groups=node.n_expert_groups, n_limited_groups=node.n_limited_groups,
        n_group_scores=node.n_group_scores, n_activated=node.n_activated_experts, route_scale=node.route_scale,
        n_sequences=sequences,
    )  # fmt: skip


def check_choice(node: RoutedExperts, logits_NE: Tensor, bias_E: Tensor | None, found: Routed) -> None:
    """Every token's experts, in order, are the reference's."""
    affinity_NE = logits_NE.detach().double().cpu().sigmoid()
    bias_E = torch.zeros(node.n_routed_experts) if bias_E is None else bias_E.cpu()
    ordered_NE = (affinity_NE + bias_E.double()).sort(-1).values
    assert float(ordered_NE.diff(dim=-1).min()) > GAP / 10, "choose another seed"
    expected = [choose(node, affinity_E, bias_E.double()) for affinity_E in affinity_NE]
    assert found.expert_NA.tolist() == expected


def check_numbers(node: RoutedExperts, logits_NE: Tensor, bias_E: Tensor | None, sequences: int, found: Routed) -> Any:
    """Weights, loads and placement against the module in float64; its differentiable outputs and their input."""
    experts = node.n_routed_experts
    router = Router(node, experts, selection_bias=bias_E is not None).to(DEVICE, torch.float64)
    router.weight.data = torch.eye(experts, dtype=torch.float64, device=DEVICE)  # the logits are the input itself
    if bias_E is not None:
        router.bias_E.copy_(bias_E)
    wide_NE = logits_NE.detach().double().requires_grad_()
    expert_NA, weight_NA, routing = router(wide_NE.unflatten(0, (sequences, -1)))
    assert torch.equal(found.expert_NA, expert_NA)
    assert_close(found.weight_NA, weight_NA, torch.float32, "weights")
    assert_close(found.affinity_BE, routing.affinity_BE, torch.float32, "affinities")
    assert torch.equal(found.counts_BE, routing.counts_BE)
    check_placement(found)
    return wide_NE, (weight_NA, routing.affinity_BE)


def check_placement(found: Routed) -> None:
    where = place(found.expert_NA.long(), found.counts_BE)
    assert torch.equal(found.offsets_E, where.offsets_E)
    assert torch.equal(found.token_of_row_P, where.token_of_row_P)
    assert torch.equal(found.row_of_choice_NA, where.row_of_choice_NA)
    dtypes = [x.dtype for x in found]
    assert dtypes == [torch.int32, torch.float32, torch.int64, torch.float32, torch.int32, torch.int32, torch.int32]


@each_pair(
    {"node": NODES, "biased": [True, False], "tokens, sequences": [(1, 1), (1, 3), (63, 3), (129, 1)]},
    ids=lambda value: names(value) if isinstance(value, RoutedExperts) else str(value),
)
def test_everything(node: RoutedExperts, biased: bool, tokens: int, sequences: int) -> None:
    experts = node.n_routed_experts
    logits_NE = random(tokens * sequences, experts).requires_grad_()
    bias_E = random(experts, seed=1, scale=0.1) if biased else None
    with poisoned():
        found = routed(node, logits_NE, bias_E, sequences)
        outputs = found.weight_NA, found.affinity_BE
        # An affinity is a mean over tokens: its gradient in proportion, so that neither path drowns the other.
        gradients = [random(*outputs[0].shape, seed=2), random(*outputs[1].shape, seed=3, scale=tokens)]
        (dlogits_NE,) = torch.autograd.grad(outputs, logits_NE, gradients)
    check_choice(node, logits_NE, bias_E, found)
    wide_NE, expected = check_numbers(node, logits_NE, bias_E, sequences, found)
    (expected_NE,) = torch.autograd.grad(expected, wide_NE, [g.double() for g in gradients])
    # With one expert a weight is the scale whatever the logits; what is left is the affinities' gradient.
    assert_close(dlogits_NE, expected_NE, torch.float32, "logits")


@pytest.mark.parametrize("which", [0, 1])
def test_each_output_has_its_own_gradient(which: int) -> None:
    node, logits_NE = node_of(40, 5, 2, 3), random(66, 40).requires_grad_()
    found = routed(node, logits_NE, None, 3)
    g = random(*(found.weight_NA, found.affinity_BE)[which].shape, seed=2)
    (dlogits_NE,) = torch.autograd.grad((found.weight_NA, found.affinity_BE)[which], logits_NE, g)
    wide_NE, expected = check_numbers(node, logits_NE, None, 3, found)
    assert_close(dlogits_NE, torch.autograd.grad(expected[which], wide_NE, g.double())[0], torch.float32)


def test_many_programs_sum_their_counts_in_two_steps() -> None:
    """More programs than one chunk holds, and more chunks than one; every pair is still in its place."""
    node, logits_NE = node_of(8, 1, 1, 2), random(2 * 1060, 8)
    with poisoned():
        found = routed(node, logits_NE, None, 2)
    check_numbers(node, logits_NE, None, 2, found)


def test_logits_of_a_wider_tensor_and_a_transposed_gradient() -> None:
    node, logits_NE = node_of(40, 5, 2, 3), strided(random(33, 40)).requires_grad_()
    assert not logits_NE.is_contiguous()
    found = routed(node, logits_NE, None, 1)
    g_NA = random(3, 33, seed=2).T
    (dlogits_NE,) = torch.autograd.grad(found.weight_NA, logits_NE, g_NA)
    wide_NE, expected = check_numbers(node, logits_NE, None, 1, found)
    assert_close(dlogits_NE, torch.autograd.grad(expected[0], wide_NE, g_NA.double())[0], torch.float32)


def test_the_bias_selects_and_never_weighs() -> None:
    node, logits_NE = node_of(8, 1, 1, 2), random(5, 8)
    bias_E = torch.zeros(8, device=DEVICE)
    bias_E[[6, 3]] = torch.tensor([2.0, 1.5], device=DEVICE)
    found = routed(node, logits_NE, bias_E, 1)
    assert found.expert_NA.sort(-1).values.tolist() == [[3, 6]] * 5
    affinity_NA = logits_NE.double().sigmoid().gather(1, found.expert_NA.long())
    assert_close(found.weight_NA, affinity_NA / affinity_NA.sum(-1, keepdim=True) * 2.5, torch.float32)
    assert_close(found.affinity_BE, routed(node, logits_NE, None, 1).affinity_BE.double(), torch.float32)


def test_the_best_expert_of_a_weak_group_is_out_of_reach() -> None:
    logits_NE = torch.tensor([[9.0, -9.0, -9.0, 1.0, 1.1, -9.0, -9.0, -8.0, -9.0]], device=DEVICE)
    assert routed(node_of(9, 3, 1, 2), logits_NE, None, 1).expert_NA.tolist() == [[4, 3]]
    assert routed(node_of(9, 1, 1, 2), logits_NE, None, 1).expert_NA.tolist() == [[0, 4]]


def test_equal_scores_go_to_the_lowest_experts_and_groups() -> None:
    logits_NE = torch.zeros(3, 40, device=DEVICE)
    assert routed(node_of(40, 5, 2, 9), logits_NE, None, 1).expert_NA.tolist() == [list(range(9))] * 3
    logits_NE[:, 20] = 1.0
    found = routed(node_of(40, 5, 2, 9), logits_NE, None, 1)
    assert found.expert_NA.tolist() == [[20, *range(8)]] * 3
    assert found.counts_BE.sum() == 27


def test_negative_scores_keep_their_order() -> None:
    node, logits_NE = node_of(40, 5, 2, 9), random(20, 40)
    bias_E = random(40, seed=1, scale=0.1) - 3.0
    found = routed(node, logits_NE, bias_E, 1)
    check_choice(node, logits_NE, bias_E, found)
    check_placement(found)


def test_all_tokens_to_one_set_of_experts() -> None:
    logits_NE = random(70, 40, scale=0.01)
    logits_NE[:, [3, 17]] = torch.tensor([5.0, 4.0], device=DEVICE)
    found = routed(node_of(40, 1, 1, 2), logits_NE, None, 1)
    assert found.counts_BE[0, [3, 17]].tolist() == [70, 70]
    assert found.token_of_row_P.tolist() == [*range(70), *range(70)]
    check_placement(found)


@pytest.mark.parametrize("node", [node_of(40, 5, 2, 9), node_of(40, 1, 1, 9)], ids=names)
def test_what_is_not_a_number_stays_in_range_and_is_seen(node: RoutedExperts) -> None:
    logits_NE = random(64, 40)
    logits_NE[3] = float("nan")
    logits_NE[5, 7] = float("nan")
    logits_NE[6, :20] = -float("nan")
    logits_NE[8], logits_NE[9, 10:] = float("inf"), -float("inf")
    found = routed(node, logits_NE, None, 1)
    assert (found.expert_NA >= 0).all()
    assert (found.expert_NA < 40).all()
    assert (found.expert_NA.sort(-1).values.diff(dim=-1) > 0).all(), "an expert was chosen twice"
    assert found.expert_NA[5, 0] == 7
    assert found.weight_NA[5].isnan().all()
    check_placement(found)


def test_twice_the_same_bits() -> None:
    node, runs = node_of(40, 5, 2, 9), []
    for _ in range(2):
        logits_NE = random(150, 40).requires_grad_()
        found = routed(node, logits_NE, None, 3)
        loss = found.weight_NA.square().sum() + found.affinity_BE.square().sum()
        runs.append([*found, *torch.autograd.grad(loss, logits_NE)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_no_tokens() -> None:
    found = routed(node_of(8, 1, 1, 2), random(0, 8), None, 1)
    assert found.offsets_E.tolist() == [0] * 8
    assert found.counts_BE.tolist() == [[0] * 8]
    assert [x.shape[0] for x in (found.expert_NA, found.weight_NA, found.token_of_row_P, found.row_of_choice_NA)] == [
        0
    ] * 4


def test_the_operators_are_ones_that_compile() -> None:
    logits_NE, bias_E = random(10, 8).requires_grad_(), random(8, seed=1)
    for bias in (bias_E, None):
        torch.library.opcheck(route_op, (logits_NE, bias, 2, 1, 1, 2, 2.5, 2))
    weight_NA, affinity_BE, expert_NA, _, offsets_E, rank_NA, before_LE, start_CE = route_op(
        logits_NE.detach(), bias_E, 2, 1, 1, 2, 2.5, 2
    )
    torch.library.opcheck(place_op, (expert_NA, rank_NA, offsets_E, before_LE, start_CE, 2))
    torch.library.opcheck(route_backward_op, (logits_NE.detach(), expert_NA, weight_NA, affinity_BE, 2.5))

    node = node_of(8, 2, 1, 2)

    def loss(logits: Tensor) -> Tensor:
        found = routed(node, logits, bias_E, 2)
        y_N = (found.weight_NA * found.row_of_choice_NA).sum(1) + found.token_of_row_P[:10] + found.offsets_E.sum()
        return y_N.sum() + (found.affinity_BE * found.counts_BE).sum()

    assert_compiles(loss, logits_NE)


@pytest.mark.parametrize(
    ("logits", "bias", "sizes", "sentence"),
    [
        (torch.zeros(2, 8, dtype=torch.bfloat16), None, (1, 1, 1, 2, 1.0, 1), "bfloat16; it must be one of"),
        (torch.zeros(8, 2).T, None, (1, 1, 1, 2, 1.0, 1), "last axis must be contiguous"),
        (torch.zeros(2, 8), torch.zeros(7), (1, 1, 1, 2, 1.0, 1), r"bias has shape \(7,\)"),
        (torch.zeros(2, 8), None, (3, 1, 1, 2, 1.0, 1), "8 experts in 3 groups"),
        (torch.zeros(2, 8), None, (4, 5, 1, 2, 1.0, 1), "5 are chosen"),
        (torch.zeros(2, 8), None, (4, 2, 3, 2, 1.0, 1), "by their 3 best scores"),
        (torch.zeros(2, 8), None, (4, 2, 1, 5, 1.0, 1), "5 experts are to be chosen of 4"),
        (torch.zeros(2, 8), None, (1, 1, 1, 2, 1.0, 3), "2 tokens are no 3 sequences"),
    ],
)
def test_what_is_refused(logits: Tensor, bias: Tensor | None, sizes: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        route_op(logits.to(DEVICE), None if bias is None else bias.to(DEVICE), *sizes)
