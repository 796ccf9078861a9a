"""Work of a rank against the closed forms of the specification, and the published identities of V3's step."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate.cluster.simulate import model_flops
from ablate.cluster.work import Share, model_of, model_of_architecture, total
from ablate.components.variants import Variant
from ablate.presets import preset
from ablate.presets.account import account_model, model_file
from ablate.presets.architecture import Architecture

PRESETS = ("nano", "cpu", "h200-d1024", "v2-lite-16b", "v2-236b", "v3-671b", "llama3-8b", "llama3-405b")
OFF = {"mla": "mha", "moe": "coarse", "mtp": "parallel-heads"}


def whole(spec, tokens: int, *, tensor: int = 1, expert: int = 1):  # type: ignore[no-untyped-def]
    model = model_of(spec)
    share = Share(tokens=tokens, sequence_length=tokens, tensor=tensor, expert=expert, low_precision=False)
    return total([*(model.layer(i, share) for i in range(len(model.layers))), model.end(share)])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("without", [(), ("mla",), ("moe",), ("mtp",)])
def test_flops_and_parameters_are_the_specifications(name: str, without: tuple[str, ...]) -> None:
    base = preset(name)
    without = tuple(each for each in without if each in base.recipe)
    spec = Variant.full(base).without(without, {w: OFF[w] for w in without}).resolve(base).model
    tokens = base.trainer.sequence_length
    work, cost = whole(spec, tokens), spec.cost(tokens)
    flops = sum(p.flops for p in work.products) + sum(a.flops for a in work.attention)
    assert flops == pytest.approx(cost.training_flops_per_token / 3 * tokens, rel=1e-6)
    embedding = spec.vocab_size * spec.dim
    parameters = work.shared_parameters + work.expert_parameters + embedding
    assert parameters == pytest.approx(cost.trained_parameters, rel=1e-9)


def test_tensor_and_expert_ranks_share_the_work() -> None:
    spec = Variant.full(preset("v3-671b")).resolve(preset("v3-671b")).model
    one, shared = whole(spec, 4096), whole(spec, 4096, tensor=2, expert=64)
    ratio = sum(p.flops for p in shared.products) / sum(p.flops for p in one.products)
    assert 0.5 < ratio < 0.56  # the latents' projections are on both
    assert shared.expert_parameters == one.expert_parameters // 64


def test_published_architectures_are_walked_too() -> None:
    made, length = model_file(Path("qwen3-30b-a3b"), None)
    assert isinstance(made, Architecture)
    share = Share(tokens=length, sequence_length=length, tensor=1, expert=1, low_precision=False)
    model = model_of_architecture(made)
    work = total([*(model.layer(i, share) for i in range(len(model.layers))), model.end(share)])
    flops = sum(p.flops for p in work.products) + sum(a.flops for a in work.attention)
    counted = account_model(Path("qwen3-30b-a3b"), None)["training_flops_per_token"]
    assert flops == pytest.approx(counted / 3 * length, rel=1e-3)
    with pytest.raises(ValueError, match="sliding window"):
        model_of_architecture(model_file(Path("gemma3-4b"), None)[0])  # type: ignore[arg-type]


def test_the_published_step_gives_the_published_mfu() -> None:
    """arXiv:2505.09343, table 4: 432 and 385 TFLOP/s, 43.73 and 38.94 % of 989, from a step of 19.926 s."""
    base = preset("v3-671b")
    cost = Variant.full(base).resolve(base).model.cost(4096)
    causal, noncausal = model_flops(cost)
    per_gpu = 15360 * 4096 / 19.926 / 2048
    assert noncausal * per_gpu / 1e12 == pytest.approx(432, rel=1.2e-3)
    assert causal * per_gpu / 1e12 == pytest.approx(385, rel=1e-3)
    assert noncausal * per_gpu / 989e12 == pytest.approx(0.4373, rel=1e-3)
    assert causal * per_gpu / 989e12 == pytest.approx(0.3894, rel=1e-3)
