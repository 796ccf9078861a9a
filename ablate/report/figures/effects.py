"""Figures of effects: at the end of the runs, and over the course of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from ablate.attribution.study.compare import Comparison, StudyResult
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.quantities import signed, signed_between
from ablate.report.cleaning import clean, shortened
from ablate.report.curves import Gap
from ablate.report.figures.canvas import BAD, GOOD, GRID, INK, MUTED, OPEN, PAPER, SAME, WITH, mark
from ablate.report.names import arrow, arrow_of
from ablate.report.tables.beside import published_nats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VERDICT_COLORS = {GAIN: GOOD, HARM: BAD, NO_EFFECT: SAME}
LABEL = 26  # characters of a name inside a figure; the tables have it whole
# Index -> its mark, and whether that is a ring. What papers report is a hollow diamond.
MARKS = {"first": ("o", False), "last": ("o", True), "owen": ("D", False)}
BELOW, ABOVE = 0.24, 0.26  # of a row: where what is not the verdict stands, and what papers report
SPREAD = 3  # an interval reaches at most this many times as far as the furthest estimate before it is cut

Theirs: TypeAlias = Mapping[str, tuple[float, ...]]  # component -> what papers report


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One effect as the forest has it, in the metric's unit; `seeds` are the differences of its pairs of runs."""

    name: str
    verdict: str
    estimate: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...] = ()
    others: Mapping[str, float] = field(default_factory=dict)  # further index -> its estimate
    index: str = "owen"  # what the estimate is
    published: tuple[float, ...] = ()  # in the same unit, against the same alternative

    @property
    def values(self) -> tuple[float, ...]:
        """Every point of the row, without the ends of its interval."""
        return (self.estimate, *self.seeds, *self.others.values())


def rows(result: StudyResult) -> tuple[Row, ...]:
    """The effects of a study that have an estimate, the largest gain first."""
    theirs = published_nats(result)
    found = (
        _of_comparisons(result.comparisons, theirs) if result.attribution is None else _of_attribution(result, theirs)
    )
    return tuple(sorted(found, key=lambda row: (row.estimate, row.name)))


def _of_comparisons(comparisons: Sequence[Comparison], theirs: Theirs) -> Iterator[Row]:
    for c in comparisons:
        if c.loss.estimate is not None:
            seeds = tuple(c.differences[s] for s in sorted(c.differences)) if c.pairing_ok else ()
            name = arrow(c) if len(arrow(c)) <= LABEL else c.name
            yield Row(name=name, verdict=c.loss.verdict, estimate=c.loss.estimate, low=c.loss.low,
                      high=c.loss.high, seeds=seeds, published=theirs.get(c.name, ()))  # fmt: skip


def _of_attribution(result: StudyResult, theirs: Theirs) -> Iterator[Row]:
    assert result.attribution is not None
    for name, effect in result.attribution.effects.items():
        main = effect.verdict_from or "owen"
        shown = effect.indices.get(main)
        if shown is None or shown.estimate is None:
            continue
        others = {
            index: number.estimate
            for index, number in effect.indices.items()
            if index in MARKS and index != main and number.estimate is not None
        }
        long = arrow_of(result, name)
        yield Row(name=long if len(long) <= LABEL else name, verdict=effect.verdict, estimate=shown.estimate,
                  low=shown.low, high=shown.high, others=others, index=main,
                  published=theirs.get(name, ()))  # fmt: skip


def forest(axes: Axes, shown: Sequence[Row], margin: float, unit: str) -> None:
    """A row for each effect, with its numbers at the right; the margin is a band and long intervals end in arrows."""
    from matplotlib.ticker import MaxNLocator

    limit = SPREAD * max([abs(v) for row in shown for v in row.values] + [2 * margin, 1e-9])
    if margin:
        axes.axvspan(-margin, margin, color=GRID, alpha=0.55, lw=0, zorder=0)
    axes.axvline(0, color=INK, lw=0.9, zorder=1)
    upwards = list(reversed(shown))
    for y, row in enumerate(upwards):
        _effect(axes, y, row, limit)
    axes.set_yticks(range(len(shown)), [shortened(clean(row.name), LABEL) for row in upwards], color=INK)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.set_xlabel(f"with − without, {unit}")
    axes.set_title("← gain", loc="left", fontsize=8.5, color=GOOD)
    axes.set_title("harm →", loc="right", fontsize=8.5, color=BAD)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    # Zero stays in view, with air at both ends.
    low, high = axes.get_xlim()
    span = max(high - low, 1e-9)
    axes.set_xlim(min(low, -0.08 * span), max(high, 0.08 * span))
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(range(len(shown)), [_numbers(row) for row in upwards])
    numbers.tick_params(length=0, labelsize=8, labelcolor=INK)
    numbers.spines["right"].set_visible(False)


def _numbers(row: Row) -> str:
    ends = "" if row.low is None else f"\n{signed_between(row.low, row.high, 3)}"
    return f"{signed(row.estimate, 3)}{ends}"


def _effect(axes: Axes, y: float, row: Row, limit: float) -> None:
    color = VERDICT_COLORS.get(row.verdict, OPEN)
    axes.plot(row.seeds, [y - BELOW] * len(row.seeds), ls="", marker="o", ms=3.4, mfc="none", mec=color, mew=0.8)
    for index, value in row.others.items():
        shape, hollow = MARKS[index]
        mark(axes, value, y - BELOW, MUTED, shape, hollow=hollow, ms=4.6)
    if row.low is not None and row.high is not None:
        ends = max(row.low, -limit), min(row.high, limit)
        axes.plot(ends, [y, y], color=color, lw=2.2, solid_capstyle="butt")
        for end, whole, arrow in zip(ends, (row.low, row.high), "<>", strict=True):
            if end != whole:
                mark(axes, end, y, color, arrow)
    for value in row.published:
        at = min(max(value, -limit), limit)
        shape = "D" if at == value else ">" if value > 0 else "<"
        mark(axes, at, y + ABOVE, MUTED, shape, hollow=True, ms=4.6, mew=1.0)
    shape, hollow = MARKS[row.index]
    edge: dict[str, Any] = {} if hollow else {"mec": PAPER}
    mark(axes, row.estimate, y, color, shape, hollow=hollow, ms=6.5, **edge)


def gap_line(axes: Axes, gap: Gap, margin: float, limits: tuple[float, float]) -> None:
    """One effect over the course of the runs, with its interval; the margin is a band, the finished end is marked."""
    if margin:
        axes.axhspan(-margin, margin, color=GRID, alpha=0.55, lw=0, zorder=0)
    axes.axhline(0, color=INK, lw=0.9)
    x = [100 * p.share for p in gap.points]
    low, high = [p.low for p in gap.points], [p.high for p in gap.points]
    axes.fill_between(x, low, high, color=WITH.color, alpha=0.2, lw=0)
    axes.plot(x, [p.mean for p in gap.points], color=WITH.color, lw=1.6, alpha=0.6)
    mark(axes, x[-1], gap.points[-1].mean, WITH.color, WITH.marker)
    axes.set_xlabel("share of the run, %")
    axes.set_ylabel("with − without, nats")
    axes.set_xlim(0, 102)
    axes.set_ylim(*limits)
