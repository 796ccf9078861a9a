"""The figures of a report as inline SVG, legible in light and dark.

A comparison has a panel of its own, so that a study of any size is drawn in two colours and no variant is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from ablate.attribution.study.compare import StudyResult
from ablate.attribution.study.ladder import Ladder
from ablate.report.cleaning import clean
from ablate.report.content import ReportContent
from ablate.report.curves import Curve, Gap
from ablate.report.ends import reference, sides
from ablate.report.figures.canvas import NARROW, WIDE, Panel, draw
from ablate.report.figures.channels import channel_bars
from ablate.report.figures.effects import forest, gap_line, rows
from ablate.report.figures.factors import ladder_line, response_line
from ablate.report.figures.gantt import gantt, height
from ablate.report.figures.interactions import four_points, triangle
from ablate.report.figures.noise import detectable_line, noise_strip
from ablate.report.figures.pareto import pareto, points
from ablate.report.figures.settings import front, responses, settings
from ablate.report.figures.variants import AGAINST, cost_marks, loss_lines, relative_costs
from ablate.report.figures.watched import load_map, watched_lines
from ablate.report.figures.waterfall import waterfall_bars
from ablate.report.names import arrow
from ablate.report.noise import MOST_ROWS, detectable, strips
from ablate.report.tables.ladder import COMPUTE
from ablate.report.watched import MOST_ROWS as MOST_ROUTERS
from ablate.report.watched import PANELS, LoadMap, Watched
from ablate.report.why_faster import Factors

Point = TypeVar("Point")

BEGINNING = 5  # the first of so many parts of a run, where losses fall by nats, does not set the scale of a panel

UNITS = {COMPUTE: "compute saved"}  # over a panel


def all_figures(content: ReportContent) -> dict[str, tuple[Panel, ...]]:
    """Name -> panels of every figure; empty where the content has no data for it."""
    result = content.result
    found = {"waterfall": _waterfall(content), "interactions": _interactions(content), "interplay": _interplay(content)}
    found |= {"pareto": _pareto(result), "channels": _channels(content), "published": _published(content)}
    found |= {"noise": _noise(result), "detectable": _detectable(result)}
    found |= {"effects": _forest(result), "gaps": _gaps(content.gaps, result), "cost": _cost(result)}
    found |= {"responses": _responses(result), "ladder": _ladder(content.ladders)}
    found |= {"watched": _watched(content.watched), "loads": _loads(content.loads)}
    found |= {"tuning": responses(content.tuning), "timeline": _timeline(content)}
    found |= {"front": front(content.search), "settings": settings(content.search)}
    lines = {line.variant: line for line in content.curves if line.points}
    timed = {variant: line for variant, line in lines.items() if line.tokens_per_s is not None}
    return found | {
        against: tuple(_losses(timed if against == "seconds" else lines, result, against)) for against in AGAINST
    }


def _forest(result: StudyResult) -> tuple[Panel, ...]:
    shown = rows(result)
    if not shown:
        return ()
    paint = partial(forest, shown=shown, margin=result.plan.margin_nats, unit="nats per token")
    return (Panel(svg=draw("effects", (WIDE, 1.05 + 0.5 * len(shown)), paint)),)


def _waterfall(content: ReportContent) -> tuple[Panel, ...]:
    if content.waterfall is None:
        return ()
    return (Panel(svg=draw("waterfall", (WIDE, 3.5), partial(waterfall_bars, found=content.waterfall))),)


def _interactions(content: ReportContent) -> tuple[Panel, ...]:
    found = content.interplay
    if found is None:
        return ()
    n = len(found.components)
    return (Panel(svg=draw("interactions", (WIDE, 0.6 + 0.45 * n), partial(triangle, found=found))),)


def _interplay(content: ReportContent) -> tuple[Panel, ...]:
    found = content.interplay.strongest if content.interplay else ()
    return tuple(
        _panel(f"interplay{i}", " × ".join(map(clean, each.components)), found, 2.5, partial(four_points, found=each))
        for i, each in enumerate(found)
    )


def _pareto(result: StudyResult) -> tuple[Panel, ...]:
    if len(points(result)) < 2:
        return ()
    return (Panel(svg=draw("pareto", (WIDE, 3.6), partial(pareto, result=result))),)


def _channels(content: ReportContent) -> tuple[Panel, ...]:
    return _bars("channels", content.factors)


def _published(content: ReportContent) -> tuple[Panel, ...]:
    return _bars("published", content.published_factors)


def _bars(name: str, found: Sequence[Factors]) -> tuple[Panel, ...]:
    if not found:
        return ()
    return (Panel(svg=draw(name, (WIDE, 0.9 + 0.34 * len(found)), partial(channel_bars, found=found))),)


def _timeline(content: ReportContent) -> tuple[Panel, ...]:
    found = content.timelines
    return (Panel(svg=draw("timeline", (WIDE, height(found)), partial(gantt, found=found))),) if found else ()


def _noise(result: StudyResult) -> tuple[Panel, ...]:
    found = strips(result)[:MOST_ROWS]
    if not found:
        return ()
    paint = partial(noise_strip, found=found, effects=rows(result), margin=result.plan.margin_nats)
    return (Panel(svg=draw("noise", (WIDE, 1.2 + 0.28 * len(found)), paint)),)


def _detectable(result: StudyResult) -> tuple[Panel, ...]:
    found = detectable(result)
    if found is None:
        return ()
    return (Panel(svg=draw("detectable", (WIDE, 3.0), partial(detectable_line, found=found, effects=rows(result)))),)


def _responses(result: StudyResult) -> tuple[Panel, ...]:
    """A panel for each response of which at least two levels are known."""
    shown = [r for r in result.responses if sum(level.mean.estimate is not None for level in r.levels) > 1]
    return tuple(
        _panel(
            f"response{i}", f"{clean(r.factor.name)}: {f'effect of {clean(r.of)}' if r.of else 'loss'}", shown, 2.7,
            partial(response_line, found=r, margin=result.plan.margin_nats),
        )
        for i, r in enumerate(shown)
    )  # fmt: skip


def _ladder(found: Sequence[Ladder]) -> tuple[Panel, ...]:
    shown = [each for each in found if any(size.estimate is not None for size in each.sizes)]
    return tuple(
        _panel(f"ladder{i}", f"{clean(each.component)}, {UNITS.get(each.unit, each.unit)}", shown, 2.7,
               partial(ladder_line, found=each))
        for i, each in enumerate(shown)
    )  # fmt: skip


def _losses(lines: dict[str, Curve], result: StudyResult, against: str) -> Iterator[Panel]:
    """A panel a comparison, or a component left out of the full recipe; without any, one panel with the reference."""
    pairs: list[tuple[str, tuple[str, ...]]] = list(sides(result).items())
    pairs = pairs or [(v.name, (v.name,)) for v in (reference(result),)]
    pairs = [(name, pair) for name, pair in pairs if all(side in lines for side in pair)]
    top = max((p.high for line in lines.values() for p in _after_beginning(line.points)), default=0.0)
    for i, (name, pair) in enumerate(pairs):
        rest = [line for variant, line in lines.items() if variant not in pair]
        paint = partial(loss_lines, pair=[lines[side] for side in pair], rest=rest, against=against, top=top)
        yield _panel(f"{against}{i}", clean(name), pairs, 2.9, paint)


def _after_beginning(points: Sequence[Point]) -> Sequence[Point]:
    """Without the first part of a run, or its first point where there are few; a single point is kept."""
    return points[min(max(1, len(points) // BEGINNING), len(points) - 1) :]


def _gaps(gaps: Sequence[Gap], result: StudyResult) -> tuple[Panel, ...]:
    names = {c.variant: arrow(c) for c in result.comparisons}
    ends = [end for gap in gaps for p in _after_beginning(gap.points) for end in (p.low, p.high)] + [0.0]
    air = 0.05 * (max(ends) - min(ends)) or 1.0
    paint = partial(gap_line, margin=result.plan.margin_nats, limits=(min(ends) - air, max(ends) + air))
    return tuple(
        _panel(f"gaps{i}", names[gap.variant], gaps, 2.6, partial(paint, gap=gap)) for i, gap in enumerate(gaps)
    )


def _watched(found: Sequence[Watched]) -> tuple[Panel, ...]:
    return tuple(
        Panel(svg=draw(f"watched{i}", (NARROW, 2.5), partial(watched_lines, found=each)), title=PANELS[each.metric][0])
        for i, each in enumerate(found)
    )


def _loads(found: Sequence[LoadMap]) -> tuple[Panel, ...]:
    heights = [0.5 + 0.24 * min(len(each.routers), MOST_ROUTERS) for each in found]
    return tuple(
        Panel(svg=draw(f"loads{i}", (NARROW, heights[i]), partial(load_map, found=each)), title=clean(each.variant))
        for i, each in enumerate(found)
    )


def _cost(result: StudyResult) -> tuple[Panel, ...]:
    return tuple(
        Panel(svg=draw(f"cost{i}", (NARROW, 0.8 + 0.24 * len(values)), partial(cost_marks, values=values)), title=label)
        for i, (label, values) in enumerate(relative_costs(result).items())
    )


def _panel(name: str, title: str, among: Sequence[object], height: float, paint: Callable[..., None]) -> Panel:
    """A panel in the size that suits how many there are; one by itself needs no title."""
    alone = len(among) == 1
    return Panel(svg=draw(name, (WIDE if alone else NARROW, height), paint), title="" if alone else title)
