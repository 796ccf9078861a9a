"""The figures' values and the sentence above each, held to what was planted."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import fake_study as fake
import pytest
from branched_study import SAVED, lattice_study
from synthetic_study import planted

from ablate.attribution.study.compare import LOSS
from ablate.attribution.verdicts import GAIN, HARM, NOT_RESOLVED, seeds_needed
from ablate.presets import preset
from ablate.quantities import number
from ablate.report import ReportContent, build, sentences
from ablate.report.captions import captions
from ablate.report.ends import drawn, ends, sides
from ablate.report.figures.effects import rows
from ablate.report.figures.pareto import Point, front
from ablate.report.figures.waterfall import factor_ticks
from ablate.report.interplay import interplay
from ablate.report.names import verdict_said
from ablate.report.noise import detectable
from ablate.report.tables.beside import Ours, loss_findings, published_nats, sign
from ablate.report.waterfall import COST, LATTICE_FILE, LATTICE_RUNS, waterfall, who_can
from ablate.runs.plan import make_plan
from ablate.runs.study import read_study
from ablate.sweep.variants import variants

FLOPS = {"mla": 1.0, "mtp": 4.8 / 6.0}  # FLOPs per token without over with, of the fake plan


@pytest.fixture(scope="module")
def lattice(tmp_path_factory: pytest.TempPathFactory) -> ReportContent:
    return build(lattice_study(tmp_path_factory.mktemp("story")))


def test_the_waterfall_has_the_planted_factors_and_ends_at_the_whole(lattice: ReportContent) -> None:
    found = lattice.waterfall
    assert found is not None
    assert found.unit == COST
    for step in found.steps:
        wanted = -math.log(SAVED[step.name] * FLOPS[step.name])
        assert (step.size, step.first, step.last) == pytest.approx((wanted, wanted, wanted), abs=1e-9)
        assert step.verdict == (GAIN if wanted < 0 else HARM)
    assert [step.before for step in found.steps[1:]] == pytest.approx([found.steps[0].after])
    assert found.total == pytest.approx(-lattice.compute.cost.table.first(2).total)


@pytest.mark.parametrize("saved", [SAVED, {"mla": 0.7, "mtp": 1.9}])
def test_the_sentence_above_the_waterfall_is_what_it_draws(tmp_path: Path, saved: dict[str, float]) -> None:
    content = build(lattice_study(tmp_path, saved=saved))
    said = captions(content)["see"]["waterfall"]
    factors = {name: 1 / (saved[name] * FLOPS[name]) for name in saved}
    assert f"takes {math.prod(factors.values()):.2f}× the training FLOPs" in said
    up, down = max(factors, key=factors.__getitem__), min(factors, key=factors.__getitem__)
    assert f"the largest step up is {up} ({factors[up]:.2f}×)" in said
    assert f"the largest step down is {down} ({factors[down]:.2f}×)" in said


def test_a_step_whose_interval_holds_nothing_is_grey_and_said_to_be() -> None:
    result = planted("lattice").result
    found = waterfall(result, None)
    assert found is not None
    assert found.total == pytest.approx(result.attribution.total.estimate)
    open_ = [name for name, effect in result.attribution.effects.items() if effect.verdict == NOT_RESOLVED]
    assert [step.name for step in found.steps if step.verdict not in (GAIN, HARM)] == open_
    assert all(name in sentences.of_waterfall(found).rpartition("; ")[2] for name in open_)


def test_a_study_without_a_waterfall_names_the_file_that_gives_one_and_its_runs() -> None:
    study = read_study(Path(__file__).parents[2] / LATTICE_FILE)
    study = dataclasses.replace(study, preset="nano")
    base = preset("nano")
    plan, _ = make_plan(study, base, *variants(study, base), corpus_hash="c0ffee", corpus={})
    assert plan.n_runs == LATTICE_RUNS
    result = planted("leave-one-out").result
    assert waterfall(result, None) is None
    assert f"{LATTICE_FILE} does: {LATTICE_RUNS} runs, about 4 min 30 s" in who_can(result)  # 5 s a run


def test_four_points_give_the_interaction_that_the_square_has(lattice: ReportContent) -> None:
    found = interplay(lattice.result)
    assert found is not None
    (four,), (pair,) = found.strongest, found.known
    m = four.means
    assert m[True, True] - m[True, False] - m[False, True] + m[False, False] == pytest.approx(pair.number.estimate)
    losses = {v.name: v.metrics[LOSS].mean for v in lattice.result.variants}
    assert m[True, True] == losses["mla+mtp"]
    assert m[False, False] == losses["none"]
    assert ("None of 1 pair" in sentences.of_interactions(found)) == (not found.resolved)


def test_the_forests_sentence_counts_what_it_draws() -> None:
    result = planted("lattice").result
    shown = rows(result)
    said = sentences.of_forest(shown, result)
    outside = [row for row in shown if row.low > 0 or row.high < 0]
    assert said.startswith(f"The 95 % intervals of {len(outside)} of 6 effects leave out 0; ")
    assert "; the largest gain: dense → moe (" in said
    open_ = [row for row in outside if verdict_said(row.verdict, row.low, row.high, 0.005) == NOT_RESOLVED]
    assert (f"after Holm's correction {len(open_)} of them" in said) == bool(open_)
    assert f"({shown[-1].estimate:+.3f})." in said
    assert shown[0].name == "dense → moe"


def test_sides_of_a_design_are_full_and_full_without_each(lattice: ReportContent) -> None:
    assert sides(lattice.result) == {"mla": ("mla+mtp", "mtp"), "mtp": ("mla+mtp", "mla")}
    assert [v.name for v in ends(lattice.result)] == ["mla+mtp", "none"]
    many = planted("lattice").result
    kept = drawn(many)
    assert len(many.variants) == 48
    assert {"full", "none", "-mtp", "-moe -aux-free"} <= set(kept)
    assert f"{48 - len(kept)} further variants" in sentences.of_cost(many)


def test_nothing_on_the_front_is_beaten_by_one_of_its_own_kind() -> None:
    where = [(1, 3.0), (2, 2.0), (3, 2.5), (4, 1.0), (4, 1.0), (0.5, 9.0)]
    found = [Point(name=f"{i}", seconds=s, loss=x, parameters=1, emulated=i == 5) for i, (s, x) in enumerate(where)]
    assert [p.name for p in front(found)] == ["5", "0", "1", "3", "4"]
    fast = Point(name="dualpipe", seconds=1, loss=6.08389153, parameters=1, emulated=False)
    slow = Point(name="1f1b", seconds=2, loss=6.08389149, parameters=1, emulated=False)
    assert front([slow, fast]) == (fast,), "the order of sums is no better loss"


def test_ticks_hold_one_and_never_crowd() -> None:
    for low, high in ((-0.01, 0.5), (-2.0, 3.0), (-0.6, 0.1)):
        ticks = [math.log(t) for t in factor_ticks(low, high)]
        assert 0.0 in ticks
        assert all(b - a >= (high - low) / 7 - 1e-9 for a, b in itertools.pairwise(ticks))


def test_channels_multiply_to_what_is_said(lattice: ReportContent) -> None:
    row = lattice.factors[-1]
    assert row.name == "all together"
    assert math.exp(row.total) == pytest.approx(
        math.prod(SAVED.values()) * math.prod(FLOPS.values()) * math.exp(row.logs["FLOP/s"])
    )
    said = captions(lattice)["see"]["channels"]
    assert f"{row.said} = 0.88 × 0.80 × {number(math.exp(row.logs['FLOP/s']), 2)}" in said
    llama = lattice.published_factors[-1]
    assert math.exp(llama.total) == pytest.approx(11.58, abs=0.05)  # GPU hours, 30.84 M over 2.664 M


def test_emulated_rates_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    content = build(lattice_study(tmp_path, evidence="emulated"))
    assert "FLOP/s" not in content.factors[-1].logs
    assert "and left out." in captions(content)["see"]["channels"]


def test_a_published_sign_is_compared_only_where_both_have_one() -> None:
    (finding,) = [f for _, f in loss_findings("mla") if f.stated == -0.029]
    ours = Ours(component="mla", off="gqa", estimate=0.07, low=0.05, high=0.09, verdict=HARM)
    assert sign(ours, finding) == "opposite"
    assert sign(dataclasses.replace(ours, estimate=-0.07, verdict=GAIN), finding) == "same"
    assert sign(dataclasses.replace(ours, verdict=NOT_RESOLVED), finding) == "ours is not resolved"
    measured = next(f for _, f in loss_findings("mtp") if f.standard_error is not None)
    assert sign(ours, measured) == "theirs is not told from 0"


def test_only_losses_against_the_same_alternative_stand_in_the_forest(lattice: ReportContent) -> None:
    theirs = published_nats(lattice.result)
    assert theirs["mla"][0] == pytest.approx(-0.029)
    assert len(theirs["mla"]) == len([f for _, f in loss_findings("mla") if not f.against])
    assert any("off is mha there and gqa here" in row[-2] for row in lattice.beside.rows)
    assert all("other scale" in row[-2] for row in lattice.beside.rows)


def test_the_smallest_effect_is_one_that_so_many_pairs_resolve() -> None:
    result = planted("leave-one-out").result
    found = detectable(result)
    assert found is not None
    c = max(result.comparisons, key=lambda c: c.loss.sd)
    for n, size in zip(found.seeds, found.sizes, strict=True):
        needed = seeds_needed(size * (1 + 1e-9), c.loss.sd, margin=c.loss.margin, confidence=c.loss.confidence)
        assert needed == n
    assert found.low[0] < found.sizes[0] < found.high[0]


def test_a_sign_that_is_known_is_said_where_the_size_may_be_negligible() -> None:
    assert verdict_said(NOT_RESOLVED, 0.001, 0.02, 0.005) == "harm, perhaps negligible"
    assert verdict_said(NOT_RESOLVED, -0.02, -0.001, 0.005) == "gain, perhaps negligible"
    assert verdict_said(NOT_RESOLVED, -0.001, 0.02, 0.005) == NOT_RESOLVED
    assert verdict_said(NOT_RESOLVED, 0.006, 0.02, 0.005) == NOT_RESOLVED, "only Holm's correction left it open"
    assert verdict_said(HARM, 0.006, 0.02, 0.005) == HARM


def test_such_a_sign_stands_in_the_answer_and_in_the_table(tmp_path: Path) -> None:
    off = [x + d for x, d in zip(fake.WITH_LOSSES, (0.004, 0.006, 0.009, 0.005, 0.007), strict=True)]
    content = build(fake.write_study(tmp_path / "s", fake.plan(), fake.records(fake.WITH_LOSSES, off)))
    assert content.result.comparisons[0].loss.verdict == NOT_RESOLVED
    assert content.effects.rows[0][1] == "gain, perhaps negligible"
    assert "lowers the held-out loss, perhaps by no more than the margin of 0.005" in content.answer[0]


def test_the_other_sentences_are_what_the_records_hold(tmp_path: Path) -> None:
    content = build(fake.write_study(tmp_path / "s", fake.plan(), fake.records()))
    seen = captions(content)["see"]
    mean, other = sum(fake.WITH_LOSSES) / 5, sum(fake.WITHOUT_LOSSES) / 5
    assert seen["tokens"] == f"full ends at {mean:.3f} nats per token, and the other variant above it."
    assert other > mean
    (gap,) = content.gaps
    kept = len({point.mean > 0 for point in gap.points}) == 1
    said = "had the same sign at every evaluation" if kept else "changed its sign"
    assert seen["gaps"] == f"The difference {said}."
    assert seen["effects"] == "The 95 % interval leaves out 0; a gain: next-token → mtp (−0.041)."
    assert f"standard deviation of {content.result.noise.sd:.4f} nats" in seen["noise"]
    assert "5 paired seeds resolve an effect of" in seen["detectable"]
    assert (
        seen["pareto"] == "No other variant is both faster and lower in loss than full."
    )  # 300 k at 7,576 and 375 k at 8,929
    assert seen["channels"] == seen["waterfall"] == ""
