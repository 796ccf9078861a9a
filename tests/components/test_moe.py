"""Routed experts: the paper's equations, what the bias does, the node limit, no dropped token, sizes of off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from variants import FULL, NANO, on_torch, spec_of

from ablate.components.aux_free.spec import BiasBalance
from ablate.components.fp8.spec import StandardLinear
from ablate.components.moe.kernel import route
from ablate.components.moe.reference import choose, routed_experts, swiglu
from ablate.components.moe.spec import RoutedExperts, SwiGLU, Unbalanced, coarse, off
from ablate.model.block import ModelContext
from ablate.presets import preset
from ablate.spec.run import Spec

DIM = 16
NODE = RoutedExperts(
    n_routed_experts=12,
    n_shared_experts=2,
    n_activated_experts=4,
    expert_hidden_dim=8,
    n_expert_groups=4,
    n_limited_groups=2,
    route_scale=2.5,
    backend="library",
)
BALANCE = BiasBalance(bias_update_speed=0.001, sequence_loss_weight=0.0, backend="library")
NODES = {
    "limited": NODE,
    "unlimited": replace(NODE, n_expert_groups=1, n_limited_groups=1),
    "no shared": replace(NODE, n_shared_experts=0),
    "one group a token": replace(NODE, n_limited_groups=1, n_activated_experts=2),
    "all activated": replace(NODE, n_limited_groups=4, n_activated_experts=12),
}


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def module_of(node: Any, *, backend: Any = "reference", seed: int = 0, bias: float = 0.3) -> Any:
    context = ModelContext(replace(on_torch(NANO.model), dim=DIM, linear=StandardLinear(backend=backend)))
    module = node.build(context, BALANCE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        module.router.bias_E.copy_(torch.randn(node.n_routed_experts, generator=generator) * bias)
    return module


def inputs(batch: int = 3, length: int = 17, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", NODES)
def test_routed_experts_are_the_papers(name: str) -> None:
    node = NODES[name]
    module, x_BTD = module_of(node), inputs()
    weights = dict(module.named_parameters()) | dict(module.named_buffers())
    expected = routed_experts(node, weights, x_BTD.flatten(0, 1)).view_as(x_BTD)
    got, _ = module(x_BTD)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    g, parameters = torch.randn(x_BTD.shape), list(module.parameters())
    plain = torch.autograd.grad((expected * g).sum(), parameters, allow_unused=True)
    for a, b in zip(torch.autograd.grad((got * g).sum(), parameters), plain, strict=True):
        torch.testing.assert_close(a, b if b is not None else torch.zeros_like(a), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NODES)
def test_the_grouped_product_equals_the_loop(name: str) -> None:
    """Outputs and gradients, a case with idle experts included: one token reaches only four."""
    for x_BTD in (inputs(), inputs(1, 1)):
        results = []
        for backend in ("library", "reference"):
            module = module_of(NODES[name], backend=backend)
            y_BTD, _ = module(x_BTD)
            y_BTD.square().sum().backward()
            results.append([y_BTD, *(p.grad for p in module.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_float64")
def test_the_bias_selects_and_never_weighs() -> None:
    module, x_BTD = module_of(NODE, bias=0.0), inputs()
    chosen_NA, weight_NA, _ = module.router(x_BTD)
    module.router.bias_E += 0.7  # the same for all: nothing is selected differently, so nothing may change
    again_NA, same_NA, _ = module.router(x_BTD)
    assert torch.equal(chosen_NA, again_NA)
    assert torch.equal(weight_NA, same_NA)

    module.router.bias_E[:] = 0
    module.router.bias_E[5] = 100.0  # now every token selects expert 5
    chosen_NA, weight_NA, routing = module.router(x_BTD)
    assert (chosen_NA == 5).any(-1).all()
    assert int(routing.counts_BE[:, 5].sum()) == x_BTD.shape[0] * x_BTD.shape[1]
    affinity_NE = torch.sigmoid(x_BTD.flatten(0, 1) @ module.router.weight.T)
    chosen = affinity_NE.gather(1, chosen_NA)
    torch.testing.assert_close(weight_NA, chosen / chosen.sum(-1, keepdim=True) * NODE.route_scale)


def test_no_gradient_reaches_the_bias_and_it_is_no_parameter() -> None:
    module = module_of(NODE)
    assert not module.router.bias_E.requires_grad
    assert "bias_E" not in dict(module.router.named_parameters())
    assert "router.bias_E" in module.state_dict()
    without = NODE.build(ModelContext(replace(on_torch(NANO.model), dim=DIM)), Unbalanced())
    assert "router.bias_E" not in without.state_dict()


@pytest.mark.parametrize("name", NODES)
def test_a_token_reaches_few_groups_and_each_expert_once(name: str) -> None:
    node = NODES[name]
    chosen_NA, weight_NA, _ = module_of(node).router(inputs(8, 32))
    for row in chosen_NA.tolist():
        assert len(set(row)) == node.n_activated_experts
        assert len({e // node.experts_per_group for e in row}) <= node.n_limited_groups
    torch.testing.assert_close(weight_NA.sum(-1), torch.full(weight_NA.shape[:1], node.route_scale))


def test_the_node_limit_changes_what_is_chosen() -> None:
    limited, free = (module_of(NODES[n]).router(inputs(8, 32))[0] for n in ("limited", "unlimited"))
    differing = (limited.sort(-1).values != free.sort(-1).values).any(-1)
    assert 0.05 < float(differing.float().mean()) < 0.95


def test_groups_are_ranked_by_the_sum_of_their_best() -> None:
    """Four activated experts in two groups: a group counts by its best two, not by its best one or by all three."""
    assert NODE.n_group_scores == 2
    affinity = torch.tensor([[0.9, 0.0, 0.0], [0.6, 0.6, 0.0], [0.5, 0.5, 0.5], [0.55, 0.55, 0.1]]).flatten()
    router = module_of(NODE, bias=0.0).router
    assert set(choose(NODE, affinity, torch.zeros(12))) == {3, 4, 9, 10}
    assert set(router.select(affinity[None].logit())[0].tolist()) == {3, 4, 9, 10}
    assert replace(NODE, n_activated_experts=3).n_group_scores == 1
    v3 = preset("v3-671b").settings["moe"]
    assert v3.n_group_scores == v3.n_activated_experts // v3.n_limited_groups == 2


@pytest.mark.parametrize("level", [-20.0, -88.0, -104.0, -150.0, 40.0])
def test_weights_are_right_where_all_sigmoids_are_as_good_as_equal(level: float) -> None:
    """Below -104 all are zero in float32, above 17 all are one: every backend takes the same experts of equal ones."""
    x_BTD = inputs(1, 3)
    x_BTD[..., 0] = 1.0
    found = {}
    for backend in ("library", "triton"):
        module = module_of(replace(NODE, backend=backend), backend="library", bias=0.0)
        with torch.no_grad():
            module.router.weight.zero_()[:, 0] = level + torch.linspace(-1, 1, 12)
        y_BTD, routing = module(x_BTD)
        (gradient,) = torch.autograd.grad(
            y_BTD.square().sum() + routing.affinity_BE.square().sum(), module.router.weight
        )
        found[backend] = y_BTD, gradient, routing.affinity_BE, routing.counts_BE
    weights = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    torch.testing.assert_close(found["library"][0][0], routed_experts(NODE, weights, x_BTD[0]), rtol=1e-4, atol=1e-5)
    chosen_NA, weight_NA, routing = module.router(x_BTD)
    log_NE = torch.nn.functional.logsigmoid((x_BTD[0] @ module.router.weight.T).double())
    torch.testing.assert_close(weight_NA.double(), log_NE.gather(1, chosen_NA).softmax(-1) * 2.5, rtol=1e-5, atol=0)
    torch.testing.assert_close(routing.affinity_BE[0].double(), log_NE.softmax(-1).mean(0), rtol=1e-5, atol=0)
    for ours, kernels in zip(found["library"], found["triton"], strict=True):
        torch.testing.assert_close(ours, kernels, rtol=1e-4, atol=1e-5)
    assert bool((found["library"][1].abs() > 1e-9).any()) == (level < 17)


@pytest.mark.parametrize("node", [NODE, replace(NODE, n_expert_groups=1, n_limited_groups=1)])
def test_of_equal_scores_the_lower_experts_are_chosen_by_every_backend(node: Any) -> None:
    router = module_of(node, bias=0.0).router
    values = torch.tensor([-90.0, -2.0, 0.1, 0.5, 1.3])  # many equal scores, and no equal sums of different ones
    logits_NE = values[torch.randint(0, 5, (40, 12), generator=torch.Generator().manual_seed(0))]
    expected = [choose(node, affinity_E, torch.zeros(12)) for affinity_E in logits_NE.sigmoid()]
    assert router.select(logits_NE).tolist() == expected
    routed = route(logits_NE, None, n_groups=node.n_expert_groups, n_limited_groups=node.n_limited_groups,
                   n_group_scores=node.n_group_scores, n_activated=4, route_scale=1.0, n_sequences=1)  # fmt: skip
    assert routed.expert_NA.tolist() == expected


def test_no_token_is_dropped_however_uneven_the_load() -> None:
    module, x_BTD = module_of(NODE, bias=0.0), inputs(4, 32)
    module.router.bias_E[:4] = 100.0
    y_BTD, routing = module(x_BTD)
    assert routing.counts_BE.dtype == torch.int64
    assert torch.equal(routing.counts_BE.sum(-1), torch.full((4,), 32 * NODE.n_activated_experts))
    assert routing.n_tokens_per_sequence == 32
    weights = dict(module.named_parameters()) | dict(module.named_buffers())
    torch.testing.assert_close(y_BTD.flatten(0, 1), routed_experts(NODE, weights, x_BTD.flatten(0, 1)))


def test_statistics_are_those_of_each_sequence() -> None:
    module, x_BTD = module_of(NODE), inputs(3, 10)
    chosen_NA, _, routing = module.router(x_BTD)
    affinity_NE = torch.sigmoid(x_BTD.flatten(0, 1) @ module.router.weight.T)
    for b in range(3):
        rows = slice(10 * b, 10 * (b + 1))
        assert torch.equal(routing.counts_BE[b], chosen_NA[rows].flatten().bincount(minlength=12))
        share_NE = affinity_NE[rows] / affinity_NE[rows].sum(-1, keepdim=True)
        torch.testing.assert_close(routing.affinity_BE[b], share_NE.mean(0))
    assert routing.affinity_BE.requires_grad
    assert not routing.counts_BE.requires_grad


def test_forward_mutates_nothing() -> None:
    module = module_of(NODE)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module(inputs())
    module(inputs())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    module, x_BTD = module_of(NODE, backend="library"), inputs(1, 20)
    together, _ = module(x_BTD)
    alone = torch.cat([module(x_BTD[:, t : t + 1])[0] for t in range(20)], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_router_stays_in_float32_under_autocast() -> None:
    module, x_BTD = module_of(NODE), inputs()
    expected = module.router.logits(x_BTD.flatten(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        got = module.router.logits(x_BTD.flatten(0, 1))
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.usefixtures("_float64")
def test_swiglu_is_the_papers() -> None:
    module = SwiGLU(hidden_dim=5, backend="library").build(ModelContext(replace(on_torch(NANO.model), dim=DIM)), None)
    x_BTD = inputs(1, 4)
    weights = dict(module.named_parameters())
    for x_D, y_D in zip(x_BTD[0], module(x_BTD)[0][0], strict=True):
        torch.testing.assert_close(y_D, swiglu(x_D, weights["gate_up.weight"], weights["down.weight"]))
        gate, up = weights["gate_up.weight"][:5] @ x_D, weights["gate_up.weight"][5:] @ x_D
        torch.testing.assert_close(y_D, weights["down.weight"] @ (gate / (1 + (-gate).exp()) * up))


# ---- sizes of off


@pytest.mark.parametrize("name", ["nano", "v3-671b"])
def test_off_has_equal_activated_flops(name: str) -> None:
    sizes, dim = preset(name), preset(name).model.dim
    moe: RoutedExperts = sizes.settings["moe"]
    spec = Spec(preset=sizes, model=sizes.model, data=sizes.data, trainer=sizes.trainer)
    on = moe.cost(dim=dim)
    costs = {}
    for alternative in ("dense", "coarse", "no-shared", "unlimited"):
        costs[alternative] = off(spec, alternative).model.feed_forward.cost(dim=dim)
        assert costs[alternative].weight_flops == on.weight_flops, alternative
    experts = {name: cost.parameters - cost.gate_flops // 2 for name, cost in costs.items()}
    total = on.parameters - on.gate_flops // 2
    assert experts["dense"] * 2 == on.weight_flops
    # Whole experts: GShard's total is equal up to half of one, the routed total of no-shared has lost a shared one.
    assert abs(experts["coarse"] - total) <= coarse(moe).expert_hidden_dim * dim * 3 / 2
    assert experts["no-shared"] == total - 3 * dim * moe.expert_hidden_dim * moe.n_shared_experts
    assert experts["unlimited"] == total


def test_coarse_is_gshards() -> None:
    node = coarse(NODE)
    assert (node.n_activated_experts, node.n_shared_experts, node.n_expert_groups) == (2, 0, 1)
    assert node.activated_hidden_dim == NODE.activated_hidden_dim == 48
    assert node.expert_hidden_dim == 24
    assert node.n_routed_experts == round((12 + 2) * 8 / 24) == 5
    with pytest.raises(ValueError, match="must be even"):
        coarse(replace(NODE, n_shared_experts=1, expert_hidden_dim=7, n_activated_experts=4))
    smallest = coarse(replace(NODE, n_routed_experts=4, n_expert_groups=1, n_limited_groups=1))
    assert smallest.n_routed_experts == 2


def test_the_first_layers_are_dense_in_every_variant() -> None:
    for level in ("on", "dense", "coarse", "no-shared", "unlimited"):
        levels = {"moe": level} | ({"aux-free": "sequence-aux", "alltoall": "flat"} if level == "dense" else {})
        model = spec_of(FULL | levels).model
        assert model.layer_feed_forward(0) == (model.first_feed_forward, None)
        assert model.layer_feed_forward(model.n_layers)[0] == model.feed_forward


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_routed_experts": 10}, "n_expert_groups is 4; it must divide n_routed_experts, which is 10"),
        ({"n_routed_experts": 1}, "n_routed_experts is 1; it must be at least 2 .one expert leaves no choice"),
        ({"n_limited_groups": 5}, "n_limited_groups is 5; it must lie between 1 and n_expert_groups"),
        ({"n_activated_experts": 7}, "n_activated_experts is 7; .* can reach are 6"),
        ({"n_shared_experts": -1}, "n_shared_experts is -1"),
        ({"expert_hidden_dim": 0}, "expert_hidden_dim is 0"),
    ],
)
def test_impossible_sizes_are_refused(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(NODE, **changed)


@pytest.mark.parametrize("level", ["on", "coarse", "dense"])
def test_experts_in_no_layer_are_refused_and_dense_layers_are_not(level: str) -> None:
    sizes = replace(NANO, model=replace(NANO.model, n_first_layers=NANO.model.n_layers))
    variant = FULL | {"moe": level} | ({"aux-free": "sequence-aux", "alltoall": "flat"} if level == "dense" else {})
    if level == "dense":
        assert variant.resolve(sizes).model.balance is None
        return
    with pytest.raises(ValueError, match=r"n_first_layers is 2, and so is model\.n_layers.*give fewer first layers"):
        variant.resolve(sizes)


def test_sizes_that_the_grouped_product_cannot_take_are_refused() -> None:
    with pytest.raises(ValueError, match="16 x 20; the grouped product needs multiples of 8"):
        module_of(replace(NODE, expert_hidden_dim=20), backend="library")
    module_of(replace(NODE, expert_hidden_dim=20), backend="reference")(inputs())
