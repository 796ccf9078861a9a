"""The figure of loss against training time: which variants are beaten in both, and what each component moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablate.attribution.study.compare import LOSS, SPEED, StudyResult
from ablate.report.cleaning import clean, shortened
from ablate.report.ends import reference, sides
from ablate.report.figures.canvas import INK, MUTED, WITH, WITHOUT
from ablate.report.names import emulated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL = 18
SAME = 1e-6  # nats by which variants that compute the same may differ, by the order of their sums
LEAST_SPAN = 1e-3  # nats that the axis shows at least
SMALLEST, LARGEST = 4.0, 11.0  # of a mark, in points


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A variant: seconds of training at its median speed, mean loss, and whether that speed was emulated."""

    name: str
    seconds: float
    loss: float
    parameters: float
    emulated: bool


def points(result: StudyResult) -> tuple[Point, ...]:
    """Every variant whose loss and speed are known."""
    return tuple(
        Point(
            name=v.name,
            seconds=v.planned.n_tokens / v.metrics[SPEED].median,
            loss=v.metrics[LOSS].mean,
            parameters=float(v.planned.cost.get("total_parameters", 0)),
            emulated=emulated(v),
        )
        for v in result.variants
        if LOSS in v.metrics and SPEED in v.metrics
    )


def front(found: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other one of their kind of evidence beats in both time and loss, the fastest first."""
    kept = [p for p in found if not any(_beats(q, p) for q in found)]
    return tuple(sorted(kept, key=lambda p: p.seconds))


def _beats(q: Point, p: Point) -> bool:
    """Whether q is no worse in both and better in one, and of the same kind of evidence."""
    no_worse = q.seconds <= p.seconds and q.loss <= p.loss + SAME
    return q.emulated == p.emulated and no_worse and (q.seconds < p.seconds or q.loss < p.loss - SAME)


def pareto(axes: Axes, result: StudyResult) -> None:
    """Filled: measured, hollow: emulated; size: parameters; arrows: from the reference to what leaves one thing out."""
    from matplotlib.ticker import EngFormatter

    found = {p.name: p for p in points(result)}
    first = found.get(reference(result).name)
    others = list(dict.fromkeys(off if on == reference(result).name else on for on, off in sides(result).values()))
    top = max(p.parameters for p in found.values()) or 1.0
    for p in found.values():
        named = p is first or p.name in others
        size = SMALLEST + (LARGEST - SMALLEST) * math.sqrt(p.parameters / top)
        color = WITH.color if p is first else WITHOUT.color if named else MUTED
        axes.plot([p.seconds], [p.loss], ls="", marker="o", ms=size, mfc="none" if p.emulated else color, mec=color,
                  mew=1.3, alpha=1.0 if named else 0.35, zorder=3 if named else 2)  # fmt: skip
    for name in (name for name in others if name in found):
        p = found[name]
        if first is not None and first.emulated == p.emulated:
            axes.annotate("", (p.seconds, p.loss), (first.seconds, first.loss), zorder=1,
                          arrowprops={"arrowstyle": "->", "color": MUTED, "lw": 0.8})  # fmt: skip
    for p in (found[name] for name in (*others, *([first.name] if first else [])) if name in found):
        left = first is not None and p.seconds < first.seconds
        offset = (-7 if left else 7, -11 if p is first else 4)
        axes.annotate(shortened(clean(p.name), LABEL), (p.seconds, p.loss), xytext=offset, fontsize=8, color=INK,
                      textcoords="offset points", ha="right" if left else "left")  # fmt: skip
    for kind in (False, True):
        line = [p for p in front(tuple(found.values())) if p.emulated == kind]
        axes.plot([p.seconds for p in line], [p.loss for p in line], color=MUTED, lw=0.9, ls=":" if kind else "-")
    axes.margins(x=0.16, y=0.12)
    low, high = min(p.loss for p in found.values()), max(p.loss for p in found.values())
    if high - low < LEAST_SPAN:
        axes.set_ylim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_formatter(EngFormatter(unit="s", sep=" "))
    axes.set_xlabel("training time of a run at the median speed")
    axes.set_ylabel("held-out loss, nats per token")
