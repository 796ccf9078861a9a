"""Figures of how settings were found: response curves of a screening, and a search's trials and Pareto front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ablate.attribution.study.search import UNITS, TrialResult, pareto_front
from ablate.attribution.study.tuning import Response, Tuned
from ablate.report.cleaning import clean, shortened
from ablate.report.figures.canvas import INK, MUTED, NARROW, WIDE, WITH, WITHOUT, Panel, draw, mark
from ablate.report.tables.search import SearchSection
from ablate.report.tables.tuning import TuningSection
from ablate.runs.searching import Objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 12
TITLE = 40
POINTS = 61  # of a drawn parabola


def responses(section: TuningSection | None) -> tuple[Panel, ...]:
    """A panel for each screened variant, all on one scale of losses."""
    if section is None:
        return ()
    found = section.found
    shown = found.responses[:MOST_PANELS]
    width = WIDE if len(shown) == 1 else NARROW
    return tuple(
        Panel(
            svg=draw(f"tuning{i}", (width, 2.5), partial(_response, found=found, response=response)),
            title=shortened(clean(response.variant), TITLE),
        )
        for i, response in enumerate(shown)
    )


def _response(axes: Axes, found: Tuned, response: Response) -> None:
    """Losses over the learning rate with the fitted parabola; the shared rate dotted, the own one as a line."""
    for p in response.points:
        if p.loss is not None:
            mark(axes, p.learning_rate, p.loss, WITH.color, WITH.marker, hollow=not _used(found, p.octaves))
    if found.fitted is not None and response.level is not None:
        low, high = found.used
        at = [low + (high - low) * i / (POINTS - 1) for i in range(POINTS)]
        slope, curvature = found.slope(response.cell), found.curvature(response.cell)
        fitted = [response.level + slope * x + curvature * x * x for x in at]
        axes.plot([found.shared_rate * 2**x for x in at], fitted, color=WITH.color, lw=1.2, zorder=1)
    axes.axvline(found.shared_rate, color=MUTED, lw=0.9, ls=":")
    axes.axvline(found.rates[response.variant], color=INK, lw=0.9)
    _rate_axis(axes, [p.learning_rate for p in response.points])
    axes.set_xlabel("learning rate")
    axes.set_ylabel("nats per token")


def _used(found: Tuned, octaves: float) -> bool:
    return found.used[0] <= octaves <= found.used[1]


def _rate_axis(axes: Axes, rates: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    ticks = sorted(set(rates))
    ticks = ticks[:: max(1, (len(ticks) + 3) // 4)]
    axes.set_xticks(ticks, [f"{rate:.2g}" for rate in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def front(section: SearchSection | None) -> tuple[Panel, ...]:
    """A panel for the first objective against each other one."""
    if section is None or len(section.found.plan.objectives) < 2:
        return ()
    objectives = section.found.plan.objectives
    pairs = [(0, j) for j in range(1, len(objectives))]
    width = WIDE if len(pairs) == 1 else NARROW
    return tuple(
        Panel(svg=draw(f"front{j}", (width, 2.9), partial(_front, section=section, other=j)))
        for _, j in pairs[:MOST_PANELS]
    )


def _front(axes: Axes, section: SearchSection, other: int) -> None:
    """All complete trials, and those of the front of all objectives as filled marks."""
    from matplotlib.ticker import EngFormatter

    found = section.found
    kept = {one.trial.slot for one in pareto_front(found.trials, found.plan.objectives)}
    for one in found.trials:
        if one.state == "complete":
            on = one.trial.slot in kept
            color = WITH.color if on else MUTED
            mark(axes, one.values[other], one.values[0], color, WITH.marker, hollow=not on, zorder=3 if on else 2)
    names = found.plan.objectives
    axes.set_xlabel(_axis(names[other]))
    axes.set_ylabel(_axis(names[0]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _axis(name: Objective) -> str:
    return f"{name}, {UNITS[name]}"


def settings(section: SearchSection | None) -> tuple[Panel, ...]:
    """A panel for each number that was searched and each group: the first objective of its complete trials."""
    if section is None:
        return ()
    wanted = list(_numbers(section))[:MOST_PANELS]
    width = WIDE if len(wanted) == 1 else NARROW
    return tuple(
        Panel(
            svg=draw(f"settings{i}", (width, 2.5), partial(_settings, section=section, group=group, name=name)),
            title=shortened(clean(f"{group}: {name}"), TITLE),
        )
        for i, (group, name) in enumerate(wanted)
    )


def _numbers(section: SearchSection) -> Iterator[tuple[str, str]]:
    for group in section.found.plan.groups:
        trials = section.found.of(group)
        for name in trials[0].trial.parameters if trials else ():
            values = [one.trial.parameters[name] for one in trials]
            if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) and len(set(values)) > 1:
                yield group, name


def _settings(axes: Axes, section: SearchSection, group: str, name: str) -> None:
    """Complete trials filled; pruned ones hollow, at the loss that they were pruned for."""
    table = section.found.plan.table["parameters"][name]
    points = [(one, _height(one, section.found.plan.objectives)) for one in section.found.of(group)]
    for one, height in points:
        if height is not None:
            side = WITH if one.state == "complete" else WITHOUT
            x = one.trial.parameters[name]
            assert isinstance(x, int | float)
            mark(axes, x, height, side.color, side.marker, hollow=one.state != "complete")
    if table.get("log"):
        _rate_axis(axes, [float(one.trial.parameters[name]) for one, _ in points])
    axes.set_xlabel(clean(name))
    axes.set_ylabel(_axis(section.found.plan.objectives[0]))


def _height(one: TrialResult, objectives: Sequence[Objective]) -> float | None:
    if one.values:
        return one.values[0]
    return one.losses[max(one.losses)] if one.losses and objectives[0] == "loss" else None
