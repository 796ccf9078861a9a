"""A study's plan and records as comparisons: the textbook interval, its direction, and every way to refuse one."""

import dataclasses
import math

import fake_study as fake
import pytest
from scipy import stats

from ablate.attribution.study.compare import LOSS, compare
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT, NOT_RESOLVED
from ablate.runs.plan import decode_plan


def only(plan=None, records=None, failures=()):
    result = compare(decode_plan(plan or fake.plan()), fake.records() if records is None else records, list(failures))
    (comparison,) = result.comparisons
    return result, comparison


def test_the_effect_is_the_textbook_paired_interval():
    _, c = only()
    expected = stats.ttest_rel(fake.WITH_LOSSES, fake.WITHOUT_LOSSES)
    interval = expected.confidence_interval(0.95)
    mean = sum(a - b for a, b in zip(fake.WITH_LOSSES, fake.WITHOUT_LOSSES, strict=True)) / 5
    assert c.loss.estimate == pytest.approx(mean, rel=1e-12)
    assert (c.loss.low, c.loss.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert c.loss.n == 5
    assert c.loss.verdict == GAIN
    assert c.differences[3] == pytest.approx(3.1990 - 3.2361)


def test_a_component_whose_absence_raises_the_loss_is_a_gain_and_the_reverse_is_a_harm():
    _, c = only(records=fake.records(fake.WITH_LOSSES, fake.WITHOUT_LOSSES))
    assert (c.with_variant, c.without_variant, c.loss.verdict) == ("full", "-mtp", GAIN)
    assert c.loss.high < 0
    _, c = only(records=fake.records(fake.WITHOUT_LOSSES, fake.WITH_LOSSES))
    assert c.loss.verdict == HARM
    assert c.loss.low > 0


def test_a_reference_without_the_component_is_the_side_without():
    none = dict.fromkeys(fake.FULL, "off") | {"mtp": "next-token"}
    added = none | {"mtp": "on"}
    variants = [fake.variant("none", none, range(5)), fake.variant("+mtp", added, range(5))]
    records = [fake.record("none", s, x, none) for s, x in enumerate(fake.WITHOUT_LOSSES)]
    records += [fake.record("+mtp", s, x, added) for s, x in enumerate(fake.WITH_LOSSES)]
    _, c = only(fake.plan(variants), records)
    assert (c.variant, c.with_variant, c.without_variant, c.loss.verdict) == ("+mtp", "+mtp", "none", GAIN)


def test_a_designed_study_is_split_among_its_components():
    names = {"full": ("mla", "mtp"), "-mtp": ("mla",), "-mla": ("mtp",), "none": ()}
    off = fake.FULL | {"mla": "gqa", "mtp": "next-token"}
    levels = {name: off | dict.fromkeys(on, "on") for name, on in names.items()}
    truth = {"full": -0.5, "-mtp": -0.2, "-mla": -0.1, "none": 0.0}  # mla -.2, mtp -.1, together -.2 more
    variants = [fake.variant(name, level, range(3)) for name, level in levels.items()]
    noise = {("full", 0): 0.01, ("none", 1): -0.02}
    records = [
        fake.record(name, seed, 3 + seed + truth[name] + noise.get((name, seed), 0.0), level)
        for name, level in levels.items()
        for seed in range(3)
    ]
    found = compare(decode_plan(fake.plan(variants, design="lattice", seeds=[0, 1, 2])), records, [])
    assert found.comparisons == ()
    attribution = found.attribution
    assert attribution is not None
    assert set(attribution.effects) == {"mla", "mtp"}
    mean = {name: truth[name] + sum(noise.get((name, seed), 0.0) for seed in range(3)) / 3 for name in truth}
    mtp = attribution.effects["mtp"].indices
    assert mtp["first"].estimate == pytest.approx(mean["-mla"] - mean["none"])
    assert mtp["last"].estimate == pytest.approx(mean["full"] - mean["-mtp"])
    assert mtp["owen"].estimate == pytest.approx((mtp["first"].estimate + mtp["last"].estimate) / 2)
    assert attribution.total.estimate == pytest.approx(mean["full"] - mean["none"])
    # Paired by seed: the seeds' own level, which is large here, is in no interval.
    assert attribution.total.high - attribution.total.low < 0.2
    assert attribution.effects["mla"].verdict == GAIN

    lost = compare(
        decode_plan(fake.plan(variants, design="lattice", seeds=[0, 1, 2])), [r for r in records if r.seed], []
    )
    assert lost.attribution is not None
    assert lost.attribution.total.estimate != attribution.total.estimate
    nothing = compare(decode_plan(fake.plan(variants, design="lattice", seeds=[0, 1, 2])), [], [])
    assert nothing.attribution is None
    assert nothing.attribution_reason


def test_a_component_that_its_prerequisite_takes_along_is_not_what_was_turned_off():
    on, off = fake.FULL, fake.FULL | {"moe": "dense", "aux-free": "sequence-aux"}
    named = [("-moe", off), ("both", fake.FULL | {"moe": "coarse", "aux-free": "sequence-aux"})]
    variants = [fake.variant("full", dict(sorted(on.items())), range(5))]
    variants += [fake.variant(name, dict(sorted(levels.items())), range(5)) for name, levels in named]
    result = compare(decode_plan(fake.plan(variants)), [], [])
    dense, coarse = result.comparisons
    assert (dense.name, [(c.component, c.forced) for c in dense.changes]) == (
        "moe",
        [("moe", False), ("aux-free", True)],
    )
    assert (coarse.name, [c.forced for c in coarse.changes]) == ("moe + aux-free", [False, False])


def test_identical_records_have_an_effect_of_exactly_zero():
    _, c = only(records=fake.records(fake.WITH_LOSSES, fake.WITH_LOSSES))
    assert (c.loss.estimate, c.loss.low, c.loss.high) == (0, 0, 0)
    assert c.loss.verdict == NO_EFFECT


@pytest.mark.parametrize(
    "fault",
    [
        lambda r: fake.without(r, "-mtp", 2),
        lambda r: fake.without(r, "full", 2),
        lambda r: fake.changed(r, "-mtp", 2, status="diverged", reason="not finite", metrics={"diverged_step": 7.0}),
        lambda r: fake.without(fake.without(r, "full", 4), "-mtp", 4),
    ],
)
def test_a_lost_run_is_in_no_mean_and_refuses_the_interval(fault):
    result, c = only(records=fault(fake.records()))
    assert c.loss.verdict == NOT_RESOLVED
    assert c.loss.low is None
    assert c.loss.n == 4
    assert c.loss.reason
    lost = [run for run in result.runs if run.status != "finished"]
    assert lost
    for variant in result.variants:
        losses = variant.metrics[LOSS]
        assert losses.n == len(variant.finished)
        assert set(losses.values) == {run.seed for run in variant.finished}


def test_a_failure_counts_until_its_run_has_a_record():
    broken = fake.failure("-mtp", 2, "out of memory")
    result, c = only(records=fake.without(fake.records(), "-mtp", 2), failures=[broken])
    assert [(r.seed, r.reason) for r in result.runs if r.status == "failed"] == [(2, "out of memory")]
    assert c.loss.verdict == NOT_RESOLVED
    result, c = only(failures=[broken])
    assert all(run.status == "finished" for run in result.runs)
    assert c.loss.verdict == GAIN


def test_runs_that_began_differently_are_not_paired_and_that_is_said():
    records = fake.changed(fake.records(), "-mtp", 1, initial_parameters={"embedding.weight": "512x64:other"})
    result, c = only(records=records)
    assert not c.pairing_ok
    assert "seed 1" in c.pairing_reason
    assert "embedding.weight" in c.pairing_reason
    expected = stats.ttest_ind(fake.WITH_LOSSES, fake.WITHOUT_LOSSES, equal_var=False).confidence_interval(0.95)
    assert (c.loss.low, c.loss.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert any("not pairs" in warning for warning in result.warnings)


def test_speed_is_a_paired_ratio_on_the_log_scale():
    _, c = only()
    on = [math.log(1000 / (0.13 + 0.001 * seed)) for seed in range(5)]
    off = [math.log(1000 / (0.11 + 0.001 * seed)) for seed in range(5)]
    interval = stats.ttest_rel(on, off).confidence_interval(0.95)
    assert (c.speed.low, c.speed.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert c.speed.verdict == HARM  # slower


def test_emulated_and_measured_speeds_are_never_compared():
    emulated = {"loss": "measured", "speed": "emulated", "memory": "emulated"}
    mixed = [dataclasses.replace(r, evidence=emulated) if i < 5 else r for i, r in enumerate(fake.records())]
    _, c = only(records=mixed)
    assert c.speed is None
    assert "different kinds" in c.speed_reason
    _, c = only(records=[dataclasses.replace(r, evidence=emulated) for r in fake.records()])
    assert c.speed is not None
    assert c.speed_evidence == ("emulated",)


def test_a_further_held_out_set_has_its_own_effect():
    records = [
        dataclasses.replace(r, metrics={**r.metrics, "teacher_nats_per_token": r.metrics[LOSS] / 2})
        for r in fake.records()
    ]
    result, c = only(records=records)
    assert result.held_out_sets == ("teacher",)
    assert c.other_sets["teacher"].estimate == pytest.approx(c.loss.estimate / 2)
    partly = fake.changed(records, "full", 0, metrics=fake.records()[0].metrics)
    assert only(records=partly)[1].other_sets["teacher"].verdict == NOT_RESOLVED


def test_the_noise_floor_pools_the_variants_and_plans_seeds():
    result, c = only()
    sd = [stats.tstd(fake.WITH_LOSSES), stats.tstd(fake.WITHOUT_LOSSES)]
    assert result.noise.sd == pytest.approx(math.sqrt((sd[0] ** 2 + sd[1] ** 2) / 2))
    assert result.noise.df == 8
    assert 2 <= c.target_seeds < c.margin_seeds
    _, c = only(fake.plan(margin_nats=0.0))
    assert c.margin_seeds is None


def test_different_environments_and_uncommitted_changes_are_flagged():
    records = fake.records()
    other = {**records[0].environment, "packages": {**records[0].environment["packages"], "torch": "2.12.0"}}
    result, _ = only(records=fake.changed(records, "full", 0, environment=other))
    assert any("packages.torch" in w and "2.12.0 (1 run)" in w and "2.13.0 (9 runs)" in w for w in result.warnings)
    dirty = {**records[0].environment, "commit": {"hash": "0", "dirty": True, "diff_hash": "1"}}
    result, _ = only(records=[dataclasses.replace(r, environment=dirty) for r in records])
    assert result.warnings == ("10 of 10 runs were made by a checkout with uncommitted changes",)
    backends = {"attention": "triton", "linear": "reference", "device": "cpu"}
    result, _ = only(records=fake.changed(records, "full", 0, backends=backends))
    assert any("different backends for attention" in w for w in result.warnings)
    assert only()[0].warnings == ()


def test_records_that_the_plan_does_not_name_are_left_out_and_named():
    result, c = only(records=[*fake.records(), fake.record("stranger", 0, 1.0)])
    assert c.loss.n == 5
    assert any(fake.run_name("stranger", 0) in warning for warning in result.warnings)


def test_one_seed_gives_an_estimate_and_no_interval():
    plan = fake.plan(seeds=[0])
    result, c = only(plan, [r for r in fake.records() if r.seed == 0])
    assert c.loss.estimate == pytest.approx(3.2110 - 3.2533)
    assert (c.loss.low, c.loss.verdict, result.noise) == (None, NOT_RESOLVED, None)
    assert "two seeds" in result.noise_reason


def test_a_plan_that_is_none_is_refused_with_the_path():
    plan = fake.plan()
    del plan["variants"][1]["run_ids"]
    with pytest.raises(ValueError, match=r"plan\.variants\.1\.run_ids is missing"):
        compare(decode_plan(plan), [], [])
    plan = fake.plan()
    plan["variants"][1]["run_ids"].pop()
    with pytest.raises(ValueError, match="4 runs for 5 seeds"):
        compare(decode_plan(plan), [], [])
    with pytest.raises(ValueError, match="at least one variant"):
        compare(decode_plan(fake.plan() | {"variants": []}), [], [])


def test_a_design_that_is_read_twice_is_read_at_half_of_alpha():
    once, _ = only()
    staged = fake.plan(design={"name": "one", "order": None, "stages": 2})
    twice, comparison = only(plan=staged)
    assert twice.plan.interval_confidence == pytest.approx(0.975)
    assert comparison.loss.confidence == pytest.approx(0.975)
    wider = comparison.loss.high - comparison.loss.low
    assert wider > once.comparisons[0].loss.high - once.comparisons[0].loss.low
    assert any("read 2 times" in warning for warning in twice.warnings)
    assert not any("times" in warning for warning in once.warnings)


def test_run_ids_belong_to_the_variant_that_they_are_planned_for():
    plan = fake.plan()
    first, second = plan["variants"]
    first["run_ids"], second["run_ids"] = second["run_ids"], first["run_ids"]
    assert only(plan=plan)[1].loss.estimate == pytest.approx(-only()[1].loss.estimate)
