"""Figures of factors: the loss or an effect along a factor, and effects over a ladder of sizes with where they lead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablate.attribution.gain.scale import claim_limit, predict
from ablate.attribution.study.ladder import AtSize, Ladder
from ablate.attribution.study.responses import Response
from ablate.report.cleaning import clean, shortened
from ablate.report.figures.canvas import GRID, INK, MUTED, WITH, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL = 18  # characters of a level under an axis
STEPS = 40  # points of a band


def response_line(axes: Axes, found: Response, margin: float) -> None:
    """Means with their intervals over the levels: on a line where levels are numbers, else side by side."""
    positions = found.factor.positions
    log = positions is not None and min(positions) > 0
    x = list(positions) if positions is not None else [float(i) for i in range(len(found.levels))]
    if found.of:
        axes.axhspan(-margin, margin, color=GRID, alpha=0.55, lw=0, zorder=0)
        axes.axhline(0, color=INK, lw=0.9)
    known = [(at, level) for at, level in zip(x, found.levels, strict=True) if level.mean.estimate is not None]
    if positions is not None:
        axes.plot([at for at, _ in known], [level.mean.estimate or 0.0 for _, level in known], color=WITH.color, lw=1.2,
                  alpha=0.5)  # fmt: skip
    for at, level in known:
        if level.mean.low is not None:
            axes.plot([at, at], [level.mean.low, level.mean.high or 0.0], color=WITH.color, lw=2, solid_capstyle="butt")
        mark(axes, at, level.mean.estimate or 0.0, WITH.color, WITH.marker)
    if log:
        axes.set_xscale("log", base=2)
    labels = [shortened(clean(level.label), LABEL) for level in found.levels]
    many = sum(map(len, labels)) > 40
    axes.set_xticks(x, labels, rotation=20 if many else 0, ha="right" if many else "center")
    axes.set_xticks([], minor=True)
    axes.margins(x=0.12)
    axes.set_xlabel(clean(found.factor.name))
    axes.set_ylabel(f"{'on − off' if found.of else 'held-out loss'}, {found.unit}")


def ladder_line(axes: Axes, found: Ladder) -> None:
    """Effects with intervals over training FLOPs; the trend with its prediction band, dashed where unmeasured."""
    known = [size for size in found.sizes if size.estimate is not None]
    axes.axhline(0, color=INK, lw=0.9)
    axes.set_xscale("log")
    if found.trend is not None:
        _band(axes, found, known)
    for size in known:
        if size.low is not None and size.high is not None:
            axes.plot([size.flops] * 2, [size.low, size.high], color=WITH.color, lw=2, solid_capstyle="butt")
        mark(axes, size.flops, size.estimate or 0.0, WITH.color, WITH.marker)
        axes.annotate(shortened(clean(size.size), LABEL), (size.flops, size.estimate or 0.0), xytext=(6, 5),
                      textcoords="offset points", fontsize=8, color=MUTED)  # fmt: skip
    axes.margins(x=0.15)
    axes.set_xlabel("training FLOPs of a run")
    axes.set_ylabel("ln of compute saved" if "compute" in found.unit else f"on − off, {found.unit}")


def _band(axes: Axes, found: Ladder, known: Sequence[AtSize]) -> None:
    assert found.trend is not None
    first, last = known[0].flops, known[-1].flops
    end = min(claim_limit(found.trend), last * 10**0.5)
    at = [first * (end / first) ** (i / STEPS) for i in range(STEPS + 1)]
    points = [predict(found.trend, flops * (1 - 1e-12)) for flops in at]
    axes.fill_between(at, [p.low for p in points], [p.high for p in points], color=WITH.color, alpha=0.14, lw=0)
    inside = [p for p in points if p.flops <= last * 1.0001]
    beyond = [p for p in points if p.flops >= last * 0.95]
    axes.plot([p.flops for p in inside], [p.estimate for p in inside], color=WITH.color, lw=1.3)
    axes.plot([p.flops for p in beyond], [p.estimate for p in beyond], color=MUTED, lw=1.3, ls=(0, (4, 3)))
    # A band of few sizes can be so wide that no effect would be seen in it.
    reach = max(abs(v) for size in known for v in (size.estimate, size.low, size.high) if v is not None)
    low, high = axes.get_ylim()
    if reach:
        axes.set_ylim(max(low, -3 * reach), min(high, 3 * reach))
