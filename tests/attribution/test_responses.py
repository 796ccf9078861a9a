"""Planted responses, interactions and trends are found again, and what lacks a run has no interval."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from factor_study import noise, result, study

from ablate.attribution.study.ladder import AtSize, ladders
from ablate.attribution.study.primary import primary
from ablate.attribution.verdicts import HARM, NOT_RESOLVED
from ablate.report.tables.ladder import study_ladders
from ablate.runs.plan import PlannedVariant

EXPERTS = {"moe.n_routed_experts": [8, 16, 32, 64]}


def log_loss(v: PlannedVariant, seed: int) -> float:
    """A straight line of -0.01 per doubling, with a level of its own for each seed."""
    return 3.0 + 0.05 * seed - 0.01 * math.log2(int(v.levels["moe.n_routed_experts"]) / 8)


def test_a_planted_slope_is_found_within_seeds() -> None:
    jitter = noise()
    found = result(study(preset="nano", factors=EXPERTS), lambda v, s: log_loss(v, s) + jitter())
    (response,) = found.responses
    assert response.trend is not None
    assert response.trend.per == "doubling"
    assert response.trend.slope.low < -0.01 < response.trend.slope.high
    # The spread of the seeds' own levels, 0.06, is twenty times the width of this interval.
    assert response.trend.slope.high - response.trend.slope.low < 0.008
    assert response.trend.bend.low < 0 < response.trend.bend.high
    last = response.levels[-1].difference
    assert last.low < -0.03 < last.high
    assert last.family == 3
    # The comparison with the reference is the same number with the same sign.
    assert found.comparisons[-1].loss.estimate == pytest.approx(last.estimate)
    assert found.comparisons[-1].name == "moe.n_routed_experts=64"


def test_a_lost_run_refuses_what_needs_it_and_nothing_else() -> None:
    found = result(study(preset="nano", factors=EXPERTS), log_loss, lost=("moe.n_routed_experts=16", 1))
    (response,) = found.responses
    assert response.trend is None
    assert "lost" in response.trend_reason
    refused, whole = response.levels[1].difference, response.levels[2].difference
    assert refused.low is None
    assert whole.low is not None


def test_levels_without_order_have_no_trend() -> None:
    found = result(
        study(preset="nano", factors={"alternative.aux-free": ["on", "batch-aux", "none"]}),
        lambda v, s: 3.0 + 0.05 * s + 0.1 * (v.levels["aux-free"] == "none"),
    )
    (response,) = found.responses
    assert response.trend is None
    assert [c.loss.estimate for c in found.comparisons] == pytest.approx([0.0, 0.1])
    assert found.comparisons[1].loss.verdict == HARM
    assert found.comparisons[1].name == "aux-free=none"


def test_the_mean_over_another_factor_is_a_main_effect() -> None:
    def loss(v: PlannedVariant, seed: int) -> float:
        wide = v.levels["model.rope_theta"] == "500000.0"
        return log_loss(v, seed) + 0.2 * wide

    found = result(study(preset="nano", factors=EXPERTS | {"model.rope_theta": [1e4, 5e5]}), loss)
    experts, theta = found.responses
    assert experts.over == ("model.rope_theta",)
    assert experts.levels[1].difference.estimate == pytest.approx(-0.01)
    assert theta.levels[1].difference.estimate == pytest.approx(0.2)


def test_factors_of_two_levels_are_attributed() -> None:
    def loss(v: PlannedVariant, seed: int) -> float:
        a, b = "trainer.warmup_share" in v.upper, "model.rope_theta" in v.upper
        return 3.0 + 0.01 * seed + 0.1 * a + 0.02 * b + 0.04 * (a and b)

    asked = study(preset="nano", factors={"trainer.warmup_share": [0.05, 0.1], "model.rope_theta": [1e4, 5e5]})
    found = result(asked, loss).attribution
    assert found is not None
    owen = {name: effect.indices["owen"].estimate for name, effect in found.effects.items()}
    assert owen == pytest.approx({"trainer.warmup_share": 0.12, "model.rope_theta": 0.04})
    assert found.total.estimate == pytest.approx(0.16)


def test_a_factor_among_the_components_of_a_lattice() -> None:
    def loss(v: PlannedVariant, seed: int) -> float:
        return 3.0 + 0.03 * seed + 0.1 * ("model.rope_theta" in v.upper) - 0.05 * (v.levels["mtp"] == "on")

    asked = study(preset="nano", design="lattice", disable=("mtp", "fp8"), factors={"model.rope_theta": [1e4, 5e5]})
    found = result(asked, loss).attribution
    owen = {name: effect.indices["owen"].estimate for name, effect in found.effects.items()}
    assert owen == pytest.approx({"mtp": -0.05, "fp8": 0.0, "model.rope_theta": 0.1}, abs=1e-9)


def test_an_effect_that_changes_along_a_factor() -> None:
    def loss(v: PlannedVariant, seed: int) -> float:
        level = math.log2(int(v.levels["moe.n_routed_experts"]) / 8)
        return log_loss(v, seed) + (0.1 + 0.02 * level) * (v.levels["mtp"] == "on")

    found = result(study(preset="nano", disable=("mtp",), factors=EXPERTS), loss)
    of_mtp = next(r for r in found.responses if r.of == "mtp")
    assert [level.mean.estimate for level in of_mtp.levels] == pytest.approx([0.1, 0.12, 0.14, 0.16])
    assert of_mtp.trend.slope.estimate == pytest.approx(0.02)
    assert [e.cell.label for e in found.cells.effects] == [f"moe.n_routed_experts={n}" for n in (8, 16, 32, 64)]
    assert found.comparisons[0].name == "mtp at moe.n_routed_experts=8"
    assert found.comparisons[0].loss.family == 4


def test_each_cell_of_a_crossed_lattice_is_attributed_by_itself() -> None:
    def loss(v: PlannedVariant, seed: int) -> float:
        level = math.log2(int(v.levels["moe.n_routed_experts"]) / 8)
        return 3.0 + 0.01 * seed + level * 0.1 * (v.levels["mtp"] == "on")

    asked = study(
        preset="nano", design="lattice", disable=("mtp", "fp8"), factors={"moe.n_routed_experts": [8, 16, 32]}
    )
    found = result(asked, loss)
    assert found.attribution is None
    assert "more than two levels" in found.attribution_reason
    mtp = [e.number.estimate for e in found.cells.effects if e.component == "mtp"]
    assert mtp == pytest.approx([0.0, 0.1, 0.2], abs=1e-9)


def test_sizes_of_a_ladder_break_no_pairs_and_are_compared_in_bits_per_byte() -> None:
    asked = study(disable=("mtp",), factors={"preset": ["nano", "cpu"]})

    def loss(v: PlannedVariant, seed: int) -> float:
        return 3.0 + 0.01 * seed + 0.2 * (v.levels["mtp"] == "on") + jitter()

    jitter = noise(1e-6)
    found = result(asked, loss, corpora={"cpu": "beef"})
    assert not found.pairing_breaks
    assert all(c.pairing_ok for c in found.comparisons)
    assert found.cells.unit == "bits per byte"
    assert [e.number.estimate for e in found.cells.effects] == pytest.approx([0.1, 0.1], abs=1e-5)
    assert not found.responses
    (ladder,) = study_ladders(found, ())
    assert ladder.trend is None
    assert "3 different sizes" in ladder.reason


def test_a_trend_with_size_ends_where_claims_do() -> None:
    sizes = [
        AtSize(component="mtp", at="", size=str(i), flops=10.0 ** (15 + i), estimate=0.1 - 0.02 * i,
               low=0.095 - 0.02 * i, high=0.105 - 0.02 * i)
        for i in range(4)
    ]  # fmt: skip
    (found,) = ladders(sizes, "nats per token", 0.95)
    assert found.trend.slope == pytest.approx(-0.02)
    assert found.prediction.flops == pytest.approx(10**18.5)
    assert found.prediction.low < 0.03 < found.prediction.high
    (short,) = ladders([replace(sizes[0], low=None), *sizes[1:3]], "nats per token", 0.95)
    assert short.trend is None
    assert "1 of 3 sizes have no interval" in short.reason


def test_the_primary_metric_has_its_own_margin_and_direction() -> None:
    asked = study(preset="nano", disable=("mtp",), primary_metric="max_violation", margin=0.001)
    found = primary(result(asked, lambda v, s: 3.0 + 0.01 * s), ())
    ((_, effect),) = found.effects
    assert effect.margin == 0.001
    assert effect.estimate == pytest.approx(0.0)
    speed = primary(result(replace(asked, primary_metric="tokens_per_s"), lambda v, s: 3.0 + 0.01 * s), ())
    ((_, effect),) = speed.effects
    assert effect.margin == pytest.approx(math.log1p(0.001))
    compute = primary(result(replace(asked, primary_metric="compute"), lambda v, s: 3.0 + 0.01 * s), ())
    ((_, effect),) = compute.effects
    assert (effect.verdict, effect.estimate) == (NOT_RESOLVED, None)
    assert effect.reason
