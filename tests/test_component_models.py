"""The laws of a switch that concern models: no residue, exact costs, shared initial values, causality."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from variants import (
    FULL,
    NANO,
    cells,
    loss_of,
    models,
    name_of,
    neighbours,
    on_torch,
    spec_of,
    tokens,
    with_ordinary_products,
    with_reference,
)

from ablate.components.component import ON, Component
from ablate.components.registry import COMPONENTS, NAMES
from ablate.components.variants import Variant
from ablate.model.transformer import Transformer, build, parameter_hashes
from ablate.presets import preset
from ablate.spec.model import ModelSpec

SEQUENCE = 24
each_model = pytest.mark.parametrize("model", models().values(), ids=models().keys())
each_cell = pytest.mark.parametrize("variant", cells(), ids=name_of)


# ---- law 7


def marks(variant: Variant) -> frozenset[str]:
    """What a component can leave in a run: parameters and buffers with their shapes, classes, callbacks, text."""
    spec = spec_of(variant)
    return marks_of(spec.model) | {f"text {spec.data.text.kind}"}


@cache
def marks_of(spec: ModelSpec) -> frozenset[str]:
    spec = on_torch(spec)
    with torch.device("meta"):
        model = Transformer(spec)
    found = {f"tensor {name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items()}
    found |= {f"class {type(m).__module__}.{type(m).__qualname__}" for m in model.modules()}
    nodes = [n for n in (spec.balance, spec.linear) if n is not None]
    found |= {f"callback {type(callback).__qualname__}" for node in nodes for callback in node.callbacks()}
    return frozenset(found)


def alone(chosen: Component) -> Variant:
    return Variant.none() | dict.fromkeys((*chosen.requires, chosen.name), ON)


@pytest.mark.parametrize("chosen", COMPONENTS, ids=NAMES)
def test_law_7_off_leaves_nothing_of_it(chosen: Component) -> None:
    """Its marks are what on has and some alternative has not, alone and beside everything; off has none of them."""
    contexts = [alone(chosen)] + ([] if any(chosen.name in c.requires for c in COMPONENTS) else [FULL])
    own: set[str] = set()
    for context in contexts:
        off = [marks(context | {chosen.name: a.name}) for a in chosen.alternatives]
        own |= marks(context) - frozenset.intersection(*off)
    if "loss" not in chosen.affects:  # it says how a model is computed on several ranks, and not which
        assert not own
        return
    assert own
    for variant in cells():
        present = own & marks(variant)
        assert (present == set()) == (variant[chosen.name] != ON), (name_of(variant), sorted(present)[:5])


def test_law_7_everything_off_is_a_llama() -> None:
    d, v = NANO.model.dim, NANO.model.vocab_size
    a: Any = NANO.model.attention
    hidden = NANO.settings["moe"].activated_hidden_dim
    assert a.n_heads > a.n_kv_heads
    expected = {"embedding.weight": (v, d), "norm.weight": (d,), "head.weight": (v, d)}
    for layer in range(NANO.model.n_layers):
        width = NANO.model.first_feed_forward.hidden_dim if layer < NANO.model.n_first_layers else hidden
        parts = {
            "attention_norm": (d,),
            "attention.q": (a.n_heads * a.head_dim, d),
            "attention.k": (a.n_kv_heads * a.head_dim, d),
            "attention.v": (a.n_kv_heads * a.head_dim, d),
            "attention.output": (d, a.n_heads * a.head_dim),
            "feed_forward_norm": (d,),
            "feed_forward.gate_up": (2 * width, d),
            "feed_forward.down": (d, width),
        }
        expected |= {f"layers.{layer}.{part}.weight": shape for part, shape in parts.items()}
    model = build(spec_of(Variant.none()).model, seed=0)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == expected
    assert not model.predict(tokens(1, 4)).routing


@each_model
def test_law_7_every_parameter_gets_a_gradient(model: ModelSpec) -> None:
    built = build(model, seed=0)
    window = tokens(16, 33)
    routing = built.predict(window[:, :-1]).routing
    assert all(int(r.counts_BE.sum(0).min()) > 0 for r in routing), "a larger batch: an expert got no token"
    loss_of(built, window).backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        rows = parameter.grad.flatten(1) if parameter.ndim == 3 else parameter.grad.flatten()[None]
        assert (rows.abs().sum(-1) > 0).all(), name  # each expert's matrix, or the whole parameter


# ---- law 8


def test_law_8_parameters_are_the_closed_form() -> None:
    """Exactly, for every model that the registry can make."""
    ordinary = {n: m for n, m in models("every").items() if m.linear == on_torch(NANO.model).linear}
    assert len(ordinary) > 100
    for name, model in (models() | ordinary).items():
        with torch.device("meta"):
            built = Transformer(model)
        assert sum(p.numel() for p in built.parameters()) == model.cost(SEQUENCE).trained_parameters, name
        deployed = sum(p.numel() for n, p in built.named_parameters() if not n.startswith("objective."))
        assert deployed == model.cost(SEQUENCE).main.parameters, name


@each_model
def test_law_8_flops_are_the_closed_form(model: ModelSpec) -> None:
    model = with_reference(model)
    built, window = build(model, seed=0), tokens(4, SEQUENCE + 1)
    uncounted = Uncounted(built)
    with FlopCounterMode(display=False) as forward:
        built(window[:, :-1])
    n_tokens = 4 * SEQUENCE
    cost = model.cost(SEQUENCE)
    expected = n_tokens * cost.forward_flops_per_token + uncounted.take()
    assert forward.get_total_flops() == pytest.approx(expected, rel=1e-3)

    with FlopCounterMode(display=False) as training:
        loss_of(built, window).backward()
    expected = n_tokens * cost.training_flops_per_token + 3 * uncounted.take()
    assert training.get_total_flops() == pytest.approx(expected, rel=1e-3)


class Uncounted:
    """What FlopCounterMode counts and the published convention does not, in one forward pass.

    The upper half of the attention matrix: T keys a token where causality needs (T + 1) / 2. The router's gate.
    """

    def __init__(self, model: Transformer) -> None:
        self.flops = 0.0
        for module in model.modules():
            if hasattr(module, "attention"):
                module.attention.register_forward_pre_hook(self.attention(model.spec))
            if type(module).__name__ == "Router":
                module.register_forward_pre_hook(self.gate)

    def attention(self, model: ModelSpec) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            b, t, d = arguments[0].shape
            causal = model.attention.cost(dim=d, sequence_length=t).attention_flops
            self.flops += b * t * causal * (2 * t / (t + 1) - 1)

        return hook

    def gate(self, module: Any, arguments: tuple[Any, ...]) -> None:
        self.flops += 2 * arguments[0].shape[:-1].numel() * module.weight.numel()

    def take(self) -> float:
        flops, self.flops = self.flops, 0.0
        return flops


@pytest.mark.parametrize("length", [1, 7, 64])
def test_law_8_attention_follows_the_sequence_length(length: int) -> None:
    for model in (spec_of(FULL).model, spec_of(Variant.none()).model):
        one, many = model.cost(1).main, model.cost(length).main
        assert many.attention_flops * 2 == one.attention_flops * (length + 1)
        assert many.weight_flops == one.weight_flops


def test_law_8_parameters_at_the_size_of_deepseek_v3() -> None:
    large = preset("v3-671b")
    for variant in (Variant.full(large), Variant.none()):
        model = variant.resolve(large).model
        with torch.device("meta"):
            built = Transformer(on_torch(model))
        assert sum(p.numel() for p in built.parameters()) == model.cost(4096).trained_parameters


# ---- law 9


def test_law_9_shared_parameters_start_equal_bit_for_bit() -> None:
    seen: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
    shared = 0
    for model in models().values():
        for name, parameter in build(model, seed=3).named_parameters():
            key = (name, tuple(parameter.shape))
            shared += key in seen
            first = seen.setdefault(key, parameter.detach())
            assert torch.equal(first, parameter), name
    assert shared > 10 * len(models())


def test_law_9_values_depend_on_seed_and_name_alone() -> None:
    model = spec_of(FULL).model
    first, again, other = build(model, seed=0), build(model, seed=0), build(model, seed=1)
    assert parameter_hashes(first) == parameter_hashes(again)
    hashes, others = parameter_hashes(first), parameter_hashes(other)
    matrices = [name for name, p in first.named_parameters() if p.ndim > 1]
    assert all(hashes[name] != others[name] for name in matrices)
    assert len({hashes[name] for name in matrices}) == len(matrices), "equal shapes must not have equal values"
    assert set(hashes) == {name for name, _ in first.named_parameters()}


@each_model
def test_law_9_initial_deviation_is_the_specified(model: ModelSpec) -> None:
    for name, parameter in build(model, seed=0).named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), name
            continue
        expected = model.init.deviation(parameter.shape[-1])
        assert float(parameter.detach().std()) == pytest.approx(expected, rel=6 / parameter.numel() ** 0.5), name


# ---- law 10


def shares_no_scale(model: ModelSpec) -> bool:
    return getattr(model.linear, "recipe", None) != "tensorwise"


CAUSAL = {name: model for name, model in models().items() if shares_no_scale(model)}
each_causal_model = pytest.mark.parametrize("model", CAUSAL.values(), ids=CAUSAL.keys())


@each_causal_model
def test_law_10_a_later_token_changes_no_earlier_logit(model: ModelSpec) -> None:
    built, t = with_weights(model), 12
    window = tokens(2, t)
    with torch.no_grad():
        before = built(window)
        for changed in (1, 5, t - 1):
            after = built(other_from(window, changed))
            torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-5)
            assert (after[:, changed:] - before[:, changed:]).abs().amax(-1).min() > 1e-4


@each_model
def test_law_10_no_gradient_flows_back_from_an_earlier_position(model: ModelSpec) -> None:
    built, window, position = with_weights(model), tokens(1, 10), 4
    embedded: list[torch.Tensor] = []
    built.embedding.register_forward_hook(lambda _, __, output: embedded.append(output.requires_grad_()))
    prediction = built.predict(window)
    for k, hidden in enumerate([prediction.hidden_BTD, *prediction.future.hidden_BTD]):
        (gradient,) = torch.autograd.grad(hidden[:, position].square().sum(), embedded[0], retain_graph=True)
        reached = gradient.abs().sum((0, 2)) > 0
        assert reached[: position + 1].all()
        assert not reached[position + k + 1 :].any(), f"depth {k} sees what it is to predict"


@each_causal_model
def test_law_10_predictions_ahead_see_nothing_from_their_target_on(model: ModelSpec) -> None:
    """Depth k predicts token i + k + 1 at position i: it sees inputs up to i + k at most, and its target never."""
    built, t = with_weights(model), 12
    window = tokens(2, t)
    with torch.no_grad():
        before = built.predict(window).future.hidden_BTD
        for changed in range(2, t):
            after = built.predict(other_from(window, changed)).future.hidden_BTD
            for k, (old, new) in enumerate(zip(before, after, strict=True), start=1):
                safe = max(0, changed - k)
                torch.testing.assert_close(new[:, :safe], old[:, :safe], rtol=0, atol=1e-5)


def test_law_10_one_scale_for_a_whole_tensor_is_the_one_exception() -> None:
    """Later tokens move that scale, and with it how earlier ones are rounded; gradients do not flow through it."""
    for model in (model for model in models().values() if not shares_no_scale(model)):
        built, window = with_weights(model), tokens(2, 12)
        with torch.no_grad():
            assert not torch.equal(built(other_from(window, 6))[:, :6], built(window)[:, :6])


def with_weights(model: ModelSpec) -> Transformer:
    """A built model whose selection biases, where it has any, take part."""
    built = build(model, seed=0).eval()
    for bias in buffers(built):
        bias.copy_(torch.linspace(-0.1, 0.1, bias.numel()))
    return built


def buffers(model: nn.Module) -> Iterator[torch.Tensor]:
    return (buffer for buffer in model.buffers() if buffer.is_floating_point())


def other_from(window_BT: torch.Tensor, start: int) -> torch.Tensor:
    """Every token from `start` on is another one."""
    changed = window_BT.clone()
    changed[:, start:] = (changed[:, start:] + 1) % NANO.model.vocab_size
    return changed


# ---- beside the laws


@each_model
def test_a_state_dict_brings_everything_back(model: ModelSpec) -> None:
    first, second = with_weights(model), build(model, seed=1)
    second.load_state_dict(first.state_dict())
    window = tokens(2, 9)
    assert torch.equal(first(window), second(window))
    for old, new in zip(first.predict(window).future.hidden_BTD, second.predict(window).future.hidden_BTD, strict=True):
        assert torch.equal(old, new)


@each_model
def test_decoding_with_a_cache_is_the_forward_pass(model: ModelSpec) -> None:
    # The absorbed form has no product that FP8 could round in the same way, so both sides are in ordinary arithmetic.
    built, window = with_weights(with_ordinary_products(model)), tokens(2, 10)
    with torch.no_grad():
        expected = built(window)
        caches = built.new_cache(2, 10)
        parts = [built.decode(window[:, a:b], caches) for a, b in ((0, 4), (4, 5), (5, 6), (6, 10))]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-5)


def test_a_table_made_in_inference_mode_serves_training() -> None:
    built = build(spec_of(FULL).model, seed=0)
    window = tokens(2, 9)
    with torch.inference_mode():
        built(window)
    loss_of(built, window).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())


def test_neighbours_reach_every_alternative() -> None:
    reached = {(name, level) for variant in neighbours() for name, level in variant.levels.items()}
    assert reached == {(c.name, level) for c in COMPONENTS for level in (ON, *(a.name for a in c.alternatives))}
