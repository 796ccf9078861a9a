"""Intervals of two variants, verdicts, multiplicity, numbers of seeds, early looks, noise."""

import numpy as np
import pytest
from scipy import stats

from ablate.attribution.design.sequential import e_interval, e_value, look_at, planned_looks
from ablate.attribution.estimation.noise import noise_floor, sd_ends
from ablate.attribution.estimation.pairs import compare_pairs, mean_interval
from ablate.attribution.verdicts import (
    GAIN,
    HARM,
    NO_EFFECT,
    NOT_RESOLVED,
    VERDICTS,
    beyond_margin_p,
    decide,
    holm,
    max_t_critical,
    seeds_needed,
    units_to_resolve,
)

ON = {0: 2.95, 1: 3.01, 2: 2.97, 3: 2.93}
OFF = {0: 3.00, 1: 3.04, 2: 3.03, 3: 2.99}


def test_the_names_of_the_verdicts():
    assert VERDICTS == ("gain", "harm", "no effect within the margin", "not resolved")


def test_mean_interval_is_the_textbook_one():
    values = [1.0, 2.5, 2.0, 4.0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert mean_interval(values, 0.9) == pytest.approx((np.mean(values), expected.low, expected.high))
    with pytest.raises(ValueError, match="at least two"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="value 1 is not finite"):
        mean_interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="confidence 1"):
        mean_interval(values, 1.0)


def test_same_seeds_give_the_textbook_paired_interval():
    effect = compare_pairs(ON, OFF)
    expected = stats.ttest_rel(list(ON.values()), list(OFF.values())).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((expected.low, expected.high))
    assert effect.estimate == pytest.approx(-0.05)
    assert effect.sd == pytest.approx(np.std([-0.05, -0.03, -0.06, -0.06], ddof=1))
    assert (effect.n, effect.df, effect.verdict, effect.seeds_to_resolve) == (4, 3, GAIN, 0)


@pytest.mark.parametrize("pairing_ok", [True, False])
def test_other_seeds_or_unequal_hashes_give_the_textbook_welch_interval(pairing_ok):
    off = {seed + 10 * pairing_ok: value for seed, value in OFF.items()} | {20: 3.1}
    effect = compare_pairs(ON, off, pairing_ok=pairing_ok)
    test = stats.ttest_ind(list(ON.values()), list(off.values()), equal_var=False)
    expected = test.confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((expected.low, expected.high))
    assert effect.df == pytest.approx(test.df)
    assert effect.method == "Welch t, 4 and 5 runs"


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ({0: 2.9, 1: 3.0, 2: 2.9}, "seed 3 has no run on"),
        ({**ON, 9: 2.9}, "seed 9 has no run off"),
        ({**ON, 2: float("nan")}, "seed 2 of on has no number"),
        ({**ON, 2: float("inf")}, "seed 2 of on has no number"),
        ({**ON, 1: None}, "seed 1 of on has no number"),
    ],
)
def test_a_missing_or_diverged_run_refuses_the_interval(on, words):
    effect = compare_pairs(on, OFF)
    assert (effect.low, effect.high, effect.verdict, effect.seeds_to_resolve) == (None, None, NOT_RESOLVED, None)
    assert words in effect.reason


def test_a_diverged_run_refuses_unpaired_intervals_too():
    effect = compare_pairs({0: 1.0, 1: 1.1, 2: float("nan")}, {5: 1.0, 6: 1.2})
    assert effect.low is None
    assert "seed 2 of on" in effect.reason


def test_one_seed_gives_no_interval_and_no_run_is_an_error():
    alone = compare_pairs({0: 1.0}, {0: 2.0})
    assert (alone.estimate, alone.low, alone.verdict) == (-1.0, None, NOT_RESOLVED)
    assert "run at least two" in alone.reason
    assert "two runs" in compare_pairs({0: 1.0}, {1: 2.0, 2: 2.1}).reason
    with pytest.raises(ValueError, match="side off has no run"):
        compare_pairs(ON, {})
    with pytest.raises(ValueError, match="margin -1"):
        compare_pairs(ON, OFF, margin=-1)


def test_identical_records_are_exactly_zero_and_nobody_wins():
    for other in (ON, {seed + 10: 0.1 for seed in ON}):
        mine = ON if other is ON else dict.fromkeys(range(3), 0.1)
        effect = compare_pairs(mine, other, margin=0.001)
        assert (effect.estimate, effect.low, effect.high, effect.verdict) == (0.0, 0.0, 0.0, NO_EFFECT)


@pytest.mark.parametrize(
    ("estimate", "margin", "lower", "expected"),
    [
        (-0.10, 0.05, True, GAIN),
        (-0.10, 0.05, False, HARM),
        (0.10, 0.05, True, HARM),
        (0.10, 0.05, False, GAIN),
        (-0.10, 0.09, True, NOT_RESOLVED),
        (0.00, 0.05, True, NO_EFFECT),
        (0.032, 0.05, True, NO_EFFECT),
        (0.035, 0.05, True, NOT_RESOLVED),
        (0.015, 0.0, True, NOT_RESOLVED),
        (-0.03, 0.0, True, GAIN),
    ],
)
def test_verdicts_follow_interval_margin_and_direction(estimate, margin, lower, expected):
    # Half-widths: 0.0196 at 95 %, 0.0164 at 90 %, so 0.032 is shown negligible by the second interval only.
    assert decide(estimate, 0.01, float("inf"), margin=margin, lower_is_better=lower) == expected


@pytest.mark.slow
def test_equivalence_has_the_size_of_its_level_at_the_margin():
    generator = np.random.default_rng(0)
    samples = generator.normal(0.01, 0.008, (4000, 8))
    means, errors = samples.mean(1), samples.std(1, ddof=1) / 8**0.5
    shown = [decide(m, e, 7, margin=0.01) == NO_EFFECT for m, e in zip(means, errors, strict=True)]
    assert np.mean(shown) <= 0.057
    assert beyond_margin_p(-0.05, 0.01, 7, 0.02) == pytest.approx(2 * stats.t.sf(3.0, 7))
    assert (beyond_margin_p(0.2, 0, 3, 0.1), beyond_margin_p(0, 0, 3, 0)) == (0, 1)


def test_holm():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_simultaneous_critical_values():
    assert max_t_critical(np.array([[2.0]]), 5) == pytest.approx(stats.t.ppf(0.975, 5))
    assert max_t_critical(np.ones((3, 3)), 5) == pytest.approx(stats.t.ppf(0.975, 5), abs=0.02)
    assert max_t_critical(np.eye(6), float("inf")) == pytest.approx(stats.norm.ppf((1 + 0.95 ** (1 / 6)) / 2), abs=0.01)
    # Independent estimates with a common noise estimate: given s, the three are independent normals.
    critical = max_t_critical(np.eye(3), 10)
    s = np.sqrt(stats.chi2.ppf((np.arange(20_000) + 0.5) / 20_000, 10) / 10)
    assert ((2 * stats.norm.cdf(critical * s) - 1) ** 3).mean() == pytest.approx(0.95, abs=0.001)
    assert max_t_critical(np.zeros((2, 2)), 4) == 0.0


# Pairs for 80 % and 90 % power to show equivalence at a true difference of 0, by an independent simulation.
@pytest.mark.parametrize(
    ("sd", "margin", "power", "pairs"),
    [
        (0.002, 0.005, 0.8, 4),
        (0.002, 0.005, 0.9, 4),
        (0.003, 0.005, 0.8, 5),
        (0.003, 0.005, 0.9, 6),
        (0.005, 0.005, 0.8, 11),
        (0.005, 0.005, 0.9, 13),
        (0.0071, 0.005, 0.8, 19),
        (0.002, 0.010, 0.8, 3),
        (0.005, 0.010, 0.9, 5),
    ],
)
def test_seeds_needed_for_equivalence(sd, margin, power, pairs):
    assert seeds_needed(0.0, sd, margin=margin, power=power) == pairs


def test_seeds_needed_for_a_difference_have_their_power():
    n = seeds_needed(0.006, 0.005, margin=0.0)
    generator = np.random.default_rng(1)
    samples = generator.normal(0.006, 0.005, (3000, n))
    low = samples.mean(1) - stats.t.ppf(0.975, n - 1) * samples.std(1, ddof=1) / n**0.5
    assert 0.77 < (low > 0).mean() < 0.88
    with pytest.raises(ValueError, match="any practical number"):
        seeds_needed(0.005, 0.005, margin=0.005)


def test_runs_to_resolve_would_resolve():
    effect = compare_pairs({0: 1.0, 1: 1.1, 2: 1.02}, {0: 1.03, 1: 1.07, 2: 1.08})
    assert effect.verdict == NOT_RESOLVED
    assert effect.runs_to_resolve == 2 * effect.seeds_to_resolve > 0
    n = 3 + effect.seeds_to_resolve
    error = effect.sd / n**0.5
    assert decide(effect.estimate, error, n - 1) == GAIN
    assert decide(effect.estimate, effect.sd / (n - effect.seeds_to_resolve) ** 0.5, 2) == NOT_RESOLVED
    assert units_to_resolve(0.0, 0.1, 3, n=4) is None
    assert units_to_resolve(0.0, 0.1, 3, n=4, margin=0.1) < units_to_resolve(0.0, 0.1, 3, n=4, margin=0.05)


def test_three_planned_looks_split_alpha():
    looks = planned_looks()
    assert [look.n for look in looks] == [5, 10, 20]
    assert looks[0].confidence == pytest.approx(1 - 0.05 / 3)
    assert look_at(looks, 10) is looks[1]
    with pytest.raises(ValueError, match="7 seeds are finished, but looks are planned at 5, 10, 20"):
        look_at(looks, 7)
    for plan in ([], [5, 5], [10, 5], [1, 2], [2, 3, 4, 5]):
        with pytest.raises(ValueError, match="plan one to three"):
            planned_looks(plan)


@pytest.mark.slow
def test_the_e_process_may_be_watched_at_every_run():
    samples = np.random.default_rng(2).standard_normal((400, 50))
    wrong = [any(e_value(row[:n]) >= 20 for n in range(2, 51)) for row in samples]
    assert np.mean(wrong) <= 0.05
    strong = np.random.default_rng(3).normal(2.0, 1.0, 20)
    assert e_value(strong) > 20
    # n = 4, t = 2: sqrt(1/5) * ((1 + 4/3) / (1 + 4/15))^2.
    values = np.array([-1.0, 0.0, 0.0, 1.0])
    values = values / values.std(ddof=1) + 1.0
    assert e_value(values) == pytest.approx(0.2**0.5 * ((1 + 4 / 3) / (1 + 4 / 15)) ** 2)
    assert (e_value([1.0]), e_value([0.0, 0.0]), e_value([1.0, 1.0])) == (1.0, 1.0, float("inf"))


def test_the_e_interval_ends_where_the_e_value_reaches_its_bound():
    values = np.random.default_rng(4).normal(0.3, 1.0, 30)
    low, high = e_interval(values)
    assert e_value(values, mean=low) == pytest.approx(20)
    assert e_value(values, mean=high) == pytest.approx(20)
    assert e_interval(values[:2]) is None
    assert high - low > np.diff(mean_interval(values)[1:])[0]


def test_noise_floor_pools_within_variants():
    floor = noise_floor({"a": [1.0, 1.2], "b": [5.0, 5.1, 5.3], "c": [9.0]})
    assert floor.df == 3
    assert floor.sd == pytest.approx(((0.02 + np.var([5.0, 5.1, 5.3]) * 3) / 3) ** 0.5)
    expected = [floor.sd * (3 / stats.chi2.ppf(p, 3)) ** 0.5 for p in (0.975, 0.025)]
    assert floor.ends(0.95) == pytest.approx(expected)
    with pytest.raises(ValueError, match="two seeds"):
        noise_floor({"a": [1.0]})
    with pytest.raises(ValueError, match="'b' has a value that is not finite"):
        noise_floor({"b": [1.0, float("nan")]})


def test_an_sd_of_one_degree_of_freedom_is_hardly_known():
    low, high = sd_ends(1.0, 1, 0.95)
    assert (low, high) == pytest.approx((0.446, 31.91), rel=1e-3)


@pytest.mark.slow
def test_placebo_differences_are_called_effects_at_the_nominal_rate():
    generator = np.random.default_rng(5)
    called = 0
    for _ in range(1500):
        level = generator.normal(0, 1.0, 5)
        on, off = (dict(enumerate(level + generator.normal(0, 0.1, 5))) for _ in range(2))
        called += compare_pairs(on, off).verdict in (GAIN, HARM)
    assert 0.035 < called / 1500 < 0.065
