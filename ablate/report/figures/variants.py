"""Figures of variants: their loss during training, and what they cost beside the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ablate.attribution.study.compare import SPEED, StudyResult
from ablate.report.cleaning import clean, shortened
from ablate.report.curves import Curve
from ablate.report.ends import drawn
from ablate.report.figures.canvas import INK, MUTED, SIDES, WITH, Series, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AGAINST = {"tokens": "training tokens", "flops": "training FLOPs", "seconds": "seconds of training"}
MEASURED = {"tokens/s": (SPEED, "speed"), "peak memory": ("peak_memory_bytes", "memory")}  # (metric, its group)
COUNTED = {"FLOP/token": "training_flops_per_token", "KV bytes/token": "kv_cache_bytes_per_token",
           "parameters": "total_parameters", "activated": "activated_parameters"}  # fmt: skip
UNDECAYED = 0.4  # opacity of what lies before the learning rate decays: no finished model
LABEL = 22  # characters of a name inside a figure

Costs: TypeAlias = Mapping[str, Mapping[str, tuple[float, bool]]]  # quantity -> variant -> (multiple, emulated)


def loss_lines(axes: Axes, pair: Sequence[Curve], rest: Sequence[Curve], against: str, top: float) -> None:
    """Held-out loss of the two sides of one comparison over tokens or FLOPs, before the pale lines of all others.

    Means over seeds with their range, up to the loss `top`. What lies before the decay of the learning rate is faded.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for i, line in enumerate(rest):
        x = _positions(line, against)
        axes.plot(x, [p.mean for p in line.points], color=MUTED, lw=0.8, alpha=0.25, zorder=1, gid=f"rest-{i}")
    for i, (line, side) in enumerate(zip(pair, SIDES, strict=False)):
        _one(axes, line, side, against, f"side{i}")
    axes.set_xlabel(AGAINST[against])
    axes.set_ylabel("held-out loss, nats per token")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(left=0)
    axes.set_ylim(top=top)


def _positions(line: Curve, against: str) -> list[float]:
    if against == "seconds":
        assert line.tokens_per_s is not None
        return [p.n_tokens / line.tokens_per_s for p in line.points]
    return [p.n_tokens if against == "tokens" else p.flops for p in line.points]


def _one(axes: Axes, line: Curve, side: Series, against: str, name: str) -> None:
    """`name`: what the identifiers of its parts in the drawing begin with, by which the page can hide them."""
    x, y = _positions(line, against), [p.mean for p in line.points]
    n = line.n_undecayed
    low, high = [p.low for p in line.points], [p.high for p in line.points]
    axes.fill_between(x, low, high, color=side.color, alpha=0.15, lw=0, gid=f"{name}-band")
    axes.plot(x[:n], y[:n], color=side.color, ls=side.dashes, lw=1.4, alpha=UNDECAYED, gid=f"{name}-before")
    # The decaying part begins at the last point before it, so that the line is whole.
    rest = slice(max(n - 1, 0), None)
    axes.plot(x[rest], y[rest], color=side.color, ls=side.dashes, lw=1.8, gid=f"{name}-decay")
    mark(axes, x[-1], y[-1], side.color, side.marker, zorder=5, gid=f"{name}-end")


def cost_marks(axes: Axes, values: Mapping[str, tuple[float, bool]]) -> None:
    """One quantity of each variant as a multiple of the reference's; emulated ones are hollow."""
    axes.axvline(1, color=INK, lw=0.9)
    names = list(values)[::-1]
    for y, name in enumerate(names):
        multiple, hollow = values[name]
        mark(axes, multiple, y, WITH.color, WITH.marker, hollow=hollow)
    axes.set_yticks(range(len(names)), [shortened(clean(name), LABEL) for name in names], color=INK)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("multiple of the reference")
    low, high = axes.get_xlim()
    axes.set_xlim(max(0, min(low, 0.9)), max(high, 1.1))


def relative_costs(result: StudyResult) -> Costs:
    """Every quantity in which a drawn variant differs from the reference, as multiples of it.

    Measured and emulated figures are never set against each other: what is of another kind of evidence is left out.
    """
    reference, found, shown = result.variants[0], {}, drawn(result)
    for label, (metric, group) in MEASURED.items():
        base = reference.metrics[metric].median if metric in reference.metrics else 0.0
        kind = reference.evidence.get(group, ())
        if base:
            found[label] = {
                v.name: (v.metrics[metric].median / base, "emulated" in kind)
                for v in result.variants
                if v.name in shown and metric in v.metrics and v.evidence.get(group, ()) == kind
            }
    for label, key in COUNTED.items():
        if reference.planned.cost.get(key):
            found[label] = {
                v.name: (v.planned.cost[key] / reference.planned.cost[key], False)
                for v in result.variants
                if v.name in shown and key in v.planned.cost
            }
    return {label: values for label, values in found.items() if any(multiple != 1 for multiple, _ in values.values())}
