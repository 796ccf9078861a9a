"""The figures of a report as inline SVG, legible in light and dark."""

from __future__ import annotations

from functools import partial

from ablate.report.content import ReportContent
from ablate.report.figures.canvas import MAX_LINES, draw
from ablate.report.figures.effects import forest, gap_lines
from ablate.report.figures.variants import cost_marks, loss_lines, relative_costs


def all_figures(content: ReportContent) -> dict[str, str]:
    """Name -> SVG of every figure; empty where the content has no data for it."""
    drawn = dict.fromkeys(("effects", "tokens", "flops", "gaps", "cost"), "")
    result = content.result
    names = [v.name for v in result.variants]
    shown = [c for c in result.comparisons if c.loss.estimate is not None]
    if shown:
        drawn["effects"] = draw("effects", 1.05 + 0.5 * len(shown), partial(forest, comparisons=shown))
    lines = [line for line in content.curves if line.points][:MAX_LINES]
    if lines:
        for against in ("tokens", "flops"):
            drawn[against] = draw(against, 3.3, partial(loss_lines, lines=lines, against=against))
    if content.gaps:
        margin = result.plan.margin_nats
        drawn["gaps"] = draw("gaps", 2.7, partial(gap_lines, gaps=content.gaps, variants=names, margin=margin))
    costs = relative_costs(result)
    if costs:
        names = names[:MAX_LINES]
        height = 0.8 + (0.22 + 0.12 * len(names)) * len(costs)
        drawn["cost"] = draw("cost", height, partial(cost_marks, costs=costs, variants=names))
    return drawn
