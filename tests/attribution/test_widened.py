"""Effects at predicted rates: what is unknown of the optimum is in interval and verdict, and decides nothing."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ablate.attribution.gain.compute_gain import Gain
from ablate.attribution.gain.learning_rate import LearningRates
from ablate.attribution.results import ComponentEffect, Number
from ablate.attribution.study.tuning import widened, widened_gain, widened_index
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT, NOT_RESOLVED, Effect, t_quantile

WEIGHTS = np.array([1.0, -1.0])
DF = 10.0


def found(miss: float):
    """Two variants whose optimum is known to `miss` octaves, with a curvature of .05 nats per octave squared."""
    fitted = LearningRates(log2_lr=np.zeros(2), curvature=np.full(2, 0.05), covariance=np.eye(2) * miss**2, clipped=())
    return SimpleNamespace(fitted=fitted, surface=SimpleNamespace(df=DF))


def extra(miss: float) -> float:
    """Variance of 0.05 (d1^2 - d2^2): the mean cancels, each square has variance 2 miss^4."""
    return 2 * 0.05**2 * 2 * miss**4


def effect(estimate: float, verdict: str, family: int = 1) -> Effect:
    half = t_quantile(0.975, DF) * 0.001
    return Effect(name="mtp", unit="nats per token", estimate=estimate, low=estimate - half, high=estimate + half, n=11,
                  verdict=verdict, margin=0.005, standard_error=0.001, df=DF, family=family)  # fmt: skip


def test_interval_and_verdict_take_in_the_missed_optimum():
    wide = widened(effect(-0.009, GAIN), WEIGHTS, found(0.1))
    assert wide.standard_error == pytest.approx(math.sqrt(0.001**2 + extra(0.1)))
    assert wide.high == pytest.approx(-0.009 + t_quantile(0.975, DF) * wide.standard_error)
    assert wide.verdict == GAIN
    assert widened(effect(-0.009, GAIN), WEIGHTS, found(0.2)).verdict == NOT_RESOLVED
    assert widened(effect(0.009, HARM), WEIGHTS, found(0.1)).verdict == HARM
    assert widened(effect(0.0, NO_EFFECT), WEIGHTS, found(0.1)).verdict == NO_EFFECT
    assert widened(effect(0.0, NO_EFFECT), WEIGHTS, found(0.3)).verdict == NOT_RESOLVED


def test_widening_never_decides():
    assert widened(effect(-0.02, NOT_RESOLVED), WEIGHTS, found(0.1)).verdict == NOT_RESOLVED, "Holm had refused it"
    alone, of_six = (widened(effect(-0.0078, GAIN, family), WEIGHTS, found(0.05)).verdict for family in (1, 6))
    assert (alone, of_six) == (GAIN, NOT_RESOLVED)


@pytest.mark.parametrize("confidence", [0.95, 0.975])
def test_an_index_of_a_design_is_widened_at_its_own_confidence(confidence: float):
    number = Number(estimate=-0.009, low=-0.011, high=-0.007)
    of_design = ComponentEffect(indices={"owen": number}, simultaneous=None, n=12, verdict=GAIN, verdict_from="owen",
                                runs_to_resolve=0, method="", family=1)  # fmt: skip
    asked = Effect(name="", unit="nats per token", estimate=None, low=None, high=None, n=0, verdict=NOT_RESOLVED,
                   margin=0.005, confidence=confidence)  # fmt: skip
    wide = widened_index(number, of_design, WEIGHTS, found(0.1), asked)
    t = t_quantile(0.5 + confidence / 2, DF)
    assert -0.009 - wide.low == pytest.approx(math.hypot(0.002, t * math.sqrt(extra(0.1))))
    assert wide.verdict == GAIN
    assert widened_index(number, of_design, WEIGHTS, found(0.3), asked).verdict == NOT_RESOLVED
    blind = widened_index(number, of_design, WEIGHTS, SimpleNamespace(fitted=None, surface=None), asked)
    assert (blind.low, blind.high, blind.verdict) == (None, None, NOT_RESOLVED)


def test_missed_nats_are_missed_cost_by_the_slope():
    gain = Gain(estimate=0.1, low=0.08, high=0.12, n=11, df=DF, bound="exact", confidence=0.95, standard_error=0.009)
    wide = widened_gain(gain, 0.25, WEIGHTS, found(0.1))
    assert wide is not None
    assert wide.standard_error == pytest.approx(math.sqrt(0.009**2 + extra(0.1) / 0.25**2))
    assert wide.high - 0.1 == pytest.approx(t_quantile(0.975, DF) * wide.standard_error)
    assert widened_gain(gain, 0.25, WEIGHTS, SimpleNamespace(fitted=None)) is None
