"""The figure of why something is cheaper: its three factors as stacked bars in logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablate.quantities import short
from ablate.report.cleaning import shortened
from ablate.report.figures.canvas import INK, OPEN, PAPER, SIDES, mark
from ablate.report.figures.waterfall import factor_ticks
from ablate.report.why_faster import CHANNELS, Factors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = dict(zip(CHANNELS, (*(side.color for side in SIDES), OPEN), strict=True))
LABEL = 30
HALF = 0.3


def channel_bars(axes: Axes, found: Sequence[Factors]) -> None:
    """A row each: what saves goes right of 1, what costs goes left, and the diamond is all together."""
    axes.axvline(0, color=INK, lw=0.9, zorder=3)
    upwards = list(reversed(found))
    for y, row in enumerate(upwards):
        ends = {True: 0.0, False: 0.0}
        for channel, log in row.logs.items():
            start = ends[log > 0]
            axes.barh([y], [log], left=start, height=2 * HALF, color=COLORS[channel], lw=0.8, ec=PAPER, zorder=2)
            ends[log > 0] += log
        mark(axes, row.total, y, INK, "D", zorder=4)
    axes.set_yticks(range(len(found)), [shortened(row.name, LABEL) for row in upwards], color=INK)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    low, high = axes.get_xlim()
    low, high = min(low, math.log(0.95)), max(high, math.log(1.05))
    axes.set_xlim(low, high)
    ticks = factor_ticks(low, high)
    axes.set_xticks([math.log(f) for f in ticks], [f"{short(f, 3)}×" for f in ticks])
    axes.set_title("← dearer", loc="left", fontsize=8.5, color=INK)
    axes.set_title("cheaper →", loc="right", fontsize=8.5, color=INK)
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(range(len(found)), [row.said for row in upwards])
    numbers.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    numbers.spines["right"].set_visible(False)
