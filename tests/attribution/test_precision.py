"""Seeds for a precision reach it as often as they say; what is known of the noise is what was published."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ablate.attribution.design.planning import ASSURANCE, Noise, seeds_for
from ablate.attribution.design.sequential import looks_up_to
from ablate.presets.noise import FILE
from ablate.runs.precision import parse_precision

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("df", [4, 20, math.inf])
def test_the_planned_seeds_reach_the_precision_as_often_as_said(df: float) -> None:
    """The noise that plans is itself measured, from runs that do not count; sd 1."""
    rng = np.random.default_rng(3)
    reached = []
    for _ in range(600):
        known = 1.0 if math.isinf(df) else float(np.sqrt(rng.chisquare(df) / df))
        n = seeds_for(0.5, Noise(sd=known, df=df, origin=""))
        assert n is not None
        half = stats.t.ppf(0.975, n - 1) * rng.standard_normal(n).std(ddof=1) / n**0.5
        reached.append(half <= 0.5)
    # Whole seeds reach a little more than is asked, of a known noise; the bound is three standard errors below.
    assert np.mean(reached) > ASSURANCE - 0.05
    assert np.mean(reached) < ASSURANCE + 0.12


def test_alpha_shared_with_a_pilot_that_counts_keeps_the_coverage() -> None:
    """Without sharing it does not: a pilot that is quiet by chance is stopped early, and its quiet runs count."""
    rng = np.random.default_rng(4)
    missed = {1: 0, 2: 0}
    for _ in range(2000):
        values = rng.standard_normal(400)
        for stages in missed:
            confidence = 1 - 0.05 / stages
            pilot = Noise(sd=float(values[:5].std(ddof=1)), df=4, origin="")
            n = min(max(5, seeds_for(0.8, pilot, confidence=confidence) or 400), 400)
            half = stats.t.ppf(0.5 + confidence / 2, n - 1) * values[:n].std(ddof=1) / n**0.5
            missed[stages] += abs(values[:n].mean()) > half
    assert missed[2] / 2000 < 0.06
    assert missed[1] > missed[2]


def test_no_practical_number_of_seeds_is_no_number() -> None:
    assert seeds_for(1e-6, Noise(sd=1.0, df=4, origin="")) is None
    assert seeds_for(1.0, Noise(sd=0.0, df=4, origin="")) == 2


def test_the_known_noise_is_that_of_the_published_reports() -> None:
    """Run benchmarks/known_noise.py where this fails."""
    spec = importlib.util.spec_from_file_location("known_noise", ROOT / "benchmarks" / "known_noise.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = json.loads(FILE.read_text(encoding="utf-8"))
    for entry in written:
        (found,) = module.noises(ROOT / entry["origin"])
        assert found.pair_sd_nats == pytest.approx(entry["pair_sd_nats"], rel=1e-9)
        assert found.circumstances == entry["circumstances"]
        assert list(found.seeds) == entry["seeds"]


@pytest.mark.parametrize(
    ("given", "half_width", "unit"),
    [("0.01", 0.01, "nats"), ("0.01nats", 0.01, "nats"), ("1e-2 nats", 0.01, "nats"),
     ("3%", math.log(1.03), "compute"), ("3 % of compute", math.log(1.03), "compute")],
)  # fmt: skip
def test_a_precision_is_in_nats_or_in_compute(given: str, half_width: float, unit: str) -> None:
    found = parse_precision(given)
    assert (found.half_width, found.unit) == (pytest.approx(half_width), unit)


@pytest.mark.parametrize("given", ["", "narrow", "0", "-1", "3% of it", "1..2", "0.01 of compute", "200%", "nan"])
def test_what_is_no_precision_is_refused_with_examples(given: str) -> None:
    with pytest.raises(ValueError, match=r"0\.01, 0\.01nats or 3%"):
        parse_precision(given)


def test_looks_are_at_a_quarter_half_and_all_of_the_seeds() -> None:
    assert [looks_up_to(n) for n in (None, 20, 6, 3, 2)] == [(5, 10, 20), (5, 10, 20), (2, 3, 6), (2, 3), (2,)]
