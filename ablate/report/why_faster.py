"""Why one thing takes less than another: tokens x FLOPs per token / FLOP/s, for the study and for published pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablate.attribution.study.compare import StudyResult
from ablate.evidence.gap import Known, identity, totals
from ablate.quantities import number
from ablate.report.names import arrow, arrow_of
from ablate.report.tables.gain import InCompute

CHANNELS = ("tokens", "FLOPs per token", "FLOP/s")
PAIRS = (("v2-236b", "v3-671b"), ("llama3-405b", "v3-671b"))  # the last is told in words


@dataclass(frozen=True, kw_only=True, slots=True)
class Factors:
    """ln of how many times less is needed, by channel; what is not known is not in it. `missing`: what, and why."""

    name: str
    logs: Mapping[str, float]
    missing: str = ""

    @property
    def total(self) -> float:
        return sum(self.logs.values())

    @property
    def said(self) -> str:
        return f"{number(math.exp(self.total), 2)}×"


def of_study(compute: InCompute, result: StudyResult) -> tuple[Factors, ...]:
    """The components and, of a design, its two ends last; FLOP/s only where they were measured and not emulated."""
    if compute.cost is not None:
        table, evidence = compute.cost.table, compute.cost.evidence
        n = 3 if table.gains.shape[1] == 3 and evidence == "measured" else 2
        missing = "" if n == 3 else _why(evidence)
        names = [*(arrow_of(result, name) for name in table.components), "all together"]
        rows = [*table.gains[:, :n].tolist(), table.by_channel[:n].tolist()]
        return tuple(
            Factors(name=name, logs=dict(zip(CHANNELS, map(float, row), strict=False)), missing=missing)
            for name, row in zip(names, rows, strict=True)
        )
    found = []
    for gain in compute.gains:
        if gain.tokens.estimate is None:
            continue
        logs = {"tokens": gain.tokens.estimate, "FLOPs per token": gain.log_flops_per_token}
        measured = gain.log_flops_per_s is not None and gain.evidence["FLOP/s"] == "measured"
        if measured and gain.log_flops_per_s is not None:
            logs["FLOP/s"] = gain.log_flops_per_s
        missing = "" if measured else _why(gain.evidence["FLOP/s"])
        found.append(Factors(name=arrow(gain.comparison), logs=logs, missing=missing))
    return tuple(found)


def _why(evidence: str) -> str:
    return f"FLOP/s are {evidence}" if evidence else "FLOP/s are of different kinds of evidence"


def _short(known: Known) -> str:
    return known.totals.title.partition(",")[0]


def published(pairs: Sequence[tuple[str, str]] = PAIRS) -> tuple[Factors, ...]:
    """The same of GPU hours of whole published training runs; FLOP/s are what is left when the others are taken out."""
    found = []
    for first, second in pairs:
        a, b = totals(first), totals(second)
        factors = identity(a, b)["factors"]
        keys = ("tokens", "flops_per_token", "flops_per_s")
        logs = {name: math.log(factors[key]["estimate"]) for name, key in zip(CHANNELS, keys, strict=True)}
        found.append(Factors(name=f"{_short(a)} → {_short(b)}", logs=logs))
    return tuple(found)
