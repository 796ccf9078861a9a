"""The closed form of a rank's memory against that of one process, and against what the ranks really hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ablate.bench import step
from ablate.components.variants import Variant, on_ranks
from ablate.model.stage import part, stages
from ablate.model.transformer import Transformer
from ablate.parallel.layout import layers_of, schedule_of
from ablate.presets import preset
from ablate.presets.account import account_preset, render
from ablate.presets.rank_memory import RankMemory, rank_memory
from ablate.presets.training_memory import training_memory
from ablate.spec.ranks import Ranks
from ablate.spec.run import Spec


def spec_on(ranks: Ranks, level: str = "on", **trainer: object) -> Spec:
    base = on_ranks(preset("h200-d1024"), ranks)
    base = replace(base, trainer=replace(base.trainer, micro_batch_size=1, **trainer))  # type: ignore[arg-type]
    levels = {"dualpipe": level} if ranks.pipeline > 1 else {}
    return step.on((Variant.full(base) | levels).resolve(base), "library")


def memory_on(ranks: Ranks, level: str = "on", **trainer: object) -> tuple[RankMemory, ...]:
    spec = spec_on(ranks, level, **trainer)
    return rank_memory(spec.model, spec.trainer)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_one_rank_holds_what_one_process_holds(recompute: str) -> None:
    spec = spec_on(Ranks(), recompute=recompute)
    whole = training_memory(spec.model, spec.trainer)
    assert whole is not None
    (found,) = rank_memory(spec.model, spec.trainer)
    assert found.states == whole.states
    assert found.logits == whole.logits
    assert found.activations == pytest.approx(whole.recomputed if recompute == "full" else whole.activations)
    assert found.live_chunks == 1
    if recompute == "none":
        assert found.copies == pytest.approx(whole.copies, rel=1e-5), "but for the last norm"
    else:
        assert found.copies < whole.copies


@pytest.mark.parametrize("level", ["on", "1f1b", "zbv"])
def test_states_are_those_of_the_parameters_that_a_place_holds(level: str) -> None:
    ranks = Ranks(pipeline=4)
    spec = spec_on(ranks, level)
    schedule, laid = schedule_of(spec.trainer), stages(layers_of(spec.model, spec.trainer))
    for place, found in enumerate(rank_memory(spec.model, spec.trainer)):
        with torch.device("meta"):
            held = Transformer(spec.model, part(laid[s] for s in schedule.stages_of(place)))
        assert found.states == 16 * sum(p.numel() for p in held.parameters())


def test_live_chunks_are_the_schedules() -> None:
    assert [of.live_chunks for of in memory_on(Ranks(pipeline=4), "1f1b")] == [4, 3, 2, 1]
    assert max(of.live_chunks for of in memory_on(Ranks(pipeline=4))) == 5
    assert {of.live_chunks for of in memory_on(Ranks(pipeline=4), "gpipe")} == {64}
    kept, again = memory_on(Ranks(pipeline=4), "gpipe"), memory_on(Ranks(pipeline=4), "gpipe", recompute="full")
    assert all(b.activations < 0.2 * a.activations for a, b in zip(kept, again, strict=True))


def test_states_are_divided_over_those_who_hold_the_same() -> None:
    """8 of 16 bytes a parameter are the optimizer's."""
    (plain,), (shared,) = memory_on(Ranks(data=8)), memory_on(Ranks(data=8), zero_stage=1)
    assert shared.states == pytest.approx(plain.states * (8 + 8 / 8) / 16)
    pipe = memory_on(Ranks(pipeline=4, data=2), zero_stage=1)
    alone = memory_on(Ranks(pipeline=4, data=2))
    assert pipe[1].states == pytest.approx(alone[1].states * (8 + 8 / 4) / 16), "two copies on two data ranks each"
    everyone = Ranks(data=8, expert=8)
    (experts,), (divided,) = memory_on(everyone), memory_on(everyone, zero_stage=1)
    assert experts.states * 9 / 16 < divided.states < experts.states, "an expert has one holder, all else eight"


def test_account_says_what_a_rank_takes() -> None:
    found = account_preset("h200x8-d2048", [], [], {}, None, zero_stage=1)
    assert "training on pipeline=1, data=8, expert=8, node=8 by libraries: at most " in render(found)
    plain = account_preset("h200x8-d2048", [], [], {}, None)
    assert found["rank_memory"]["library"][0]["states"] < plain["rank_memory"]["library"][0]["states"]
    with pytest.raises(ValueError, match="zero_stage is 1, and one process has nobody"):
        account_preset("h200-d1024", [], [], {}, None, zero_stage=1)
