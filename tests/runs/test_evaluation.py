"""The figures of the one evaluation, against sums written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ablate.data.corpus import token_bytes
from ablate.data.windows import Windows
from ablate.model.transformer import build
from ablate.training.evaluation import HeldOut, evaluate, load_metrics


def test_loss_and_acceptance_are_those_of_the_main_head(make_job: Callable[..., Any], corpus: Any) -> None:
    spec = make_job("fp8").run.model
    model = build(spec, seed=3)
    with torch.no_grad():
        model.head.weight[6:] = 0  # few greedy choices, so that drafts and choices meet often
    lengths = np.arange(spec.vocab_size)  # all different: counting the bytes of another token shows
    held_out = HeldOut.first(Windows(corpus.held_out, 32), 5, lengths)
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


def test_held_out_windows_are_the_first_and_do_not_overlap(corpus: Any) -> None:
    windows = Windows(corpus.held_out, 32)
    held_out = HeldOut.first(windows, 4, token_bytes(corpus))
    stream = np.concatenate([held_out.windows_WT1[:, :-1].flatten().numpy(), held_out.windows_WT1[-1, -1:].numpy()])
    assert np.array_equal(stream, corpus.held_out.read()[: 4 * 32 + 1])
    assert len(HeldOut.first(windows, 10**9, token_bytes(corpus)).windows_WT1) == len(windows)


def test_load_metrics_of_known_loads() -> None:
    even = torch.tensor([5, 5, 5, 5])
    assert load_metrics([even]) == {"max_violation": 0.0, "load_entropy": pytest.approx(1.0), "dead_experts": 0.0}
    one = torch.tensor([20, 0, 0, 0])
    assert load_metrics([one]) == {"max_violation": 3.0, "load_entropy": pytest.approx(0.0), "dead_experts": 3.0}
    both = load_metrics([even, one])
    assert (both["max_violation"], both["dead_experts"]) == (1.5, 3.0)
    assert load_metrics([]) == {}
