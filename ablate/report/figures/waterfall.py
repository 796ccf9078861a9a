"""The waterfall: the dense end, each component in order, the full recipe; gains go down, harms go up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.quantities import short
from ablate.report.cleaning import shortened
from ablate.report.figures.canvas import BAD, GOOD, INK, MUTED, OPEN, SAME
from ablate.report.waterfall import COST, ENDS, Step, Waterfall

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {GAIN: GOOD, HARM: BAD, NO_EFFECT: SAME}
FACTORS = (0.1, 0.2, 0.25, 0.33, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 6, 8, 10, 20, 50, 100)
LEAST_GAP = 1 / 7  # between two ticks, of the whole range
HALF = 0.36  # of a bar's width
CROWDED, SHORT, LONGEST = 9, 9, 14  # bars, and characters: beyond, names are turned, and cut


def waterfall_bars(axes: Axes, found: Waterfall) -> None:
    """Floating bars in ln of cost or in nats, with the Owen interval at each end and the two one-at-a-time figures."""
    steps = found.steps
    end = len(steps) + 1
    axes.axhline(0, color=INK, lw=0.9, zorder=1)
    _end(axes, 0, 0.0)
    for x, step in enumerate(steps, start=1):
        axes.plot([x - 1 + HALF, x - HALF], [step.before] * 2, color=MUTED, lw=0.8)
        _step(axes, x, step, found)
    axes.plot([end - 1 + HALF, end - HALF], [found.total] * 2, color=MUTED, lw=0.8)
    axes.bar([end], [found.total], width=2 * HALF, color=INK, alpha=0.75, lw=0, zorder=2)
    _say(axes, end, max(found.total, 0.0), found.said(found.total))
    words = dict(zip(ENDS, ("dense", "full"), strict=True))
    first, last = (words.get(end) or shortened(end, LONGEST) for end in found.ends)
    names = [first, *(step.name for step in steps), last]
    turned = len(names) > CROWDED or max(map(len, names)) > SHORT
    axes.set_xticks(
        range(len(names)), names, color=INK, rotation=30 if turned else 0, ha="right" if turned else "center"
    )
    axes.set_xlim(-0.6, end + 0.6)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)
    axes.set_ylabel(f"{found.unit}, × {first}" if found.unit == COST else f"loss minus that of {first}, nats")
    if found.unit == COST:
        low, high = axes.get_ylim()
        ticks = factor_ticks(low, high)
        axes.set_yticks([math.log(f) for f in ticks], [f"{short(f, 3)}×" for f in ticks])


def factor_ticks(low: float, high: float) -> Sequence[float]:
    """Round factors between the ends, which are logarithms; 1 is always among them."""
    kept = [1.0]
    for side in (FACTORS[FACTORS.index(1) + 1 :], FACTORS[: FACTORS.index(1)][::-1]):
        last = 0.0
        for factor in side:
            log = math.log(factor)
            if low <= log <= high and abs(log - last) >= LEAST_GAP * (high - low):
                kept.append(factor)
                last = log
    return sorted(kept)


def _end(axes: Axes, x: float, y: float) -> None:
    axes.plot([x - HALF, x + HALF], [y, y], color=INK, lw=3, solid_capstyle="butt", zorder=3)


def _step(axes: Axes, x: int, step: Step, found: Waterfall) -> None:
    color = COLORS.get(step.verdict, OPEN)
    axes.bar([x], [step.size], bottom=step.before, width=2 * HALF, color=color, lw=0, alpha=0.9, zorder=2)
    top = max(step.before, step.after)
    if step.low is not None and step.high is not None:
        ends = step.before + step.low, step.before + step.high
        axes.plot([x, x], ends, color=INK, lw=1.1, zorder=4)
        for y in ends:
            axes.plot([x - 0.1, x + 0.1], [y, y], color=INK, lw=1.1, zorder=4)
        top = max(top, *ends)
    for value, side in ((step.first, -1), (step.last, 1)):
        if value is not None:
            at = step.before + value
            outer = x + side * (HALF + 0.1)
            axes.plot([outer - side * 0.22, outer], [at, at], color=MUTED, lw=1.4, alpha=0.8, zorder=5)
            top = max(top, at)
    _say(axes, x, top, found.said(step.size))


def _say(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8, color=INK)
