"""What stands beside each figure: how it is read, in words that hold for this study."""

from __future__ import annotations

from ablate.attribution.study.cells import FACTORIAL
from ablate.quantities import listed, percent, short
from ablate.report.cleaning import clean
from ablate.report.content import ReportContent
from ablate.report.names import confidence, emulated

DEFAULT_HEADING = "What each component is worth"


def captions(content: ReportContent) -> dict[str, str]:
    """The captions by the name that the templates call them."""
    return {
        "effects_caption": _effects(content),
        "curves_caption": _curves(content),
        "gaps_caption": _gaps(content),
        "cost_caption": _cost(content),
        "responses_caption": _responses(content),
        "ladder_caption": _ladder(content),
        "effects_heading": _heading(content),
    }


def _effects(content: ReportContent) -> str:
    margin = content.result.plan.margin_nats
    band = f" The grey band is the margin of ±{short(margin)} nats." if margin else ""
    side = (
        "at the level than at the reference" if content.result.plan.design.name == FACTORIAL else "with the component"
    )
    return f"{_marks(content)}{band} Left of zero the loss is lower {side}. Bars that end in an arrow go on."


def _marks(content: ReportContent) -> str:
    if content.result.attribution is None:
        return (
            f"Diamond and bar: mean difference with its {confidence(content.result)} interval, the largest gain "
            "first. Small rings: the difference of each pair of runs that share a seed."
        )
    return (
        f"Diamond and bar: the index that the verdict was drawn from, with its {confidence(content.result)} interval, "
        "the largest gain first. Stroke: the component added to none of the others. Cross: left out of all. Where "
        "the three differ, components interact."
    )


def _curves(content: ReportContent) -> str:
    said = "Lines are means over the finished runs; the band spans the lowest and the highest of them; the "
    said += "beginning, where losses fall by nats, lies above the panel. "
    line = next((line for line in content.curves if line.points), None)
    if line is not None and line.n_undecayed:
        assert line.decay_start_tokens is not None
        share = 1 - line.decay_start_tokens / line.points[-1].n_tokens
        said += (
            f"The learning rate decays over the last {percent(round(share, 3))} of a run; what lies before is faded, "
        )
        said += "and only the marked end points are finished models. "
    if len(content.curves) > 2:
        said += "Each panel has the two sides of one comparison in colour; every other variant is a pale line. "
    return said + "Bands that overlap say little: the runs are pairs, and the differences above are what counts."


def _gaps(content: ReportContent) -> str:
    return (
        f"Loss with minus loss without at equal shares of the schedule, mean over pairs of runs with its "
        f"{confidence(content.result)} interval. Below zero the component is ahead. Before the rate has decayed a "
        "difference may be larger or smaller than that of the finished models."
    )


def _heading(content: ReportContent) -> str:
    names = [f.name for f in content.result.plan.factors]
    alone = content.result.plan.design.name == FACTORIAL
    return f"What {clean(listed(names))} {'do' if len(names) > 1 else 'does'}" if alone else DEFAULT_HEADING


def _responses(content: ReportContent) -> str:
    margin = content.result.plan.margin_nats
    band = f" The grey band is the margin of ±{short(margin)} nats." if margin else ""
    return (
        "Each level's loss minus that of the reference level, which is the ring at zero, or the effect of a component "
        f"at each level, with its {confidence(content.result)} interval; both are taken within seeds.{band}"
    )


def _ladder(content: ReportContent) -> str:
    said = f"Each size with its {confidence(content.result)} interval."
    if any(each.trend for each in content.ladders):
        said += (
            " Line and band: the trend and where the effect of a further size is expected, dashed beyond the largest, "
            "up to where claims end."
        )
    return said


def _cost(content: ReportContent) -> str:
    said = (
        f"Each quantity as a multiple of {clean(content.result.variants[0].name)}, the reference; what is equal for "
        "all is left out."
    )
    if any(map(emulated, content.result.variants)):
        said += " Hollow marks are emulated; what is of another kind than the reference is left out."
    return said
