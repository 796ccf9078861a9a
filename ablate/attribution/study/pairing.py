"""Whether runs of one seed are pairs, checked from their records, and what pairing is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.runs.record import RunRecord, pairing_fault

MAX_NAMED = 4  # broken pairs that are named one by one


@dataclass(frozen=True, kw_only=True, slots=True)
class PairingBreak:
    """A run that shares its seed with others and is still no pair of them."""

    variant: str
    seed: int
    run_id: str
    against: str  # the variant whose run of that seed it was checked against
    fault: str

    def __str__(self) -> str:
        run = f"run {self.run_id} ({self.variant}, seed {self.seed})"
        return f"{run} is no pair of {self.against}, but a run of its own: {self.fault}"


def pairing_breaks(finished: Mapping[str, Sequence[RunRecord]]) -> tuple[PairingBreak, ...]:
    """The runs that break the pairs of their seed. finished: variant -> its finished runs, the reference first.

    Of each seed, the run that disagrees with the most others goes first, until the rest agree; of equals the last one.
    """
    seeds: dict[int, dict[str, RunRecord]] = {}
    for variant, records in finished.items():
        for record in records:
            seeds.setdefault(record.seed, {})[variant] = record
    return tuple(found for seed in sorted(seeds) for found in _of_seed(dict(seeds[seed])))


def _of_seed(together: dict[str, RunRecord]) -> list[PairingBreak]:
    found = []
    while faults := {
        name: said
        for name, record in together.items()
        if (said := {other: fault for other in together if (fault := pairing_fault(together[other], record))})
    }:
        # Runs that agree with most others are the pairs; max keeps the first of equals, so the last comes first.
        name = max(reversed(faults), key=lambda variant: len(faults[variant]))
        against, fault = next(iter(faults[name].items()))
        record = together.pop(name)
        found.append(PairingBreak(variant=name, seed=record.seed, run_id=record.run_id, against=against, fault=fault))
    return found


def broken_pairs(breaks: Sequence[PairingBreak], unpaired: Mapping[str, str]) -> list[str]:
    """Sentences on the runs that break their pairs, and on the comparisons that lose theirs (name -> why)."""
    found = [str(broken) for broken in breaks[:MAX_NAMED]]
    if len(breaks) > MAX_NAMED:
        found.append(f"{len(breaks) - MAX_NAMED} more runs are no pairs of those that share their seed")
    return found + [
        f"{name}: the runs of a seed are not pairs ({why}), so they are compared as independent runs"
        for name, why in unpaired.items()
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairingGain:
    """What sharing seeds did to a difference of two variants."""

    correlation: float  # of their losses over the seeds
    runs_ratio: float  # runs that independent seeds would take for the same interval, over those of pairs
    n: int  # pairs


def pairing_gain(pairs: Sequence[tuple[float, float]]) -> PairingGain | None:
    """From the losses of each pair; None below three pairs, or where one side or the difference does not vary."""
    if len(pairs) < 3:
        return None
    x, y = np.asarray(pairs, dtype=np.float64).T
    apart, together = float(x.var(ddof=1) + y.var(ddof=1)), float((x - y).var(ddof=1))
    if min(float(np.ptp(x)), float(np.ptp(y)), together) <= 1e-12 * float(np.abs(x).max()):
        return None
    return PairingGain(correlation=float(np.corrcoef(x, y)[0, 1]), runs_ratio=apart / together, n=len(pairs))
