"""Figures of effects: at the end of the runs, and over the course of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablate.attribution.study.compare import Comparison
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.report.cleaning import clean, shortened
from ablate.report.curves import Gap
from ablate.report.figures.canvas import BAD, GOOD, GRID, INK, MAX_LINES, OPEN, PAPER, SAME, SERIES, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VERDICT_COLORS = {GAIN: GOOD, HARM: BAD, NO_EFFECT: SAME}
LABEL = 26  # characters of a name inside a figure; the tables have it whole


def forest(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    """A row for each effect: interval, estimate, and each seed's difference; the margin is a band."""
    margin = comparisons[0].loss.margin
    if margin:
        axes.axvspan(-margin, margin, color=GRID, alpha=0.55, lw=0, zorder=0)
    axes.axvline(0, color=INK, lw=0.9, zorder=1)
    for y, c in enumerate(reversed(comparisons)):
        _effect(axes, y, c)
    names = [shortened(clean(c.name), LABEL) for c in reversed(comparisons)]
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.set_xlabel("loss with − loss without, nats per token")
    axes.set_title("← gain", loc="left", fontsize=8.5, color=GOOD)
    axes.set_title("harm →", loc="right", fontsize=8.5, color=BAD)
    axes.grid(axis="y", visible=False)
    # Zero stays in view, with air at both ends.
    low, high = axes.get_xlim()
    span = max(high - low, 1e-9)
    axes.set_xlim(min(low, -0.08 * span), max(high, 0.08 * span))


def _effect(axes: Axes, y: float, c: Comparison) -> None:
    color = VERDICT_COLORS.get(c.loss.verdict, OPEN)
    if c.pairing_ok:
        seeds = [c.differences[s] for s in sorted(c.differences)]
        axes.plot(seeds, [y - 0.24] * len(seeds), ls="", marker="o", ms=3.4, mfc="none", mec=color, mew=0.8)
    if c.loss.low is not None and c.loss.high is not None:
        axes.plot([c.loss.low, c.loss.high], [y, y], color=color, lw=2.2, solid_capstyle="butt")
    axes.plot([c.loss.estimate or 0.0], [y], ls="", marker="D", ms=6.5, mfc=color, mec=PAPER, mew=0.8)


def gap_lines(axes: Axes, gaps: Sequence[Gap], variants: Sequence[str], margin: float) -> None:
    """Each effect over the course of the runs, with its interval; the margin is a band."""
    if margin:
        axes.axhspan(-margin, margin, color=GRID, alpha=0.55, lw=0, zorder=0)
    axes.axhline(0, color=INK, lw=0.9)
    for gap in gaps:
        # A comparison looks as its variant does in the other figures.
        series = SERIES[variants.index(gap.variant) % MAX_LINES]
        x = [100 * p.share for p in gap.points]
        low, high = [p.low for p in gap.points], [p.high for p in gap.points]
        axes.fill_between(x, low, high, color=series.color, alpha=0.2, lw=0)
        axes.plot(x, [p.mean for p in gap.points], color=series.color, ls=series.dashes, lw=1.6)
        mark(axes, x[-1], gap.points[-1].mean, series)
    axes.set_xlabel("share of the run, %")
    axes.set_ylabel("with − without, nats")
    axes.set_xlim(0, 102)
