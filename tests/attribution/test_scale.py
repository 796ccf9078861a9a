"""Effect against compute: known lines, published half-widths, coverage with and without spread, and refusals."""

import math

import numpy as np
import pytest
from scipy import stats

from ablate.attribution.gain.scale import SizeEffect, claim_limit, fit_trend, predict

LADDER = (1e17, 10**17.5, 1e18, 10**18.5)  # 1.5 decades
ERROR = 0.0025


def ladder(effects: list[float], flops: tuple[float, ...] = LADDER) -> list[SizeEffect]:
    return [SizeEffect(flops=f, estimate=e, standard_error=ERROR) for f, e in zip(flops, effects, strict=True)]


def test_a_line_without_noise_is_returned() -> None:
    trend = fit_trend(ladder([0.03 + 0.01 * d for d in (-0.75, -0.25, 0.25, 0.75)]))
    assert (trend.level, trend.slope, trend.tau) == pytest.approx((0.03, 0.01, 0.0))
    assert trend.centre == pytest.approx(17.75)
    assert predict(trend, 1e19).estimate == pytest.approx(0.03 + 0.01 * 1.25)


@pytest.mark.parametrize(("decades", "half"), [(0.5, 0.0060), (1.0, 0.0081), (2.0, 0.0123), (4.0, 0.0210)])
def test_half_widths_of_an_exact_line(decades: float, half: float) -> None:
    prediction = predict(fit_trend(ladder([0.03, 0.03, 0.03, 0.03]), tau=0.0), 10 ** (18.5 + decades))
    assert (prediction.high - prediction.low) / 2 == pytest.approx(half, abs=6e-5)
    assert bool(prediction.note) == (decades > 0.5)


def test_standard_error_is_the_closed_form_with_spread() -> None:
    x = np.array([-0.75, -0.25, 0.25, 0.75])
    tau = 0.004
    prediction = predict(fit_trend(ladder([0.03, 0.02, 0.05, 0.03]), tau=tau), 10**18.8)
    error = math.sqrt(tau**2 + (ERROR**2 + tau**2) * (1 / 4 + 1.05**2 / (x**2).sum()))
    assert (prediction.high - prediction.low) / 2 == pytest.approx(stats.norm.ppf(0.975) * error)


def test_spread_between_sizes_is_estimated_and_widens_the_band() -> None:
    quiet, loud = fit_trend(ladder([0.03, 0.031, 0.032, 0.033])), fit_trend(ladder([0.05, 0.01, 0.06, 0.0]))
    assert quiet.tau == 0.0
    # For equal errors the moment estimate is the residual mean square minus the error's square.
    x = np.array([-0.75, -0.25, 0.25, 0.75])
    residual = np.array([0.05, 0.01, 0.06, 0.0]) - np.polyval(np.polyfit(x, [0.05, 0.01, 0.06, 0.0], 1), x)
    assert loud.tau**2 == pytest.approx((residual**2).sum() / 2 - ERROR**2)
    assert loud.slope_interval[1] - loud.slope_interval[0] > quiet.slope_interval[1] - quiet.slope_interval[0]


@pytest.mark.parametrize("tau", [0.0, 0.0025, 0.005])
def test_coverage_of_a_new_size(tau: float) -> None:
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(800):
        effects = [0.03 + 0.01 * d + rng.normal(0, math.hypot(ERROR, tau)) for d in (-0.75, -0.25, 0.25, 0.75)]
        prediction = predict(fit_trend(ladder(effects)), 1e19)
        inside += prediction.low <= 0.03 + 0.01 * 1.25 + rng.normal(0, tau) <= prediction.high
    assert inside / 800 >= 0.95


def test_claims_end_half_a_decade_beyond_a_short_ladder() -> None:
    three = fit_trend(ladder([0.03, 0.03, 0.03], LADDER[:3]))
    assert claim_limit(three) == pytest.approx(10**18.5)
    assert predict(three, 10**18.5).note == ""
    with pytest.raises(ValueError, match=r"beyond the largest measured size, and claims end at 0\.5 decades"):
        predict(three, 10**18.6)
    narrow = fit_trend(ladder([0.03] * 4, (1e17, 2e17, 4e17, 8e17)))
    with pytest.raises(ValueError, match=r"at least 4 sizes over 1\.5 decades"):
        predict(narrow, 1e19)
    assert math.isinf(claim_limit(fit_trend(ladder([0.03] * 4))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_trend(ladder([0.1, 0.2], LADDER[:2])), "at least 3 different sizes"),
        (lambda: fit_trend(ladder([0.1, 0.2, 0.3], (1e17, 1e17, 1e18))), "3 different sizes"),
        (lambda: fit_trend(ladder([0.1] * 4), tau=-1.0), "tau"),
        (lambda: SizeEffect(flops=0.0, estimate=0.1, standard_error=0.1), "positive and finite"),
        (lambda: SizeEffect(flops=1.0, estimate=0.1, standard_error=0.0), "positive standard error"),
        (lambda: predict(fit_trend(ladder([0.1] * 4)), -1.0), "positive and finite"),
    ],
)
def test_wrong_input_gets_a_sentence(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()
