"""Figures of what is watched beside the loss: figures over the training, and the loads of experts at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablate.quantities import number
from ablate.report.cleaning import clean, shortened
from ablate.report.figures.canvas import BAD, GRID, INK, MUTED, SAME, SIDES, mark
from ablate.report.watched import MOST_COLUMNS, MOST_ROWS, PANELS, LoadMap, Watched, router_names, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL = 16  # characters of a name inside a figure
STRONGEST = 0.85  # opacity of an expert with no token, and of one with twice the mean or more


def watched_lines(axes: Axes, found: Watched) -> None:
    """The first variant with the span of its runs, the one against it, and all others as pale lines."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    factor = PANELS[found.metric][1]
    for line in found.rest:
        axes.plot(line.n_tokens, [factor * mean for mean in line.means], color=MUTED, lw=0.8, alpha=0.25, zorder=1)
    pair = [found.first] if found.against is None else [found.first, found.against]
    for line, side in zip(pair, SIDES, strict=False):
        y = [factor * mean for mean in line.means]
        lows, highs = ([factor * end for end in ends] for ends in (line.lows, line.highs))
        axes.fill_between(line.n_tokens, lows, highs, color=side.color, alpha=0.15, lw=0)
        axes.plot(line.n_tokens, y, color=side.color, ls=side.dashes, lw=1.7)
        mark(axes, line.n_tokens[-1], y[-1], side.color, side.marker, zorder=5)
        axes.annotate(shortened(clean(line.variant), LABEL), (line.n_tokens[-1], y[-1]), xytext=(7, 0),
                      textcoords="offset points", va="center", fontsize=8.5, color=side.color)  # fmt: skip
    axes.set_xlabel("training tokens")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    end = max(line.n_tokens[-1] for line in (*pair, *found.rest))
    axes.set_xlim(0, 1.3 * end)
    axes.set_ylim(bottom=0)


def load_map(axes: Axes, found: LoadMap) -> None:
    """A row a router, a column a place in the order of loads; at the right the busiest expert's load over the mean."""
    from matplotlib.patches import Rectangle

    routers, columns = spread(len(found.routers), MOST_ROWS), spread(len(found.loads[0]), MOST_COLUMNS)
    for y, i in enumerate(routers):
        for x, j in enumerate(columns):
            away = found.loads[i][j] - 1
            alpha = STRONGEST * min(abs(away), 1.0)
            axes.add_patch(Rectangle((x, y), 0.94, 0.9, color=BAD if away > 0 else SAME, alpha=alpha, lw=0))
    names = router_names(found.routers)
    axes.set_yticks([y + 0.45 for y in range(len(routers))], [names[found.routers[i]] for i in routers], color=INK)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(routers), 0)
    axes.set_xticks([0.47, len(columns) - 0.53], ["busiest", "least busy"], color=INK)
    axes.tick_params(length=0, labelsize=8.5)
    axes.grid(visible=False)
    right = axes.secondary_yaxis("right")
    right.set_yticks([y + 0.45 for y in range(len(routers))], [f"{number(found.loads[i][0], 2)}×" for i in routers])
    right.tick_params(length=0, labelsize=8, labelcolor=INK)
    for spine in (*axes.spines.values(), *right.spines.values()):
        spine.set_color(GRID)
