"""Figures of interactions: every pair in a triangle, and four-point figures of the strongest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablate.quantities import signed
from ablate.report.cleaning import clean
from ablate.report.figures.canvas import BAD, GOOD, GRID, INK, MUTED, SIDES, mark
from ablate.report.interplay import FourPoints, Interplay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAINTEST, STRONGEST = 0.06, 0.75  # opacity of a pair of no size and of the largest


def triangle(axes: Axes, found: Interplay) -> None:
    """A square for each pair: colour is the sign and strength, a dot says resolved, a stroke that it has no number."""
    from matplotlib.patches import Rectangle

    names = found.components
    largest = abs(found.known[0].number.estimate or 0.0) or 1.0
    for pair in found.pairs:
        i, j = sorted(names.index(name) for name in pair.components)
        value = pair.number.estimate
        if value is None:
            axes.plot([i - 0.3, i + 0.3], [j + 0.3, j - 0.3], color=MUTED, lw=0.9)
            continue
        alpha = FAINTEST + (STRONGEST - FAINTEST) * abs(value) / largest
        color = GOOD if value < 0 else BAD
        axes.add_patch(Rectangle((i - 0.48, j - 0.48), 0.96, 0.96, color=color, alpha=alpha, lw=0))
        axes.text(i, j, signed(value, 3), ha="center", va="center", fontsize=8, color=INK)
        if pair.components in found.resolved:
            axes.plot([i + 0.36], [j - 0.34], ls="", marker="o", ms=5, color=INK)
    n = len(names)
    axes.set_xticks(range(n - 1), [clean(name) for name in names[:-1]], color=INK)
    axes.set_yticks(range(1, n), [clean(name) for name in names[1:]], color=INK)
    axes.set_xlim(-0.55, n - 1.45)
    axes.set_ylim(n - 0.45, 0.45)
    axes.tick_params(length=0, labelsize=8.5)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_color(GRID)


def four_points(axes: Axes, found: FourPoints) -> None:
    """Loss over the first component, a line for each level of the second: lines that are not parallel interact."""
    first, second = (clean(name) for name in found.components)
    for on, side in zip((True, False), SIDES, strict=True):
        values = [found.means[False, on], found.means[True, on]]
        axes.plot([0, 1], values, color=side.color, ls=side.dashes, lw=1.7)
        for x, y in enumerate(values):
            mark(axes, x, y, side.color, side.marker)
        axes.annotate(f"{second} {'on' if on else 'off'}", (1, values[1]), xytext=(8, 0), textcoords="offset points",
                      va="center", fontsize=8.5, color=side.color)  # fmt: skip
    axes.set_xticks([0, 1], [f"{first} off", f"{first} on"], color=INK)
    axes.set_xlim(-0.2, 1.75)
    axes.margins(y=0.2)
    axes.set_ylabel("mean loss, nats")
