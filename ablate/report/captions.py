"""What stands beside each figure: how it is read, in words that hold for this study."""

from __future__ import annotations

from typing import Any

from ablate.attribution.study.cells import FACTORIAL
from ablate.quantities import listed, percent, plural, short
from ablate.report.cleaning import clean
from ablate.report.content import ReportContent
from ablate.report.figures.effects import rows
from ablate.report.figures.pareto import points
from ablate.report.names import confidence, emulated
from ablate.report.noise import detectable, strips
from ablate.report.sentences import (
    of_channels,
    of_cost,
    of_curves,
    of_detectable,
    of_forest,
    of_front,
    of_gaps,
    of_interactions,
    of_interplay,
    of_ladder,
    of_loads,
    of_noise,
    of_pareto,
    of_responses,
    of_settings,
    of_tuning,
    of_watched,
    of_waterfall,
)
from ablate.report.tables.timeline import sentence
from ablate.report.watched import MOST_COLUMNS, MOST_ROWS
from ablate.report.waterfall import COST

DEFAULT_HEADING = "What each component is worth"


def captions(content: ReportContent) -> dict[str, Any]:
    """The captions by the name that the templates call them."""
    return {
        "effects_caption": _effects(content),
        "curves_caption": _curves(content),
        "gaps_caption": _gaps(content),
        "cost_caption": _cost(content),
        "responses_caption": _responses(content),
        "ladder_caption": _ladder(content),
        "effects_heading": _heading(content),
        "waterfall_heading": _from_to(content),
        "waterfall_caption": _waterfall(content),
        "interactions_caption": INTERACTIONS,
        "interplay_caption": INTERPLAY,
        "pareto_caption": PARETO,
        "channels_caption": CHANNELS,
        "published_caption": PUBLISHED,
        "timeline_caption": TIMELINE,
        "noise_caption": NOISE,
        "detectable_caption": _detectable(content),
        "curve_captions": CURVES,
        "watched_caption": WATCHED,
        "loads_caption": _loads(content),
        "see": seen(content),
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
            f"{_theirs(content)}"
        )
    return (
        f"Diamond and bar: the index that the verdict was drawn from, with its {confidence(content.result)} interval, "
        "the largest gain first. Below it, filled: the component added to none of the others; ring: left out of all. "
        "Where the two differ, components interact."
        f"{_theirs(content)}"
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
    if content.gaps:
        said += "Bands that overlap say little: runs of one seed are pairs, and their differences are what counts."
    return said.rstrip()


def _loads(content: ReportContent) -> str:
    """How the maps are read, and what of them is left out."""
    said = (
        "A row is a router, a column a place in the order of loads, from the busiest expert to the least busy, mean "
        "over runs. Orange: more tokens than the mean, blue: fewer; full colour: none, or twice the mean and more. At "
        "the right: the busiest expert's tokens over the mean."
    )
    has = [v for v in content.result.variants if any(run.record and run.record.expert_loads for run in v.finished)]
    hidden = len(has) - len(content.loads)
    if hidden > 0:
        said += f" {plural(hidden, 'further variant')} with experts {'is' if hidden == 1 else 'are'} not drawn."
    if any(len(each.routers) > MOST_ROWS or len(each.loads[0]) > MOST_COLUMNS for each in content.loads):
        said += f" Drawn are {MOST_ROWS} routers and {MOST_COLUMNS} places at most, spread evenly over all."
    return said


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


INTERACTIONS = (
    "Joint effect of two components minus the sum of their own, in nats per token (Banzhaf interaction index: the mean "
    "over all settings of the others). Green: they help each other. Orange: together they are worth less than apart. "
    "Dot: resolved, by p-values that are adjusted for all pairs (Benjamini-Hochberg). Stroke: one needs the other, so "
    "there is no such number."
)
INTERPLAY = "Means over all settings of the other components. Parallel lines: the two do not interact."
PARETO = (
    "Filled: measured; hollow: emulated, whose time says nothing of hardware that has the arithmetic. Size: total "
    "parameters. Arrows lead from the reference to the variant without one component. Lines join the variants that no "
    "other of their kind beats in both; nearer to the lower left is better."
)
CHANNELS = (
    "Bars to the right make the same loss cheaper, bars to the left dearer; lengths are logarithms, so they add up to "
    "the diamond. Tokens are measured, FLOPs per token exact."
)
PUBLISHED = (
    "Quoted, not measured here: GPU hours of whole training runs from published totals, FLOPs per token from closed "
    "forms, FLOP/s what is left. These models do not have equal losses."
)
TIMELINE = (
    "A row a rank; one recorded step of each variant, the one of median length, all on one axis. The bubble is a "
    "rank's time without forward or backward. Simulated: the same schedule with the measured seconds of each "
    "action. Closed form: as published for equal stages, with the mean seconds. Communication is exposed "
    "where a rank waits for rows inside a forward or backward, sends, or waits for a message that was sent already."
)
WATCHED = (
    "Means over the finished runs with their span, on the held-out windows; before the end these are fewer, so that "
    "loads look less even there. Every other variant with the figure is a pale line. FP8 is read in one micro-batch "
    "now and then: a number that is not 0 is lost where the scale, which follows the largest number of its block, "
    "leaves nothing of it."
)
NOISE = (
    "Rings: runs that differ in nothing but the seed, around their mean. Diamonds: the effects. An effect inside the "
    "spread of rings needs pairs or many runs to be told from chance."
)
CURVES = {
    "tokens": "Held-out loss against tokens.",
    "flops": "The same against training FLOPs.",
    "seconds": "The same against the seconds of training, at each variant's median speed; measured speeds only.",
}


def _from_to(content: ReportContent) -> str:
    return f"From {content.waterfall.ends[0]} to {content.waterfall.ends[1]}" if content.waterfall else ""


def _waterfall(content: ReportContent) -> str:
    found = content.waterfall
    if found is None:
        return ""
    size = "Height is a logarithm, so factors add up." if found.unit == COST else "Height is nats per token."
    decided = (
        f"grey where the {confidence(content.result)} interval of the cost, taken by itself, holds 1×"
        if found.unit == COST
        else "grey where the verdict is not resolved"
    )
    return (
        f"{size} Bars are Owen values: the mean over all orders in which components can be added, those that need "
        f"each other together. Down and green is a gain, up and orange a harm, {decided}. Line: its interval. "
        "Tick at the left: the component added to none of the others; at the right: left out of all. The order is "
        "that of the registry and changes no bar."
    )


def _detectable(content: ReportContent) -> str:
    found = detectable(content.result)
    if found is None:
        return ""
    sure = confidence(content.result)
    return (
        f"For {found.name}, beyond the margin, with 80 % power, one effect by itself. Band: the {sure} "
        f"interval of the noise itself, which {found.n_pairs} pairs (dotted) tell. Dashed: the effects of this study."
    )


def seen(content: ReportContent) -> dict[str, str]:
    """Figure -> the sentence above it, for the figures that the content has data for; "" for none."""
    result, found = content.result, dict.fromkeys(SEEN, "")
    shown = rows(result)
    lines = [line for line in content.curves if line.points]
    found["cost"] = of_cost(result)
    if content.waterfall:
        found["waterfall"] = of_waterfall(content.waterfall)
    if shown:
        found["effects"] = of_forest(shown, result)
    if content.interplay:
        found["interactions"] = of_interactions(content.interplay)
        found["interplay"] = of_interplay(content.interplay) if content.interplay.strongest else ""
    if lines:
        found["tokens"] = of_curves(lines, result)
    if result.responses:
        found["responses"] = of_responses(result.responses)
    if content.ladders:
        found["ladder"] = of_ladder(content.ladders)
    if content.tuning:
        found["tuning"] = of_tuning(content.tuning)
    if content.search:
        found["settings"], found["front"] = of_settings(content.search), of_front(content.search)
    if content.watched:
        found["watched"] = of_watched(content.watched)
    if content.loads:
        found["loads"] = of_loads(content.loads)
    if content.gaps:
        found["gaps"] = of_gaps(content.gaps)
    if len(points(result)) > 1:
        found["pareto"] = of_pareto(result)
    if content.factors:
        found["channels"] = of_channels(content.factors)
        found["published"] = of_channels(content.published_factors)
    found["timeline"] = sentence(content.timelines)
    if strips(result):
        found["noise"] = of_noise(strips(result), result)
    if (noise := detectable(result)) is not None:
        found["detectable"] = of_detectable(noise)
    return found


SEEN = (
    "waterfall", "effects", "interactions", "interplay", "tokens", "flops", "seconds", "gaps", "pareto", "channels",
    "published", "timeline", "noise", "detectable", "cost", "ladder", "responses", "tuning", "front", "settings",
    "watched", "loads",
)  # fmt: skip


def _theirs(content: ReportContent) -> str:
    """What the hollow diamonds are, where there are any."""
    if not any(row.published for row in rows(content.result)):
        return ""
    return (
        " Hollow diamond above: a published difference in nats against the same alternative, at another scale "
        "(sizes under Ours beside theirs)."
    )
