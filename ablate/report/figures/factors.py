"""Figures of factors: the loss or an effect along a factor, and effects over a ladder of sizes with where they lead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablate.attribution.gain.scale import claim_limit, predict
from ablate.attribution.results import Number
from ablate.attribution.study.ladder import AtSize, Ladder
from ablate.attribution.study.responses import LevelResponse, Response
from ablate.report.cleaning import clean, shortened
from ablate.report.figures.canvas import GRID, INK, MUTED, WITH, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL = 18  # characters of a level under an axis
STEPS = 40  # points of a band


def response_line(axes: Axes, found: Response, margin: float) -> None:
    """Each level: an effect as it is, a loss as its difference from the reference level, both taken within seeds.

    On a line where levels are numbers, else side by side.
    """
    positions = found.factor.positions
    log = positions is not None and min(positions) > 0
    x = list(positions) if positions is not None else [float(i) for i in range(len(found.levels))]
    if margin:
        axes.axhspan(-margin, margin, color=GRID, alpha=0.55, lw=0, zorder=0)
    axes.axhline(0, color=INK, lw=0.9)
    shown = [_shown(level, of_loss=not found.of) for level in found.levels]
    known = [(at, value) for at, value in zip(x, shown, strict=True) if value.estimate is not None]
    if positions is not None:
        axes.plot([at for at, _ in known], [v.estimate or 0.0 for _, v in known], color=WITH.color, lw=1.2, alpha=0.5)
    for at, value in known:
        if value.low is not None:
            axes.plot([at, at], [value.low, value.high or 0.0], color=WITH.color, lw=2, solid_capstyle="butt")
        mark(axes, at, value.estimate or 0.0, WITH.color, WITH.marker, hollow=value.low is None)
    if log:
        axes.set_xscale("log", base=2)
    labels = [shortened(clean(level.label), LABEL) for level in found.levels]
    many = sum(map(len, labels)) > 40
    axes.set_xticks(x, labels, rotation=20 if many else 0, ha="right" if many else "center")
    axes.set_xticks([], minor=True)
    axes.margins(x=0.12)
    axes.set_xlabel(clean(found.factor.name))
    axes.set_ylabel("on − off, nats" if found.of else f"loss − that of {shortened(clean(found.levels[0].label), 10)}")


def _shown(level: LevelResponse, *, of_loss: bool) -> Number:
    if not of_loss:
        return level.mean
    d = level.difference
    return Number(estimate=0.0) if d is None else Number(estimate=d.estimate, low=d.low, high=d.high)


def ladder_line(axes: Axes, found: Ladder) -> None:
    """Effects with intervals over training FLOPs; the trend with its prediction band, dashed where unmeasured."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

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
    axes.margins(x=0.2)
    axes.xaxis.set_major_locator(LogLocator(numticks=4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())
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
