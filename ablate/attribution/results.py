"""The answer of an attribution as values: numbers with intervals, effects, interactions, and their JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ablate.attribution.verdicts import check_confidence, check_margin


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked of the runs."""

    metric: str
    lower_is_better: bool = True
    margin: float = 0.0  # differences up to this size are of no interest; unit of the metric (of its log with `log`)
    confidence: float = 0.95
    log: bool = False
    order: int | None = None  # interactions above it are assumed away; None: nothing assumed where runs allow

    def __post_init__(self) -> None:
        check_confidence(self.confidence)
        check_margin(self.margin)


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """An estimate with its interval; parts that do not exist are None and `reason` says why."""

    estimate: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain dict; `reason` only where there is one."""
        out = {"estimate": self.estimate, "low": self.low, "high": self.high}
        return out if self.reason is None else {**out, "reason": self.reason}


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentEffect:
    """One component: its effect (on minus off) by every index, and the verdict on the headline one."""

    indices: Mapping[str, Number]
    simultaneous: Number | None  # headline interval that holds jointly with those of all other components
    n: int  # seeds where paired, blocks of seeds where blocked, runs otherwise
    verdict: str
    verdict_from: str | None  # the index the verdict is on
    runs_to_resolve: int | None  # further runs, 0 when resolved, None where no number can be given
    method: str
    family: int = 1  # effects that gain and harm are corrected over together (Holm)

    def to_json(self) -> dict[str, Any]:
        """The indices side by side with verdict and n."""
        return {
            **{index.replace("-", "_"): number.to_json() for index, number in self.indices.items()},
            "simultaneous": None if self.simultaneous is None else self.simultaneous.to_json(),
            "n": self.n,
            "verdict": self.verdict,
            "verdict_from": self.verdict_from,
            "corrected_over": self.family,
            "runs_to_resolve": self.runs_to_resolve,
            "interval": self.method,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Interaction:
    """Banzhaf interaction of two components; nested pairs have a reason and no number."""

    components: tuple[str, str]
    number: Number
    adjusted_p: float | None  # Benjamini-Hochberg over all pairs; None without an interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """Whether a component is worth more than the next one in order of worth, by the index that verdicts are on."""

    better: str
    worse: str
    number: Number  # effect of the better minus effect of the worse
    adjusted_p: float | None  # Holm over all neighbours; None without an interval
    resolved: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """The answer of one table, as values; `to_json` is the document of `dsv3-ablate attribute --json`."""

    question: Question
    total: Number
    effects: Mapping[str, ComponentEffect]
    interactions: tuple[Interaction, ...]
    ranks: tuple[Rank, ...]  # neighbours, the most useful component first
    order_spectrum: Mapping[int, float] | None  # None where a feasible variant has no run
    residual_sd: float | None
    residual_df: int | None
    design: Mapping[str, Any]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """One JSON-ready document; numbers that do not exist are null with a reason beside them."""
        return {
            **asdict(self.question),
            "total": self.total.to_json(),
            "effects": {name: effect.to_json() for name, effect in self.effects.items()},
            "interactions": [
                {"components": list(pair.components), **pair.number.to_json(), "adjusted_p": pair.adjusted_p}
                for pair in self.interactions
            ],
            "ranks": [
                {
                    "better": rank.better,
                    "worse": rank.worse,
                    **rank.number.to_json(),
                    "adjusted_p": rank.adjusted_p,
                    "resolved": rank.resolved,
                }
                for rank in self.ranks
            ],
            "order_spectrum": None
            if self.order_spectrum is None
            else {str(order): share for order, share in self.order_spectrum.items()},
            "residual_sd": self.residual_sd,
            "residual_df": self.residual_df,
            "design": dict(self.design),
            "warnings": list(self.warnings),
        }
