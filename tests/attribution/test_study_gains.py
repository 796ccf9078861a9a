"""A study's components in compute: exact on curves that are known, and consistent with what the runs measured."""

import math

import fake_study as fake
import pytest
from branched_study import lattice_study, loss

from ablate.attribution.study.compare import StudyResult, compare
from ablate.attribution.study.gains import component_gains, decayed_curves, split_cost
from ablate.report import build, to_json
from ablate.report.figures.effects import rows
from ablate.report.markdown import render
from ablate.report.tables.gain import channels, headline, matches
from ablate.runs.plan import read_plan
from ablate.runs.store import Store

OFF = fake.FULL | {"mtp": "next-token"}
WITH_TOKENS, WITHOUT_TOKENS = fake.N_TOKENS, 375_000  # of the fake plan: equal FLOPs
SAVED = 1.1  # times the tokens that the side without needs for the loss of the side with


def record(name: str, seed: int, saved: float):
    levels, tokens = (fake.FULL, WITH_TOKENS) if name == "full" else (OFF, WITHOUT_TOKENS)
    points = [{"step": 300 * share, "n_tokens": tokens * share, "nats_per_token": loss(tokens * share, seed, saved)}
              for share in (0.25, 0.5)]  # fmt: skip
    return fake.record(name, seed, loss(tokens, seed, saved), levels, branches=tuple(points))


def study(tmp_path, saved: float = SAVED, seeds=range(4)) -> StudyResult:
    plan = fake.plan(seeds=list(seeds), variants=[fake.variant("full", fake.FULL, seeds),
                                                  fake.variant("-mtp", OFF, seeds)])  # fmt: skip
    records = [record("full", s, saved) for s in seeds] + [record("-mtp", s, 1.0) for s in seeds]
    folder = fake.write_study(tmp_path / "s", plan, records)
    return compare(read_plan(folder / "plan.json"), list(Store(folder)), [])


def test_the_token_channel_is_the_factor_that_the_curves_have(tmp_path):
    (gain,), why = component_gains(study(tmp_path))
    assert why == ""
    assert gain.tokens.estimate == pytest.approx(math.log(SAVED), abs=1e-9)
    assert gain.tokens.low == pytest.approx(math.log(SAVED), abs=1e-6)


def test_a_comparison_that_lost_a_run_has_no_gain_either(tmp_path):
    whole = study(tmp_path)
    records = [run.record for run in whole.runs]
    lost = compare(whole.plan, fake.changed(records, "full", 1, status="diverged", metrics={}), [])
    assert component_gains(lost) == ((), "none for mtp, whose loss has no interval")


def test_channels_add_up_and_flops_per_token_are_the_closed_form(tmp_path):
    result = study(tmp_path)
    (gain,), _ = component_gains(result)
    assert gain.log_flops_per_token == pytest.approx(math.log(4.8 / 6.0))
    assert gain.flops.estimate == pytest.approx(gain.tokens.estimate + gain.log_flops_per_token)
    assert gain.flops.low == pytest.approx(gain.tokens.low + gain.log_flops_per_token)
    (comparison,) = result.comparisons
    assert gain.seconds.estimate == pytest.approx(
        gain.tokens.estimate + gain.log_flops_per_token + gain.log_flops_per_s
    )
    assert gain.seconds.estimate == pytest.approx(gain.tokens.estimate + comparison.speed.estimate)
    assert gain.seconds.high - gain.seconds.low > gain.tokens.high - gain.tokens.low


def test_at_the_matched_amount_the_difference_is_the_measured_one(tmp_path):
    result = study(tmp_path)
    (gain,), _ = component_gains(result)
    assert gain.matched["flops"] == result.comparisons[0].loss
    tokens = gain.matched["tokens"].estimate
    assert tokens == pytest.approx(loss(WITH_TOKENS, 0, SAVED) - loss(WITH_TOKENS, 0, 1.0), abs=1e-9)
    assert tokens < 0 < gain.matched["flops"].estimate


def test_a_loss_that_one_side_never_reaches_gives_a_bound(tmp_path):
    (gain,), _ = component_gains(study(tmp_path, saved=6.0))
    assert gain.tokens.estimate is None
    assert gain.tokens.bound == "at least"
    assert gain.seconds is None
    assert "at least" in headline([gain], study(tmp_path / "again", saved=6.0))


def test_runs_without_branches_say_why_there_is_no_gain(tmp_path):
    folder = fake.write_study(tmp_path / "s", fake.plan(), fake.records())
    found, why = component_gains(compare(read_plan(folder / "plan.json"), list(Store(folder)), []))
    assert found == ()
    assert "trainer.branches" in why
    content = build(folder)
    assert content.compute.channels.rows == ()
    assert any(note.startswith("No cost in compute is given") for note in content.effect_notes)


def test_a_curve_has_the_branches_and_the_end(tmp_path):
    full = study(tmp_path).variants[0]
    (first, *_) = decayed_curves(full)
    assert first.tokens == (75_000, 150_000, 300_000)
    assert first.loss[-1] == full.finished[0].record.metrics["nats_per_token"]


def test_the_headline_multiplies_what_it_says_it_multiplies(tmp_path):
    result = study(tmp_path)
    gains, _ = component_gains(result)
    said = headline(gains, result)
    assert "mtp: 0.88× (0.88 to 0.88) in training FLOPs, of tokens 1.10× and FLOPs per token 0.80×" in said
    (row,) = channels(gains, result).rows
    assert row[1:4] == ("1.10× (1.10 to 1.10)", "0.80×", "0.88× (0.88 to 0.88)")
    table = matches(gains, result)
    assert table.columns[1].label == "At equal training FLOPs"
    content = build(tmp_path / "s")
    assert said == content.answer[0]
    assert said.replace("_", "\\_") in render(content).replace("\\-", "-")


def test_a_design_splits_the_cost_in_channels_that_add_up(tmp_path):
    folder = lattice_study(tmp_path)
    cost, why = split_cost(compare(read_plan(folder / "plan.json"), list(Store(folder)), []))
    assert why == ""
    mla, mtp = (cost.table.components.index(name) for name in ("mla", "mtp"))
    assert cost.table.gains[mla, 0] == pytest.approx(math.log(1.1), abs=1e-9)
    assert cost.table.gains[mtp, 0] == pytest.approx(math.log(0.8), abs=1e-9)
    assert cost.table.gains[mtp, 1] == pytest.approx(math.log(4.8 / 6.0))
    assert cost.table.gains[mla, 1] == pytest.approx(0, abs=1e-12)
    assert cost.table.total == pytest.approx(cost.table.by_component.sum())
    content = build(folder)
    assert "mla 1.10× (1.10 to 1.10)" in content.answer[0]
    assert content.compute.channels.rows[-1][0] == "all together"
    # The forest of a design has the two other indices beside the one that the verdict was drawn from.
    assert all(set(row.others) == {"first", "last"} for row in rows(content.result))
    assert content.compute.matches.title not in render(content)
    assert to_json(content)["split_cost"]["channels"] == ["tokens", "flops_per_token", "flops_per_s"]


def test_speeds_of_different_kinds_are_never_multiplied(tmp_path):
    content = build(lattice_study(tmp_path, evidence="emulated"))
    assert content.compute.cost.table.gains.shape == (2, 2)
    assert "different kinds of evidence" in content.compute.channels.note


def test_the_document_has_the_logarithms_and_no_infinity(tmp_path):
    study(tmp_path, saved=6.0)
    (gain,) = to_json(build(tmp_path / "s"))["gains"]
    assert gain["tokens"]["bound"] == "at least"
    assert gain["tokens"]["high"] is None
    assert gain["evidence"]["FLOPs per token"] == "exact"
    assert gain["matched"]["flops"]["estimate"] is not None
