"""Every node that the registry can place, against the equations in its component's `reference.py`, in float64.

Each slot has one way of being called, so a new node is compared as soon as its component is registered: its
`reference.py` names a function for its kind in REFERENCES, with the signature that the slot's test here shows.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from variants import NANO, every_variant, models, spec_of, with_ordinary_products, with_reference

from ablate.components.registry import COMPONENTS
from ablate.model.block import Block, ModelContext, rotation_table
from ablate.model.transformer import Transformer
from ablate.spec.model import ModelSpec

BATCH, LENGTH = 2, 7
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
FP8_TOLERANCE = 1e-6  # of the largest number: what sums in float32 lose


@cache
def bases() -> tuple[ModelSpec, ...]:
    return tuple(models("every").values())


def cases(slot: str) -> list[Any]:
    """Every node that fills the slot in some variant, with a model that it stands in."""
    found: dict[Any, ModelSpec] = {}
    for model in bases():
        node = getattr(with_reference(model), slot)
        if node is not None:
            found.setdefault(node, with_reference(with_ordinary_products(model)))
    return [pytest.param(node, model, id=f"{node.kind}-{i}") for i, (node, model) in enumerate(found.items())]


def reference_of(node: Any) -> Callable[..., Any]:
    """The function for this kind of node in the `reference.py` beside it."""
    module = importlib.import_module(f"{type(node).__module__.rpartition('.')[0]}.reference")
    return module.REFERENCES[node.kind]


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of a size at which softmax, sigmoid and SiLU are far from linear; selection biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (1.0 if tensor.ndim == 1 else 0.4))
    return module


def state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(found: Tensor, expected: Tensor, weights: Mapping[str, Tensor], inputs: list[Tensor]) -> None:
    """Equal values, and equal gradients of every input and every weight."""
    torch.testing.assert_close(found, expected, **TOLERANCE)
    g = random(*found.shape, seed=9)
    leaves = [*inputs, *(w for w in weights.values() if w.requires_grad)]
    ours, theirs = (
        torch.autograd.grad((y * g).sum(), leaves, retain_graph=True, allow_unused=True) for y in (found, expected)
    )
    for a, b, leaf in zip(ours, theirs, leaves, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, **TOLERANCE)


def test_every_kind_of_node_has_a_reference() -> None:
    missing = []
    for component in COMPONENTS:
        # A schedule computes nothing of its own: tests/schedules and tests/parallel hold it.
        for node in (n for slot, nodes in component.nodes.items() if slot != "pipeline" for n in nodes):
            kind = next(f.default for f in node.__dataclass_fields__.values() if f.name == "kind")
            module = importlib.import_module(f"{node.__module__.rpartition('.')[0]}.reference")
            if kind not in module.REFERENCES:
                missing.append(f"{component.name}: {kind}")
    assert not missing


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("node", "model"), cases("attention"))
def test_attention(node: Any, model: ModelSpec) -> None:
    """(node, weights, x of one sequence (T, D), rotation, eps) -> (T, D)"""
    module: Any = filled(node.build(ModelContext(model)))
    x_BTD = random(BATCH, LENGTH, model.dim).requires_grad_()
    table, weights = rotation_table(node.rope_dim, LENGTH, model.rope_theta), state(module)
    expected = torch.stack([reference_of(node)(node, weights, x, table, model.norm.eps) for x in x_BTD])
    assert_same(module(x_BTD, table), expected, weights, [x_BTD])


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("node", "model"), cases("feed_forward") + cases("first_feed_forward"))
def test_feed_forward(node: Any, model: ModelSpec) -> None:
    """(node, weights, tokens (N, D)) -> (N, D)"""
    module: Any = filled(node.build(ModelContext(model), model.balance))
    x_BTD, weights = random(BATCH, LENGTH, model.dim).requires_grad_(), state(module)
    expected = reference_of(node)(node, weights, x_BTD.flatten(0, 1)).view_as(x_BTD)
    assert_same(module(x_BTD)[0], expected, weights, [x_BTD])


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("node", "model"), cases("balance"))
def test_balance(node: Any, model: ModelSpec) -> None:
    """(node, layers of (counts (B, E), affinities (B, E), earlier counts (E))) -> the term of the loss"""
    module: Any = filled(model.feed_forward.build(ModelContext(model), node))
    n = max(2, getattr(node, "n_sequences", 1)) * 2
    routings = [module(random(n, LENGTH, model.dim, seed=seed))[1] for seed in (3, 4)]
    earlier = module(random(n, LENGTH, model.dim, seed=5))[1].counts_BE.sum(0)
    layers = [(r.counts_BE, r.affinity_BE, earlier) for r in routings]
    found, expected = node.loss(routings, {module.router: earlier}), reference_of(node)(node, layers)
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float64), expected, **TOLERANCE)
    if expected.requires_grad:
        ours, theirs = (torch.autograd.grad(y, module.router.weight, retain_graph=True)[0] for y in (found, expected))
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("node", "model"), cases("objective"))
def test_objective(node: Any, model: ModelSpec) -> None:
    """(node, weights, block of a depth, trunk (T, D), embedded (T, D), eps) -> hidden states (T - k, D) by depth"""
    transformer: Any = filled(Transformer(model))
    module = transformer.objective
    trunk_BTD, embedded_BTD = (random(BATCH, LENGTH, model.dim, seed=s).requires_grad_() for s in (1, 2))
    table, weights = transformer.rotation(LENGTH), state(module)

    def block(depth: int, x_TD: Tensor) -> Tensor:
        found: Block = module.layers[depth - 1].block
        return found(x_TD[None], table.positions(0, len(x_TD)))[0][0]

    found = module(trunk_BTD, embedded_BTD, table).hidden_BTD
    expected = [
        reference_of(node)(node, weights, block, trunk, embedded, model.norm.eps)
        for trunk, embedded in zip(trunk_BTD, embedded_BTD, strict=True)
    ]
    assert len(found) == len(expected[0])
    for k, hidden_BTD in enumerate(found):
        own = torch.stack([sequence[k] for sequence in expected])
        assert_same(hidden_BTD, own, weights, [trunk_BTD, embedded_BTD])


@pytest.mark.parametrize(("node", "model"), cases("linear"))
@pytest.mark.parametrize("sizes", [(150,), (70, 0, 80)])
def test_linear(node: Any, model: ModelSpec, sizes: tuple[int, ...]) -> None:
    """(node, x (N, I), weights (E, O, I), gradient of y (N, O), rows of each) -> y, gradients of x and the weights"""
    n, i, o = sum(sizes), 136, 144
    x, g = (random(n, i) * random(i, seed=5).exp()).requires_grad_(), random(n, o, seed=3) * 1e-2
    if len(sizes) == 1:
        module: Any = filled(node.linear(i, o))
        weight_EOI, y = module.weight[None], module(x)
    else:
        module = filled(node.grouped(len(sizes), i, o))
        weight_EOI, y = module.weight, module(x, torch.tensor(sizes).cumsum(0).int())
    dx, dw = torch.autograd.grad(y, [x, module.weight], g)
    expected = reference_of(node)(node, x.detach(), weight_EOI.detach(), g, sizes)
    assert_close_in_float32((y, dx, dw.view_as(weight_EOI)), expected)


def assert_close_in_float32(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert float((a.detach().double() - b).abs().max()) <= FP8_TOLERANCE * float(b.abs().max())


def texts() -> list[Any]:
    found = dict.fromkeys(spec_of(variant).data.text for variant in every_variant())
    logits = [node for node in found if node.kind == "teacher-logits"]
    found |= dict.fromkeys(replace(node, temperature=2.0, weight=0.3, n_soft_tokens=5) for node in logits)
    return [pytest.param(node, id=f"{node.kind}-{i}") for i, node in enumerate(found)]


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("node", texts())
def test_text(node: Any) -> None:
    """(node, cross-entropy, logits (B, T, C), batch) -> the main head's term of the loss"""
    n_tokens = NANO.model.vocab_size
    logits_BTC, k = random(BATCH, 3, n_tokens), getattr(node, "n_soft_tokens", 4)
    logp_BTC = torch.log_softmax(random(BATCH, 3, n_tokens, seed=2) / getattr(node, "temperature", 1.0), -1)
    kept = logp_BTC.topk(min(k, n_tokens), -1)
    rest_BT = logp_BTC.scatter(-1, kept.indices, float("-inf")).logsumexp(-1)
    batch = {"soft_logp_BTK": kept.values, "soft_ids_BTK": kept.indices, "soft_rest_logp_BT": rest_BT}
    found = node.loss(torch.tensor(3.25), logits_BTC if node.wants_logits else None, batch)
    assert float(found) == pytest.approx(reference_of(node)(node, 3.25, logits_BTC, batch), rel=1e-9)
