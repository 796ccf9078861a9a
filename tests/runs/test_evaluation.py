"""The figures of the one evaluation, against sums written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ablate.data.corpus import token_bytes
from ablate.data.tokenizer import END_OF_TEXT_ID
from ablate.data.windows import Windows
from ablate.model.transformer import build
from ablate.presets import preset
from ablate.training.callbacks import Curve
from ablate.training.evaluation import LOGITS_BYTES, HeldOut, batch_windows, evaluate, load_metrics
from ablate.training.module import TrainingModule


def test_loss_and_acceptance_are_those_of_the_main_head(make_job: Callable[..., Any], corpus: Any) -> None:
    spec = make_job("fp8").run.model
    model = build(spec, seed=3)
    with torch.no_grad():
        model.head.weight[6:] = 0  # few greedy choices, so that drafts and choices meet often
    lengths = np.arange(spec.vocab_size)  # all different: counting the bytes of another token shows
    held_out = HeldOut.of(Windows(corpus.held_out, 32), 5, lengths)
    found = evaluate(model, {"held_out": held_out, "other": held_out}, batch_size=2)
    assert model.training
    nats, n_bytes, accepted, drafted = 0.0, 0, 0, 0
    with torch.no_grad():
        for window in held_out.windows_WT1:
            prediction = model.predict(window[None, :-1])
            logp = torch.log_softmax(model.head(prediction.hidden_BTD)[0].double(), -1)
            drafts = model.head(prediction.future.hidden_BTD[0])[0].argmax(-1)
            for position in range(32):
                nats -= float(logp[position, window[position + 1]])
                n_bytes += int(lengths[window[position + 1]])
            for position in range(31):  # drafted at a position: the token that the main head picks one later
                accepted += int(drafts[position] == logp[position + 1].argmax())
                drafted += 1
    assert found["nats_per_token"] == pytest.approx(nats / (5 * 32), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert 0 < accepted < drafted
    assert found["draft_acceptance"] == accepted / drafted
    assert found["other_nats_per_token"] == found["nats_per_token"]
    assert found["nats_per_token"] == pytest.approx(math.log(spec.vocab_size), abs=1.0)


def test_the_loads_that_are_kept_are_those_of_the_figures(make_job: Callable[..., Any], corpus: Any) -> None:
    module = TrainingModule(make_job("fp8").run)
    module.configure_model()
    lengths = token_bytes(corpus)
    sets = {name: HeldOut.of(Windows(corpus.held_out, 32), n, lengths) for name, n in (("held_out", 9), ("other", 5))}
    found = module.evaluate(sets, 2)
    assert module.expert_loads
    assert set(module.expert_loads) <= {name for name, _ in module.model.named_modules()}
    loads = [torch.tensor(counts) for counts in module.expert_loads.values()]
    assert {key: found[key] for key in load_metrics(loads)} == load_metrics(loads)
    assert found["other_max_violation"] != found["max_violation"]


def test_held_out_windows_are_spread_over_every_document(corpus: Any) -> None:
    windows = Windows(corpus.held_out, 32)
    stream = corpus.held_out.read()
    held_out = HeldOut.of(windows, 40, token_bytes(corpus))
    starts = [int(np.flatnonzero((windows[:] == w.numpy()).all(1))[0]) for w in held_out.windows_WT1]
    gaps = np.diff(starts)
    assert len(windows) // 40 <= gaps.min() <= gaps.max() <= len(windows) // 40 + 1
    assert starts[0] < gaps.max()
    assert len(windows) - starts[-1] <= gaps.max()
    for row, start in enumerate(starts):  # the document of a target: how many ended before it
        for column in range(32):
            before = stream[: start * 32 + 1 + column]
            assert held_out.documents_WT[row, column] == (before == END_OF_TEXT_ID).sum()
    assert held_out.judged() == {"windows": 40, "documents": len(set(held_out.documents_WT.flatten().tolist()))}
    everything = HeldOut.of(windows, 10**9, token_bytes(corpus))
    assert everything.judged() == {"windows": len(windows), "documents": corpus.held_out_documents}


def test_points_before_the_end_are_judged_on_an_even_part_of_the_windows(
    make_job: Callable[..., Any], corpus: Any
) -> None:
    run = make_job(n_steps=12, n_held_out_windows=40, n_curve_windows=8).run
    held_out = HeldOut.of(Windows(corpus.held_out, 32), 40, token_bytes(corpus))
    curve = Curve(run, {"held_out": held_out})
    judged = {}

    def note(sets: Any, batch_size: int) -> dict[str, float]:
        judged[step] = sets["held_out"].windows_WT1
        assert batch_size == batch_windows(run)
        return {"nats_per_token": 1.0}

    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext), logger=None)
    for step in sorted(curve.steps):
        curve.add_point(trainer, SimpleNamespace(evaluate=note), step)
    assert [len(windows) for windows in judged.values()] == [8, 8, 8, 40]
    assert torch.equal(judged[3], held_out.windows_WT1[2::5])


@pytest.mark.parametrize("name", ["nano", "cpu"])
def test_a_run_judges_no_more_windows_than_when_every_point_had_as_many(name: str) -> None:
    before = {"nano": 16, "cpu": 128}[name]
    trainer = preset(name).trainer
    now = trainer.n_held_out_windows + (trainer.n_evaluations - 1) * trainer.n_curve_windows
    assert now <= before * trainer.n_evaluations


def test_larger_batches_change_no_figure_beyond_rounding(make_job: Callable[..., Any], corpus: Any) -> None:
    run = make_job().run
    model = build(run.model, seed=3)
    held_out = {"held_out": HeldOut.of(Windows(corpus.held_out, 32), 40, token_bytes(corpus))}
    assert batch_windows(run) == 32
    one, many = (evaluate(model, held_out, batch_size=size) for size in (1, batch_windows(run)))
    assert many == pytest.approx(one, rel=1e-6)


def test_the_batch_is_bounded_by_its_logits(make_job: Callable[..., Any]) -> None:
    run = make_job().run
    wide = replace(run, model=replace(run.model, vocab_size=LOGITS_BYTES // (4 * 32 * 10)))
    assert batch_windows(wide) == 10
    huge = replace(run, model=replace(run.model, vocab_size=LOGITS_BYTES))
    assert batch_windows(huge) == run.trainer.micro_batch_size


def test_load_metrics_of_known_loads() -> None:
    even = torch.tensor([5, 5, 5, 5])
    assert load_metrics([even]) == {"max_violation": 0.0, "load_entropy": pytest.approx(1.0), "dead_experts": 0.0}
    one = torch.tensor([20, 0, 0, 0])
    assert load_metrics([one]) == {"max_violation": 3.0, "load_entropy": pytest.approx(0.0), "dead_experts": 3.0}
    both = load_metrics([even, one])
    assert (both["max_violation"], both["dead_experts"]) == (1.5, 3.0)
    assert load_metrics([]) == {}
