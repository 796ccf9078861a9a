"""The figures of a report as inline SVG, legible in light and dark.

A comparison has a panel of its own, so that a study of any size is drawn in two colours and no variant is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ablate.attribution.study.compare import StudyResult
from ablate.attribution.study.ladder import Ladder
from ablate.report.cleaning import clean
from ablate.report.content import ReportContent
from ablate.report.curves import Curve, Gap
from ablate.report.figures.canvas import NARROW, WIDE, Panel, draw
from ablate.report.figures.effects import forest, gap_line, rows
from ablate.report.figures.factors import ladder_line, response_line
from ablate.report.figures.settings import front, responses, settings
from ablate.report.figures.variants import AGAINST, cost_marks, loss_lines, relative_costs
from ablate.report.names import label
from ablate.report.tables.ladder import COMPUTE

BEGINNING = 5  # the first of so many parts of a run, where losses fall by nats, does not set the scale of a panel

UNITS = {COMPUTE: "compute saved"}  # over a panel


def all_figures(content: ReportContent) -> dict[str, tuple[Panel, ...]]:
    """Name -> panels of every figure; empty where the content has no data for it."""
    result = content.result
    found = {"effects": _forest(result), "gaps": _gaps(content.gaps, result), "cost": _cost(result)}
    found |= {"responses": _responses(result), "ladder": _ladder(content.ladders)}
    found |= {"tuning": responses(content.tuning)}
    found |= {"front": front(content.search), "settings": settings(content.search)}
    lines = {line.variant: line for line in content.curves if line.points}
    return found | {against: tuple(_losses(lines, result, against)) for against in AGAINST}


def _forest(result: StudyResult) -> tuple[Panel, ...]:
    shown = rows(result)
    if not shown:
        return ()
    paint = partial(forest, shown=shown, margin=result.plan.margin_nats, unit="nats per token")
    return (Panel(svg=draw("effects", (WIDE, 1.05 + 0.5 * len(shown)), paint)),)


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
    """A panel a comparison; where a design compares no pair of variants, one panel with the reference."""
    pairs: list[tuple[str, tuple[str, ...]]]
    pairs = [(label(c), (c.with_variant, c.without_variant)) for c in result.comparisons]
    pairs = pairs or [(v.name, (v.name,)) for v in result.variants[:1]]
    pairs = [(name, sides) for name, sides in pairs if all(side in lines for side in sides)]
    top = max((p.high for line in lines.values() for p in line.points[len(line.points) // BEGINNING :]), default=0.0)
    for i, (name, sides) in enumerate(pairs):
        rest = [line for variant, line in lines.items() if variant not in sides]
        paint = partial(loss_lines, pair=[lines[side] for side in sides], rest=rest, against=against, top=top)
        yield _panel(f"{against}{i}", clean(name), pairs, 2.9, paint)


def _gaps(gaps: Sequence[Gap], result: StudyResult) -> tuple[Panel, ...]:
    names = {c.variant: clean(label(c)) for c in result.comparisons}
    ends = [end for gap in gaps for p in gap.points[len(gap.points) // BEGINNING :] for end in (p.low, p.high)] + [0.0]
    air = 0.05 * (max(ends) - min(ends)) or 1.0
    paint = partial(gap_line, margin=result.plan.margin_nats, limits=(min(ends) - air, max(ends) + air))
    return tuple(
        _panel(f"gaps{i}", names[gap.variant], gaps, 2.6, partial(paint, gap=gap)) for i, gap in enumerate(gaps)
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
