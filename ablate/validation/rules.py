"""Checks of the rules of decision: the e-process that is read after every seed, and the test of equivalence."""

from __future__ import annotations

import numpy as np
from scipy import integrate, stats

from ablate.attribution.design.sequential import e_value
from ablate.attribution.verdicts import NO_EFFECT, decide, t_quantile
from ablate.validation.check import Check


def check_peeking(rng: np.random.Generator, simulations: int) -> list[Check]:
    """The e-process looked at after every seed up to 50, with no effect at all."""
    rejected = 0
    for values in rng.normal(0.0, 1.0, (simulations, 50)):
        rejected += any(e_value(values[:n]) >= 20.0 for n in range(2, 51))
    rate = rejected / simulations
    return [
        Check(
            name="e-process, read at every n <= 50",
            setting="no effect",
            measured={"type I": rate},
            bar="<= 0.05",
            met=rate <= 0.05,
            simulations=simulations,
        )
    ]


def check_equivalence(rng: np.random.Generator, simulations: int) -> list[Check]:
    """How often two one-sided tests call an effect of exactly the margin negligible.

    At the margin the size comes up to .05 from below, closer than simulation can tell: the bar is on the integral, and
    what `decide` says in the simulated studies has to agree with it.
    """
    out = []
    for seeds, spread in ((5, 0.003), (12, 0.005), (20, 0.0071)):
        x = rng.normal(0.005, spread, (simulations, seeds))
        errors = x.std(axis=1, ddof=1) / seeds**0.5
        wrong = sum(
            decide(float(m), float(e), seeds - 1, margin=0.005) == NO_EFFECT
            for m, e in zip(x.mean(axis=1), errors, strict=True)
        )
        size, exact = wrong / simulations, equivalence_size(seeds, spread, 0.005)
        noise = (exact * (1.0 - exact) / simulations) ** 0.5
        out.append(
            Check(
                name="equivalence (TOST) at the margin",
                setting=f"{seeds} pairs, sd {spread}, margin 0.005",
                measured={"exact size": exact, "simulated size": size, "its Monte Carlo error": noise},
                bar="<= 0.05, simulated within 3 Monte Carlo errors of it",
                met=exact <= 0.05 and abs(size - exact) <= 3.0 * noise,
                simulations=simulations,
            )
        )
    return out


def equivalence_size(seeds: int, spread: float, margin: float) -> float:
    """Exact chance that both one-sided .05 tests reject when the true paired difference equals the margin."""
    error, t = spread / seeds**0.5, t_quantile(0.95, seeds - 1)

    def given(scale: float) -> float:
        inside = stats.norm.cdf(-t * scale) - stats.norm.cdf(-2.0 * margin / error + t * scale)
        return float(max(inside, 0.0) * stats.chi.pdf(scale * (seeds - 1) ** 0.5, seeds - 1) * (seeds - 1) ** 0.5)

    # Beyond this ratio of the measured to the true sd the two tests cannot both reject.
    return float(integrate.quad(given, 0.0, margin / (t * error), epsabs=1e-12)[0])
