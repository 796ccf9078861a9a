"""The chart of what ranks did when: a row a rank, variants below each other on one axis of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ablate.report.cleaning import shortened
from ablate.report.figures.canvas import GOOD, GRID, INK, MUTED, PAPER, VARIABLES, WITH, WITHOUT
from ablate.report.tables.timeline import Recorded
from ablate.schedules.timeline import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT, HEADING, ROW = 0.74, 0.95, 0.26  # of a bar and of a variant's name in rows; inches of a row
LABEL = 46


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How a kind of span is drawn: its part of a row's height, from the bottom. Colours differ in lightness too."""

    name: str
    color: str
    opacity: float = 1.0
    bottom: float = 0.0
    height: float = 1.0

    @property
    def variable(self) -> str:
        """Of the style sheet."""
        return VARIABLES[self.color]


RECEIVE = Look(name="waiting for another stage", color=MUTED, bottom=0.42, height=0.16)
SEND = Look(name="sending", color=INK, bottom=0.25, height=0.5)
LOOKS = {
    "F": Look(name="forward", color=WITH.color),
    "B": Look(name="backward", color=WITHOUT.color),
    "I": Look(name="backward, inputs", color=WITHOUT.color, opacity=0.55),
    "W": Look(name="backward, weights", color=GOOD),
    "RF": RECEIVE, "RB": RECEIVE, "SF": SEND, "SB": SEND,
    "D": Look(name="waiting for dispatched rows", color=INK, opacity=0.85, bottom=0.55, height=0.45),
    "C": Look(name="waiting for combined rows", color=INK, opacity=0.85, height=0.45),
    "G": Look(name="all-reduce", color=MUTED, opacity=0.8, bottom=0.25, height=0.5),
    "O": Look(name="optimizer", color=GOOD, opacity=0.45, bottom=0.25, height=0.5),
}  # fmt: skip


def kinds(found: Iterable[Recorded]) -> tuple[Look, ...]:
    """How what was recorded looks, in the order of a legend."""
    there = {span.kind for each in found for spans in each.step.ranks for span in spans}
    return tuple(dict.fromkeys(look for kind, look in LOOKS.items() if kind in there))


def height(found: Sequence[Recorded]) -> float:
    """Inches of the chart."""
    return 0.5 + ROW * sum(each.timeline.n_ranks + HEADING for each in found)


def gantt(axes: Axes, found: Sequence[Recorded]) -> None:
    """Of each variant the recorded step of median length, from its first action on; milliseconds."""
    top, ticks, longest = 0.0, list[tuple[float, str]](), 0.0
    for each in found:
        style: dict[str, Any] = {"fontsize": 8.5, "fontweight": "bold", "color": INK, "va": "center"}
        axes.annotate(shortened(each.name, LABEL), (0, -top - HEADING / 2), **style)
        top += HEADING
        start = min(span.start_s for spans in each.step.ranks for span in spans)
        for rank, spans in enumerate(each.step.ranks):
            end = max(span.end_s for span in spans)
            longest = max(longest, 1000 * (end - start))
            _row(axes, -top - 1 + (1 - HEIGHT) / 2, spans, start)
            ticks.append((-top - 0.5, f"rank {rank}"))
            top += 1
    axes.set_ylim(-top - 0.1, 0)
    axes.set_xlim(0, longest * 1.01)
    axes.set_yticks([y for y, _ in ticks], [name for _, name in ticks], color=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("milliseconds of a step")


def _row(axes: Axes, bottom: float, spans: Sequence[Span], start: float) -> None:
    """One collection for each look, the narrow ones above."""
    for look in dict.fromkeys(LOOKS.values()):
        shown = [span for span in spans if LOOKS[span.kind] is look]
        if shown:
            axes.broken_barh(
                [(1000 * (span.start_s - start), 1000 * span.seconds) for span in shown],
                (bottom + HEIGHT * look.bottom, HEIGHT * look.height),
                color=look.color, alpha=look.opacity, lw=0.4 if look.height == 1 else 0,
                ec=PAPER if look.height == 1 else GRID, zorder=2 if look.height == 1 else 3,
            )  # fmt: skip
