"""Held-out loss during training: one line per variant, and the paired difference at equal shares of the schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablate.attribution.estimation.pairs import mean_interval
from ablate.attribution.study.compare import LOSS, SPEED, Comparison, StudyResult, VariantResult


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One evaluation: the mean loss of a variant's finished runs, the lowest and the highest, in nats per token."""

    step: float
    n_tokens: float
    flops: float
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A variant's held-out loss during training. Only its last point has a learning rate that has decayed."""

    variant: str
    points: tuple[CurvePoint, ...]
    decay_start_tokens: float | None  # where the learning rate begins to decay
    tokens_per_s: float | None  # median, measured; None where it was emulated or not recorded

    @property
    def n_undecayed(self) -> int:
        """How many of the points lie where the learning rate has not begun to decay; none where that is not known."""
        return sum(p.n_tokens <= self.decay_start_tokens for p in self.points) if self.decay_start_tokens else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GapPoint:
    """The loss with minus the loss without, at one share of the schedule, with its t-interval over seeds."""

    share: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """A comparison's paired difference over the course of its runs."""

    name: str
    variant: str
    points: tuple[GapPoint, ...]


def curves(result: StudyResult) -> tuple[Curve, ...]:
    """A curve for every variant that has a finished run."""
    return tuple(_curve(variant) for variant in result.variants if variant.finished)


def _curve(variant: VariantResult) -> Curve:
    by_step: dict[float, list[Mapping[str, float]]] = {}
    for run in variant.finished:
        for point in run.record.curve if run.record else ():
            if LOSS in point and "step" in point:
                by_step.setdefault(point["step"], []).append(point)
    points = tuple(_point(step, found, variant) for step, found in sorted(by_step.items()))
    return Curve(variant=variant.name, points=points, decay_start_tokens=_decay_start(variant),
                 tokens_per_s=_speed(variant))  # fmt: skip


def _point(step: float, found: Sequence[Mapping[str, float]], variant: VariantResult) -> CurvePoint:
    values = [point[LOSS] for point in found]
    n_tokens = found[0].get("n_tokens", step * variant.planned.n_tokens / max(variant.planned.n_steps, 1))
    return CurvePoint(
        step=step,
        n_tokens=n_tokens,
        flops=n_tokens * variant.planned.flops / max(variant.planned.n_tokens, 1),
        mean=sum(values) / len(values),
        low=min(values),
        high=max(values),
        n=len(values),
    )


def _decay_start(variant: VariantResult) -> float | None:
    record = variant.finished[0].record
    share = record.spec.get("trainer", {}).get("decay_share") if record else None
    return None if share is None else (1 - share) * variant.planned.n_tokens


def _speed(variant: VariantResult) -> float | None:
    measured = variant.evidence.get("speed", ()) == ("measured",) and SPEED in variant.metrics
    return variant.metrics[SPEED].median if measured else None


def gaps(result: StudyResult) -> tuple[Gap, ...]:
    """A gap for every comparison whose runs are pairs and have all finished: each of its points needs every seed."""
    found = (_gap(comparison, result) for comparison in result.comparisons)
    return tuple(gap for gap in found if gap is not None and gap.points)


def _gap(comparison: Comparison, result: StudyResult) -> Gap | None:
    if comparison.loss.low is None or not comparison.pairing_ok:
        return None
    by_name = {variant.name: variant for variant in result.variants}
    on = _losses(by_name[comparison.with_variant])
    off = _losses(by_name[comparison.without_variant])
    # Evaluations are spread evenly over the steps of a run, so the k-th of n is at the share k / n in every run.
    lengths = {len(line) for line in (*on.values(), *off.values())}
    if len(lengths) != 1 or set(on) != set(off):
        return None
    n = lengths.pop()
    points = []
    for k in range(n):
        differences = [on[seed][k] - off[seed][k] for seed in sorted(on)]
        mean, low, high = mean_interval(differences, comparison.loss.confidence)
        points.append(GapPoint(share=(k + 1) / n, mean=mean, low=low, high=high))
    return Gap(name=comparison.name, variant=comparison.variant, points=tuple(points))


def _losses(variant: VariantResult) -> dict[int, list[float]]:
    """Seed -> the held-out losses of its run, in the order of its evaluations."""
    return {
        run.seed: [point[LOSS] for point in run.record.curve if LOSS in point] for run in variant.finished if run.record
    }
