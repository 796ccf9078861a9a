"""What a step asks of a device: what each mended habit saves, and what a residual stream in bfloat16 is."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from ablate.bench import step
from ablate.bench.traffic import counted
from ablate.components.variants import Variant
from ablate.model.loss import training_loss
from ablate.model.transformer import Transformer
from ablate.presets import preset_with
from ablate.spec.decoding import encode
from ablate.spec.machine import Machine
from ablate.spec.ranks import Ranks
from ablate.spec.run import Spec

SMALL = {"model.n_layers": 2, "trainer.sequence_length": 32, "trainer.micro_batch_size": 2, "trainer.batch_size": 4}


@cache
def spec(residual: str = "", backend: str = "library") -> Spec:
    """All of nano but FP8, in bfloat16."""
    base = preset_with("nano", SMALL | ({"model.residual_dtype": residual} if residual else {}))
    found = step.on(Variant.full(base).without(["fp8", "distill"]).resolve(base), "library")
    found = step.on(found, backend)
    return replace(found, trainer=replace(found.trainer, dtype="bfloat16"))


def test_weights_converted_once_a_step_move_less() -> None:
    once, each = (
        counted(spec(), n_micro_batches=2, fake=False, once_a_step=once_a_step) for once_a_step in (True, False)
    )
    assert once.operators["mm"] == each.operators["mm"]
    assert once.operators["_to_copy"] < each.operators["_to_copy"]
    assert once.bytes["_to_copy"] < each.bytes["_to_copy"]


def test_a_residual_stream_in_bfloat16_moves_less_by_kernels() -> None:
    """By libraries it does not: their norm converts what it reads."""
    narrow, wide = (counted(spec(residual, "triton"), n_micro_batches=1) for residual in ("bfloat16", "float32"))
    assert narrow.operators["mm"] == wide.operators["mm"]
    assert narrow.n_bytes < wide.n_bytes
    assert narrow.bytes["rms_norm"] < 0.8 * wide.bytes["rms_norm"]


def test_it_is_the_stream_and_nothing_else_that_is_narrow() -> None:
    losses, streams = [], []
    for residual in ("float32", "bfloat16"):
        found = spec(residual)
        torch.manual_seed(0)
        model = Transformer(found.model)
        step.fill(model, found.model)
        seen: list[torch.dtype] = []
        for layer in model.layers:
            layer.register_forward_hook(lambda _, given, made, seen=seen: seen.extend([given[0].dtype, made[0].dtype]))
        window = step.windows(found.model.vocab_size, 2, 32, torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16):
            loss = training_loss(model, found.data.text, {"window_BT1": window}, decaying=False).total
        loss.backward()
        losses.append(float(loss.detach()))
        streams.append(set(seen))
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert streams == [{torch.float32}, {torch.bfloat16}]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[1] != losses[0]


def test_runs_that_do_not_ask_for_it_keep_their_names() -> None:
    assert "residual_dtype" not in encode(spec().model)
    assert spec("float32").model == spec().model
    assert encode(spec("bfloat16").model)["residual_dtype"] == "bfloat16"


def test_where_it_cannot_be_it_is_refused() -> None:
    narrow, machine = spec("bfloat16"), Machine(kind="cpu")
    assert narrow.for_machine(machine).model.residual_dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"model\.residual_dtype is bfloat16 and trainer\.dtype float32"):
        replace(narrow, trainer=replace(narrow.trainer, dtype="float32")).for_machine(machine)
    assert narrow.model.portable().residual_dtype == "float32"
    on_ranks = replace(narrow, trainer=replace(narrow.trainer, ranks=Ranks(pipeline=2)))
    with pytest.raises(ValueError, match="there are 2 pipeline ranks, which hand on float32"):
        on_ranks.run(corpus_hash="", seed=0, n_steps=4)
    with pytest.raises(
        ValueError, match=r"model\.residual is unknown; did you mean 'model.residual_dtype'|residual_dtype"
    ):
        preset_with("nano", {"model.residual": "bfloat16"})
