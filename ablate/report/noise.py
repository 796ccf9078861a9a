"""How noisy runs are, as figures show it: runs of one variant around their mean, and what so many seeds see."""

from __future__ import annotations

from dataclasses import dataclass

from ablate.attribution.study.compare import LOSS, Comparison, StudyResult
from ablate.attribution.verdicts import POWER, t_quantile
from ablate.report.cleaning import clean
from ablate.report.names import arrow

SEEDS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
MOST_ROWS = 12  # variants in the strip; the sentence says how many there are


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """A variant that ran more than once: each run's loss minus the variant's mean, in nats per token."""

    name: str
    deviations: tuple[float, ...]


def strips(result: StudyResult) -> tuple[Strip, ...]:
    """Every variant with at least two finished runs, those with the most first."""
    found = []
    for v in result.variants:
        if LOSS in v.metrics and v.metrics[LOSS].n > 1:
            values = v.metrics[LOSS].values.values()
            found.append(Strip(name=clean(v.name), deviations=tuple(x - v.metrics[LOSS].mean for x in values)))
    return tuple(sorted(found, key=lambda strip: -len(strip.deviations)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Detectable:
    """The smallest effects, in nats, that so many pairs resolve: at the sd of pairs and at the ends of its interval."""

    name: str
    n_pairs: int  # behind the sd
    seeds: tuple[int, ...]
    sizes: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def detectable(result: StudyResult) -> Detectable | None:
    """Of the comparison whose pairs are the noisiest; None where no sd of pairs has an interval."""
    known = [c for c in result.comparisons if c.pairing_ok and c.loss.sd and c.pair_sd_ends]
    if not known:
        return None
    c = max(known, key=lambda c: (c.loss.sd or 0.0, c.name))
    assert c.loss.sd is not None
    assert c.pair_sd_ends is not None
    seeds = tuple(sorted({*SEEDS, c.loss.n}))  # with the study's own number, which the sentence is about
    sizes, low, high = (tuple(smallest(sd, n, c) for n in seeds) for sd in (c.loss.sd, *c.pair_sd_ends))
    return Detectable(name=arrow(c), n_pairs=c.loss.n, seeds=seeds, sizes=sizes, low=low, high=high)


def smallest(sd: float, n: int, c: Comparison) -> float:
    """The effect beyond the margin that n pairs with this sd resolve with POWER, for one effect by itself."""
    quantiles = t_quantile(0.5 + c.loss.confidence / 2, n - 1) + t_quantile(POWER, n - 1)
    return float(c.loss.margin + quantiles * sd / n**0.5)
