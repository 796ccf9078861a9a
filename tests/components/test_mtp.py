"""Multi-token prediction: which token is read, which is predicted, and that the target is never an input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from variants import FULL, NANO, spec_of, tokens, with_ordinary_products

from ablate.components.mtp.reference import alignment
from ablate.components.mtp.spec import MultiToken
from ablate.model.transformer import Transformer, build
from ablate.spec.model import ModelSpec

T = 10


def spec_with(arrangement: Any, depth: int) -> ModelSpec:
    model = with_ordinary_products(spec_of(FULL).model)
    node: Any = model.objective
    return replace(model, objective=replace(node, arrangement=arrangement, mtp_depth=depth))


def ahead_of(model: Transformer, window_BT: Tensor) -> list[Tensor]:
    return model.predict(window_BT).future.hidden_BTD


def window_of(seed: int = 0) -> Tensor:
    """T + 1 different tokens, so that each names its position."""
    order = torch.randperm(NANO.model.vocab_size, generator=torch.Generator().manual_seed(seed))
    return order[: T + 1][None]


@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_read_and_predicted_is_the_references(depth: int) -> None:
    """Every input token is planted anew in turn: which positions of module k first change is what they read."""
    model = build(spec_with("sequential", depth), seed=0)
    window = window_of()
    inputs, targets = window[:, :-1], window[:, 1:]
    with torch.no_grad():
        before = ahead_of(model, inputs)
        for k in range(1, depth + 1):
            expected = alignment(window[0].tolist(), k)
            assert before[k - 1].shape[1] == len(expected) == T - k
            first_changed = {}
            for planted in range(T):
                changed = inputs.clone()
                changed[0, planted] = 300
                difference = ahead_of(model, changed)[k - 1] - before[k - 1]
                differs = (difference.abs().amax(-1)[0] > 1e-5).nonzero()
                first_changed[planted] = int(differs[0]) if len(differs) else None
            for i, read, predicted in expected:
                position = window[0].tolist().index(read)
                assert first_changed[position] == i, "the newest token read at i is t_{i+k}"
                assert int(targets[:, k:][0, i]) == predicted
                assert window[0].tolist().index(predicted) == position + 1


def test_the_loss_is_the_mean_over_depths_of_shifted_cross_entropies() -> None:
    """Written out by position from the reference's alignment, the masked end left out."""
    model = build(spec_with("sequential", 3), seed=0)
    window = window_of()
    prediction = model.predict(window[:, :-1])
    got = model.objective.loss(prediction.future, window[:, 1:], model.head)
    by_depth = []
    for k in (1, 2, 3):
        logits = model.head(prediction.future.hidden_BTD[k - 1])[0].log_softmax(-1)
        terms = [-logits[i, predicted] for i, _, predicted in alignment(window[0].tolist(), k)]
        assert len(terms) == T - k
        by_depth.append(torch.stack(terms).mean())
    torch.testing.assert_close(got, torch.stack(by_depth).mean())


@pytest.mark.parametrize("arrangement", ["sequential", "parallel"])
def test_the_target_is_never_an_input(arrangement: Any) -> None:
    """Gradient of each prediction in the embedded inputs: none from its target on, some from the token before it."""
    model = build(spec_with(arrangement, 2), seed=0)
    inputs = window_of()[:, :-1]
    embedded = model.embedding(inputs)
    embedded.retain_grad()
    trunk = embedded
    for layer in model.layers:
        trunk, _ = layer(trunk, model.rotation(T))
    ahead = model.objective(model.norm(trunk), embedded, model.rotation(T)).hidden_BTD
    for k, hidden in enumerate(ahead, start=1):
        for i in range(T - k):
            (gradient,) = torch.autograd.grad(hidden[0, i].square().sum(), embedded, retain_graph=True)
            reached = (gradient[0].abs().sum(-1) > 0).nonzero().flatten().tolist()
            last = i + k if arrangement == "sequential" else i
            assert reached == list(range(last + 1))


def test_it_is_no_copy_function() -> None:
    """On noise a module that saw its target would learn to repeat it; this one stays at chance."""
    model = build(spec_with("sequential", 1), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    n_tokens = 16
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        window = torch.randint(0, n_tokens, (16, T + 1), generator=generator)
        prediction = model.predict(window[:, :-1])
        loss = model.objective.loss(prediction.future, window[:, 1:], model.head)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chance = float(torch.tensor(float(n_tokens)).log())
    assert losses[0] > chance + 0.5
    assert chance - 0.1 < sum(losses[-10:]) / 10 < chance + 0.3


def test_depth_two_continues_depth_one() -> None:
    """h^2 is made of h^1 before its output norm and of the embedding of t_{i+2}; written out."""
    model = build(spec_with("sequential", 2), seed=0)
    inputs = window_of()[:, :-1]
    trunk, embedded, _ = model.trunk(inputs)
    hidden, first, second = trunk, *model.objective.layers
    outputs = []
    for k, module in ((1, first), (2, second)):
        length = T - k
        joined = torch.cat(
            [module.embedding_norm(embedded[:, k : k + length]), module.hidden_norm(hidden[:, :length])], dim=-1
        )
        hidden, _ = module.block(joined @ module.projection.weight.T, model.rotation(length))
        outputs.append(module.norm(hidden))
    for got, expected in zip(ahead_of(model, inputs), outputs, strict=True):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        first.projection.weight.zero_()
    assert not torch.allclose(ahead_of(model, inputs)[1], outputs[1]), "the second reads the first"


def test_parallel_heads_read_the_trunk_and_not_each_other() -> None:
    model = build(spec_with("parallel", 2), seed=0)
    inputs = window_of()[:, :-1]
    before = ahead_of(model, inputs)
    trunk, _, _ = model.trunk(inputs)
    for k, module in enumerate(model.objective.layers, start=1):
        hidden, _ = module.block(trunk[:, : T - k], model.rotation(T - k))
        torch.testing.assert_close(before[k - 1], module.norm(hidden))
        assert not hasattr(module, "projection")
    with torch.no_grad():
        model.objective.layers[0].norm.weight.zero_()
    after = ahead_of(model, inputs)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_embedding_and_head_are_the_main_models() -> None:
    model = build(spec_with("sequential", 2), seed=0)
    names = [name for name, p in model.objective.named_parameters() if NANO.model.vocab_size in p.shape]
    assert names == []
    window = window_of()
    prediction = model.predict(window[:, :-1])
    model.objective.loss(prediction.future, window[:, 1:], model.head).backward()
    assert model.head.weight.grad is not None
    assert model.embedding.weight.grad is not None
    assert float(model.layers[0].attention.output.weight.grad.abs().sum()) > 0, "the trunk learns from it"


def test_the_weight_follows_its_schedule() -> None:
    node = MultiToken(mtp_depth=1, mtp_loss_weight=0.3, final_mtp_loss_weight=0.1)
    assert [node.loss_weight(decaying) for decaying in (False, True)] == [0.3, 0.1]
    assert build(spec_with("sequential", 1), seed=0).spec.objective.loss_weight(False) == 0.3
    off = build(spec_of(FULL | {"mtp": "next-token"}).model, seed=0)
    assert off.spec.objective.loss_weight(False) == 0
    assert off.predict(tokens(1, 4)).future.hidden_BTD == []


def test_the_masked_end_reaches_neither_router_nor_loss() -> None:
    model = build(spec_with("sequential", 2), seed=0)
    routing = model.predict(tokens(3, T)).routing
    assert [r.n_tokens_per_sequence for r in routing] == [T, T - 1, T - 2]


def test_the_modules_change_no_logit_of_the_main_head() -> None:
    with_modules = build(spec_with("sequential", 2), seed=0)
    without = build(with_ordinary_products(spec_of(FULL | {"mtp": "next-token"}).model), seed=0)
    window = tokens(2, T)
    assert torch.equal(with_modules(window), without(window))
    assert torch.equal(with_modules.predict(window).hidden_BTD, without.predict(window).hidden_BTD)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("arrangement", ["sequential", "parallel"])
def test_a_short_window_works_as_long_as_something_is_predicted(arrangement: Any, depth: int) -> None:
    model = build(spec_with(arrangement, depth), seed=0)
    window = tokens(1, depth + 2)
    prediction = model.predict(window[:, :-1])
    assert [h.shape[1] for h in prediction.future.hidden_BTD] == [depth + 1 - k for k in range(1, depth + 1)]
    loss = model.objective.loss(prediction.future, window[:, 1:], model.head)
    last = F.cross_entropy(model.head(prediction.future.hidden_BTD[-1][0]), window[0, -1:])
    assert torch.isfinite(loss)
    assert depth > 1 or torch.equal(loss, last)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"mtp_depth": 0}, "mtp_depth is 0"), ({"final_mtp_loss_weight": -1.0}, "final_mtp_loss_weight is -1.0")],
)
def test_impossible_sizes_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(NANO.settings["mtp"], **changed)
