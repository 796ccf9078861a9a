"""The closed form of training memory against what autograd really keeps, and presets against the device they name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from ablate.bench import step
from ablate.components.mla.attention import ATTENTION, attention
from ablate.components.variants import Variant
from ablate.model import step_weights
from ablate.model.loss import training_loss
from ablate.model.transformer import Transformer
from ablate.presets import preset, preset_with
from ablate.presets.account import account_preset
from ablate.presets.training_memory import RESERVE, TrainingMemory, training_memory
from ablate.runs.study import Study
from ablate.spec.decoding import encode
from ablate.spec.run import Spec

LENGTH, BATCH = 64, 2
H200_BYTES = 141e9
SIZES = {"model.dim": 64, "model.hidden_dim": 128, "moe.expert_hidden_dim": 32, "trainer.sequence_length": LENGTH}


class Norm(torch.autograd.Function):
    """Keeps what CUDA's fused norm keeps, where a processor's is put together of several operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return x * scale * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, _ = ctx.saved_tensors
        return torch.zeros_like(x), torch.zeros_like(weight), None


class Attend(torch.autograd.Function):
    """Keeps what flash attention keeps: operands as they are, the result, and a number a row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).contiguous().transpose(1, 2)
        ctx.save_for_backward(q, k, v, y, q.new_zeros(q.shape[:3], dtype=torch.float32))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(x) for x in ctx.saved_tensors[:3])


def kept_bytes(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of all storages that a forward pass keeps, beside the weights, their copies and the rotary table."""
    monkeypatch.setattr(F, "rms_norm", lambda x, shape, weight, eps: Norm.apply(x, weight, eps))
    monkeypatch.setitem(ATTENTION, "library", lambda q, k, v, **_: Attend.apply(q, k, v))
    model = Transformer(spec.model)
    step.fill(model, spec.model)
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    step_weights.begin_step()
    try:
        with saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
            window = step.windows(spec.model.vocab_size, BATCH, LENGTH, torch.device("cpu"))
            training_loss(model, spec.data.text, {"window_BT1": window}, decaying=False)
        copies = list((step_weights._Open.copies or {}).values())
    finally:
        step_weights.end_step()
    table = model.rotation(LENGTH)
    others = [*model.parameters(), *model.buffers(), *copies, table.cos_TP, table.sin_TP]
    for tensor in others:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def of_variant(variant: Variant, base: Any, backend: str) -> Spec:
    spec = step.on(variant.resolve(base), backend)
    return replace(spec, trainer=replace(spec.trainer, dtype="bfloat16", batch_size=BATCH, micro_batch_size=BATCH))


@pytest.mark.parametrize("name", ["none", "mla", "moe", "full"])
def test_activations_are_what_autograd_keeps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = preset_with("nano", SIZES)
    full = Variant.full(base).without(["fp8", "distill"])
    none = Variant.none()
    variant = {"none": none, "mla": none | {"mla": "on"}, "moe": none | {"moe": "on"}, "full": full}[name]
    spec = of_variant(variant, base, "library")
    found = training_memory(spec.model, spec.trainer)
    assert found is not None
    heads = 2 if name == "full" else 1
    expected = found.activations + heads * 4 * BATCH * LENGTH * spec.model.vocab_size
    assert kept_bytes(spec, monkeypatch) == pytest.approx(expected, rel=0.04)


def memory_of(name: str, backend: str, variant: Variant | None = None) -> TrainingMemory:
    base = preset(name)
    spec = step.on((variant or Variant.full(base)).resolve(base), backend)
    found = training_memory(spec.model, spec.trainer)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["h200-d512", "h200-d768", "h200-d1024", "h200-d2048"])
@pytest.mark.parametrize("backend", ["library", "triton"])
def test_a_preset_fits_the_device_that_its_name_says(name: str, backend: str) -> None:
    base = preset(name)
    variants = [Variant.full(base), Variant.full(base).without(["fp8"]), Variant.none()]
    for variant in variants:
        found = memory_of(name, backend, variant)
        assert found.fits(H200_BYTES), (name, backend, variant.levels, found)


def test_kernels_and_recomputation_keep_less() -> None:
    libraries, kernels = (memory_of("h200-d1024", backend) for backend in ("library", "triton"))
    assert kernels.activations < libraries.activations
    assert kernels.logits < libraries.logits
    assert libraries.recomputed < 0.25 * libraries.activations
    assert libraries.states == kernels.states


def test_the_trainers_recompute_says_which_of_the_totals_is_needed() -> None:
    base = preset("h200-d1024")
    spec = Variant.full(base).resolve(base)
    found = [training_memory(spec.model, replace(spec.trainer, recompute=r)) for r in ("none", "full")]
    kept, again = (memory for memory in found if memory is not None)
    assert (kept.peak, again.peak) == (kept.total, kept.total_recomputed)
    between = (kept.total + kept.total_recomputed) / 2
    assert again.fits(between / (1 - RESERVE))
    assert not kept.fits(between / (1 - RESERVE))


def test_recomputation_is_a_field_of_a_preset_a_study_and_a_factor_and_old_runs_keep_their_names() -> None:
    base = preset("nano")
    spec = Variant.full(base).resolve(base)
    assert "recompute" not in encode(spec.trainer)
    assert encode(replace(spec.trainer, recompute="full"))["recompute"] == "full"
    assert preset_with("nano", {"trainer.recompute": "full"}).trainer.recompute == "full"
    study = Study(question="", preset="nano", trainer={"recompute": "full"})
    assert study.load_preset().trainer.recompute == "full"
    assert Study(question="", preset="nano").load_preset({"trainer.recompute": "full"}).trainer.recompute == "full"
    with pytest.raises(ValueError, match=r"trainer.recompute is 'some'"):
        preset_with("nano", {"trainer.recompute": "some"})
    again = account_preset("h200-d512", [], [], {}, None, recompute="full")
    assert again["training_memory"]["library"]["peak"] == again["training_memory"]["library"]["total_recomputed"]
    plain = account_preset("h200-d512", [], [], {}, None)
    assert again["training_flops_per_token"] == plain["training_flops_per_token"], "FLOPs made twice count once"
