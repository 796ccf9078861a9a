"""Figures of variants: their loss during training, and what they cost beside the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ablate.attribution.study.compare import SPEED, StudyResult
from ablate.report.curves import Curve
from ablate.report.figures.canvas import GRID, INK, SERIES, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AGAINST = {"tokens": "training tokens", "flops": "training FLOPs"}
MEASURED = {"tokens/s": (SPEED, "speed"), "peak memory": ("peak_memory_bytes", "memory")}  # (metric, its group)
COUNTED = {"FLOP/token": "training_flops_per_token", "KV bytes/token": "kv_cache_bytes_per_token",
           "parameters": "total_parameters", "activated": "activated_parameters"}  # fmt: skip

Costs: TypeAlias = Mapping[str, Mapping[str, tuple[float, bool]]]  # quantity -> variant -> (multiple, emulated)


def loss_lines(axes: Axes, lines: Sequence[Curve], against: str) -> None:
    """Held-out loss, mean and range over seeds, against tokens or FLOPs; the decayed end point is marked."""
    from matplotlib.ticker import EngFormatter

    for line, series in zip(lines, SERIES, strict=False):
        x = [p.n_tokens if against == "tokens" else p.flops for p in line.points]
        axes.plot(x, [p.mean for p in line.points], color=series.color, ls=series.dashes, lw=1.6)
        low, high = [p.low for p in line.points], [p.high for p in line.points]
        axes.fill_between(x, low, high, color=series.color, alpha=0.22, lw=0)
        mark(axes, x[-1], line.points[-1].mean, series, zorder=5)
    axes.set_xlabel(AGAINST[against])
    axes.set_ylabel("held-out loss, nats per token")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlim(left=0)


def cost_marks(axes: Axes, costs: Costs, variants: Sequence[str]) -> None:
    """Speed, arithmetic and memory of each variant as multiples of the reference; emulated ones are hollow."""
    axes.axvline(1, color=INK, lw=0.9)
    for y, values in enumerate(reversed(list(costs.values()))):
        for i, variant in enumerate(variants):
            if variant in values:
                value, hollow = values[variant]
                offset = 0.62 * (i / (len(variants) - 1) - 0.5)
                mark(axes, value, y - offset, SERIES[i], hollow=hollow, ms=6.5)
    for y in range(1, len(costs)):
        axes.axhline(y - 0.5, color=GRID, lw=0.7)
    axes.set_yticks(range(len(costs)), list(costs)[::-1], color=INK)
    axes.set_ylim(-0.5, len(costs) - 0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("multiple of the reference")
    low, high = axes.get_xlim()
    axes.set_xlim(max(0, min(low, 0.9)), max(high, 1.1))


def relative_costs(result: StudyResult) -> Costs:
    """Every quantity in which a variant differs from the reference, as multiples of it.

    Measured and emulated figures are never set against each other: what is of another kind of evidence is left out.
    """
    reference, found = result.variants[0], {}
    for label, (metric, group) in MEASURED.items():
        base = reference.metrics[metric].median if metric in reference.metrics else 0.0
        kind = reference.evidence.get(group, ())
        if base:
            found[label] = {
                v.name: (v.metrics[metric].median / base, "emulated" in kind)
                for v in result.variants
                if metric in v.metrics and v.evidence.get(group, ()) == kind
            }
    for label, key in COUNTED.items():
        if reference.planned.cost.get(key):
            found[label] = {
                v.name: (v.planned.cost[key] / reference.planned.cost[key], False)
                for v in result.variants
                if key in v.planned.cost
            }
    return {label: values for label, values in found.items() if any(multiple != 1 for multiple, _ in values.values())}
