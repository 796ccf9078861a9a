"""Figures of noise: runs of one variant beside the effects, and the effect that a number of seeds resolves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablate.report.cleaning import shortened
from ablate.report.figures.canvas import GRID, INK, MUTED, OPEN, PAPER, WITH, mark
from ablate.report.figures.effects import LABEL, VERDICT_COLORS, Row
from ablate.report.noise import Detectable, Strip

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def noise_strip(axes: Axes, found: Sequence[Strip], effects: Sequence[Row], margin: float) -> None:
    """A row for each variant with several runs, and below them the effects as diamonds, on one scale."""
    if margin:
        axes.axvspan(-margin, margin, color=GRID, alpha=0.55, lw=0, zorder=0)
    axes.axvline(0, color=INK, lw=0.9)
    names: list[str] = []
    for strip in found:
        y = -len(names)
        axes.plot(
            strip.deviations, [y] * len(strip.deviations), ls="", marker="o", ms=5, mfc="none", mec=WITH.color, mew=1.2
        )
        names.append(f"runs of {shortened(strip.name, LABEL - 8)}")
    y = -len(names)
    for row in effects:
        mark(axes, row.estimate, y, VERDICT_COLORS.get(row.verdict, OPEN), "D", mec=PAPER)
    names.append("effects")
    axes.set_yticks([-i for i in range(len(names))], names, color=INK)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("run minus its variant's mean, or effect; nats per token")


def detectable_line(axes: Axes, found: Detectable, effects: Sequence[Row]) -> None:
    """Smallest effect over the number of pairs, with what the sd's own interval makes of it; the effects are ticks."""
    axes.fill_between(found.seeds, found.low, found.high, color=WITH.color, alpha=0.14, lw=0)
    axes.plot(found.seeds, found.sizes, color=WITH.color, lw=1.7)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
    axes.set_xticks([], minor=True)
    for row in effects:
        axes.axhline(abs(row.estimate) or 1e-9, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.axvline(found.n_pairs, color=INK, lw=0.9, ls=":")
    low, high = min(found.sizes) / 2, max(found.sizes) * 2
    axes.set_ylim(low, high)
    ticks = [t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if low <= t <= high]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xlabel("paired seeds")
    axes.set_ylabel("smallest effect resolved, nats")
