"""The picture of the answer: a row a change in three panels, one for each kind of evidence that is a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ablate.attribution.verdicts import GAIN, HARM
from ablate.evidence.changes.content import AnswerContent, Change
from ablate.evidence.changes.exact import BYTES, CACHE, DENSE, FLOPS
from ablate.quantities import between, listed, number, scaled
from ablate.report.figures.canvas import INK, MUTED, OPEN, PAPER, WITH, Panel, draw, mark
from ablate.report.figures.effects import VERDICT_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, ROW = 3.9, 0.36  # inches of a panel and of a row
SHAPES = {FLOPS: "o", CACHE: "s", DENSE: "^", BYTES: "v"}
CANDIDATES = (0.5, 2, 10, 5, 0.2, 0.1, 20, 0.8, 1.5, 1.2, 0.9, 1.1, 0.95, 1.05, 0.98, 1.02)  # the roundest first
SPREAD = 2.5  # an interval reaches at most this factor beyond the furthest estimate before it is cut


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One factor of a row, above 1 better, with its interval or range."""

    value: float
    low: float | None = None
    high: float | None = None
    color: str = WITH.color
    shape: str = "D"
    hollow: bool = False
    size: float = 6.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A change: its marks from the smallest size on, and what stands at the right, or in their place."""

    name: str
    marks: tuple[Mark, ...]
    said: str


def panels(content: AnswerContent) -> tuple[Panel, ...]:
    """Exact, simulated, measured; a panel of which nothing is known has its words alone."""
    parts: tuple[tuple[str, str, str, Callable[[Change], Row]], ...] = (
        ("exact", "Arithmetic and cache (exact)", f"times less with the change, {content.preset}", _exact),
        ("simulated", "Speed on the cluster (simulated)", "tokens a second, with over without",
         partial(_simulated, content=content)),
        ("measured", "Learning (measured here)", _measured_unit(content), _measured),
    )  # fmt: skip
    return tuple(_panel(name, title, unit, [make(change) for change in content.changes])
                 for name, title, unit, make in parts)  # fmt: skip


def _measured_unit(content: AnswerContent) -> str:
    sizes = sorted({each.parameters for change in content.changes for each in change.sizes})
    return f"tokens saved for the same loss, at {listed(map(scaled, sizes))}" if sizes else "not measured"


def _panel(name: str, title: str, unit: str, rows: Sequence[Row]) -> Panel:
    height = 0.75 + ROW * len(rows)
    return Panel(svg=draw(f"answer-{name}", (WIDTH, height), partial(factors, rows=rows, unit=unit)), title=title)


def _exact(change: Change) -> Row:
    """Savings: without over with. What does not change is no mark."""
    found = [change.exact.figure(name) for name in SHAPES]
    marks = tuple(
        Mark(value=f.off / f.on, shape=SHAPES[f.name], size=5.5) for f in found if f and f.on and f.on != f.off
    )
    if change.exact.reason:
        return Row(name=change.name, marks=(), said="not known")
    said = ", ".join(f"{number(m.value, 2 if m.value < 10 else 1)}×" for m in marks)
    return Row(name=change.name, marks=marks, said=said or "unchanged")


def _simulated(change: Change, content: AnswerContent) -> Row:
    found = change.simulated
    if found is None:
        return Row(name=change.name, marks=(), said="not simulated" if content.speeds.reason else "no part of it")
    faster = found.factor.estimate > 1
    color = VERDICT_COLORS[GAIN if faster else HARM] if found.resolved else OPEN
    one = Mark(value=found.factor.estimate, low=found.factor.low, high=found.factor.high, color=color, hollow=True)
    return Row(name=change.name, marks=(one,), said=_numbers(one))


def _measured(change: Change) -> Row:
    """A mark a size, the largest last and in numbers; bounds and what has no cost are words."""
    if change.neutral:
        shown = change.equality is not None and change.equality.holds
        return Row(name=change.name, marks=(), said="equal, shown" if shown else "equal by design")
    known = [each for each in change.sizes if each.tokens is not None and each.tokens.estimate is not None]
    marks = tuple(
        Mark(
            value=math.exp(each.tokens.estimate), low=math.exp(each.tokens.low), high=math.exp(each.tokens.high),
            color=VERDICT_COLORS.get(each.tokens.verdict.partition(",")[0], OPEN),
            size=6.5 if each is known[-1] else 4.5,
        )
        for each in known
        if each.tokens is not None and each.tokens.estimate is not None
    )  # fmt: skip
    if not marks:
        bound = change.largest is not None and change.largest.tokens is not None
        return Row(name=change.name, marks=(), said="only a bound" if bound else "not measured")
    return Row(name=change.name, marks=marks, said=_numbers(marks[-1]))


def _numbers(one: Mark) -> str:
    return f"{number(one.value, 2)}×\n{between(one.low, one.high, 2)}"


def factors(axes: Axes, rows: Sequence[Row], unit: str) -> None:
    """Rows of factors on a logarithmic axis, 1 being no change, their numbers at the right."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.axvline(1, color=INK, lw=0.9, zorder=1)
    upwards = list(reversed(rows))
    most = max([abs(math.log(m.value)) for row in rows for m in row.marks] + [math.log(1.1)])
    limit = math.exp(most) * SPREAD
    for y, row in enumerate(upwards):
        for k, each in enumerate(row.marks):
            # Several sizes lie under each other, the largest in the row's middle.
            _one(axes, y + 0.22 * (k - len(row.marks) + 1) * (each.low is not None), each, limit)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.94), max(high, 1.06))
    axes.xaxis.set_major_locator(FixedLocator(ticks(*axes.get_xlim())))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows)), [row.name for row in upwards], color=INK)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.set_xlabel(unit)
    axes.grid(axis="y", visible=False)
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(range(len(rows)), [row.said for row in upwards])
    numbers.tick_params(length=0, labelsize=8, labelcolor=INK)
    for label, row in zip(numbers.get_yticklabels(), upwards, strict=True):
        label.set_color(INK if row.marks else MUTED)
    numbers.spines["right"].set_visible(False)


def ticks(low: float, high: float) -> list[float]:
    """Round factors inside the axis, 1 among them, of which no two are nearer than a sixth of it."""
    apart, kept = math.log(high / low) / 6, [1.0]
    for each in CANDIDATES:
        if low <= each <= high and all(abs(math.log(each / other)) >= apart for other in kept):
            kept.append(each)
    return sorted(kept)


def _one(axes: Axes, y: float, one: Mark, limit: float) -> None:
    if one.low is not None and one.high is not None:
        ends = max(one.low, 1 / limit), min(one.high, limit)
        style = (0, (2, 1)) if one.hollow else "-"
        axes.plot(ends, [y, y], color=one.color, lw=2.2 if one.size > 5 else 1.4, ls=style)
        for end, whole, arrow in zip(ends, (one.low, one.high), "<>", strict=True):
            if end != whole:
                mark(axes, end, y, one.color, arrow)
    face: dict[str, Any] = {"mfc": PAPER} if one.hollow else {}
    mark(axes, one.value, y, one.color, one.shape, hollow=one.hollow, ms=one.size, zorder=4, **face)
