"""The one training loss: what it passes on, and what the trainer gives it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from variants import FULL, NANO, on_torch, spec_of, tokens

from ablate.model.loss import training_loss
from ablate.model.transformer import Transformer, build
from ablate.training.module import TrainingModule

WINDOW = {"window_BT1": tokens(4, 17)}


def loss_of(model: Transformer, **options: Any) -> float:
    return float(training_loss(model, NANO.data.text, WINDOW, **({"decaying": False} | options)).total.detach())


def test_the_objectives_weight_follows_the_schedule() -> None:
    model = build(spec_of(FULL).model, seed=0)
    start, end, main = loss_of(model), loss_of(model, decaying=True), loss_of(without_objective(model))
    # 0.3 of the objective's loss until the switch, 0.1 behind it; its layer's balance term, 1e-4, stays.
    assert (start - main) / (end - main) == pytest.approx(3.0, rel=1e-3)


def without_objective(model: Transformer) -> Transformer:
    off = build(spec_of(FULL | {"mtp": "next-token"}).model, seed=0)
    off.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("objective.")})
    return off


def test_a_loss_over_the_whole_batch_sees_the_earlier_micro_batches() -> None:
    model = build(spec_of(FULL | {"aux-free": "batch-aux"}).model, seed=0)
    routing = training_loss(model, NANO.data.text, WINDOW, decaying=False).routing
    skewed: dict[Any, Tensor] = {each.router: 1000 * each.counts_BE.sum(0).sort().values for each in routing}
    assert loss_of(model) != loss_of(model, earlier_loads=skewed)


def test_masked_targets_are_the_main_heads_alone() -> None:
    model, window_BT1 = build(spec_of(FULL).model, seed=0), WINDOW["window_BT1"]
    some = window_BT1[:, 1:].masked_fill(torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) < 0.5, -100)
    found = [training_loss(model, NANO.data.text, WINDOW, decaying=False, targets_BT=t) for t in (None, some)]
    rest = [float((each.total - each.main).detach()) for each in found]
    assert rest[0] == pytest.approx(rest[1], abs=1e-6)
    assert found[0].main != found[1].main


def test_the_trainer_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(FULL)
    run = replace(spec, model=on_torch(spec.model)).run(corpus_hash="", seed=0, n_steps=100)
    module = TrainingModule(run)
    module.configure_model()
    losses = []
    for step in (0, 90):
        monkeypatch.setattr(TrainingModule, "global_step", step)
        losses.append(float(module.training_step(dict(WINDOW), 0).detach()))
    assert losses == [loss_of(module.model), loss_of(module.model, decaying=True)]
