"""One sentence above each figure: what to see in it, from the values that it draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ablate.attribution.study.compare import LOSS, SPEED, StudyResult
from ablate.attribution.verdicts import GAIN, HARM
from ablate.quantities import between, listed, number, percent, plural, short, signed
from ablate.report.cleaning import clean
from ablate.report.curves import Curve, Gap
from ablate.report.ends import drawn, reference, sides
from ablate.report.figures.effects import Row
from ablate.report.figures.pareto import front, points
from ablate.report.interplay import Interplay
from ablate.report.names import confidence, emulated
from ablate.report.noise import MOST_ROWS, Detectable, Strip
from ablate.report.watched import DRAFTS, KINDS, LOST, LoadMap, Watched
from ablate.report.waterfall import COST, ENDS, Waterfall, strongest
from ablate.report.why_faster import CHANNELS, Factors


def of_waterfall(found: Waterfall) -> str:
    """The two ends, the largest step each way, and what is not resolved."""
    start, end = found.ends
    if found.unit == COST:
        first = f"{end} takes {found.said(found.total)} the training FLOPs of {start} for the same loss"
    else:
        first = f"{end} ends {found.said(found.total)} nats per token from {start}"
    first = first.replace("the full recipe", "The full recipe", 1) if end == ENDS[1] else first
    parts = []
    for verdict, word in ((HARM, "most of the way up is"), (GAIN, "most of the way down is")):
        step = strongest(found.steps, verdict)
        if step is not None:
            parts.append(f"{word} {step.name} ({found.said(step.size)})")
    left = [step.name for step in found.steps if step.verdict not in (GAIN, HARM)]
    if left:
        parts.append(f"{listed(left)} {'is' if len(left) == 1 else 'are'} not told from nothing")
    return f"{first}{': ' if parts else ''}{'; '.join(parts)}."


def of_forest(shown: Sequence[Row], result: StudyResult) -> str:
    """The two ends of the forest and how many intervals leave zero out."""
    outside = sum(row.low is not None and row.high is not None and (row.low > 0 or row.high < 0) for row in shown)
    if len(shown) == 1:
        verb = "leaves out" if outside else "holds"
        known = f"the {confidence(result)} interval {verb} 0"
        said = ["no interval is known" if shown[0].low is None else known]
    else:
        intervals = plural(len(shown), f"{confidence(result)} interval")
        said = [f"{outside} of {intervals} {'leaves' if outside == 1 else 'leave'} out 0"]
    if shown[0].estimate < 0:
        said.append(f"largest gain: {clean(shown[0].name)} ({signed(shown[0].estimate, 3)})")
    if shown[-1].estimate > 0:
        said.append(f"largest harm: {clean(shown[-1].name)} ({signed(shown[-1].estimate, 3)})")
    joined = "; ".join(said)
    return f"{joined[0].upper()}{joined[1:]}."


def of_interactions(found: Interplay) -> str:
    """Whether any pair stands out of the noise, and the largest."""
    known = found.known
    largest = known[0]
    name = " × ".join(map(clean, largest.components))
    size = f"the largest is {name} ({signed(largest.number.estimate, 3)})"
    n = len([pair for pair in known if pair.components in found.resolved])
    if not n:
        return f"None of {plural(len(known), 'pair')} stands out of the noise; {size}."
    return f"{n} of {plural(len(known), 'pair')} {'stands' if n == 1 else 'stand'} out of the noise; {size}."


def of_curves(lines: Sequence[Curve], result: StudyResult) -> str:
    """Where the reference ends, how many variants end below it, and how few points there are."""
    ends = {line.variant: line.points[-1].mean for line in lines if line.points}
    name = reference(result).name
    if name not in ends:
        return f"{plural(len(ends), 'variant')} finished; the reference did not."
    below = sum(loss < ends[name] for variant, loss in ends.items() if variant != name)
    n = min(len(line.points) for line in lines if line.points)
    few = f" Each line has only {plural(n, 'evaluation')}." if n < 10 else ""
    end = f"{clean(name)} ends at {number(ends[name], 3)} nats per token"
    if len(ends) == 2:
        return f"{end}, and the other variant {'below' if below else 'not below'} it.{few}"
    if len(ends) == 1:
        return f"{end}.{few}"
    return f"{end}, and {below} of the {len(ends) - 1} other variants end{'s' if below == 1 else ''} below it.{few}"


def of_gaps(found: Sequence[Gap]) -> str:
    """How many differences have kept their sign since the first evaluation."""
    kept = sum(len({point.mean > 0 for point in gap.points}) == 1 for gap in found)
    return f"{kept} of {plural(len(found), 'difference')} had the same sign at every evaluation."


def of_pareto(result: StudyResult) -> str:
    """Which variants no other beats in both; what is not drawn is named."""
    found = points(result)
    best = front(found)
    names = [clean(p.name) + (" (emulated)" if p.emulated else "") for p in best]
    shown = names if len(names) <= 4 else [*names[:4], f"{len(names) - 4} more"]
    lost = [v.name for v in result.variants if LOSS not in v.metrics or SPEED not in v.metrics]
    missing = f" Not drawn, without a loss or a speed: {listed(map(clean, lost))}." if lost else ""
    n = len(found) - len([p for p in found if p.name == reference(result).name or p.name in _named(result)])
    pale = f" Pale: {plural(n, 'further variant')}." if n else ""
    kind = " of its kind of evidence" if len({p.emulated for p in found}) > 1 else ""
    return f"No other variant{kind} is both faster and better than {listed(shown)}.{pale}{missing}"


def _named(result: StudyResult) -> set[str]:
    return {name for pair in sides(result).values() for name in pair}


def of_channels(found: Sequence[Factors]) -> str:
    """The last row in words: its total and the channel that moves it most."""
    row = found[-1]
    largest = max(row.logs, key=lambda channel: abs(row.logs[channel]))
    known = [c for c in CHANNELS if c in row.logs]
    parts = " × ".join(number(math.exp(row.logs[c]), 2) for c in known)
    missing = f" {row.missing[0].upper()}{row.missing[1:]} and left out." if row.missing else ""
    return f"{clean(row.name)}: {row.said} = {parts} ({', '.join(known)}); most of it is {largest}.{missing}"


def of_watched(found: Sequence[Watched]) -> str:
    """How each figure ends; of what FP8 loses, the kind of number that it loses most of."""
    parts = [_one_watched(each) for each in found if each.metric not in LOSSES]
    lost = [each for each in found if each.metric in LOSSES]
    if lost:
        most = max(lost, key=lambda each: each.first.means[-1])
        share = short(1e6 * most.first.means[-1], 3)
        parts.append(f"FP8 makes {share} of a million {LOSSES[most.metric]}s 0 in {clean(most.first.variant)}")
    return f"At the end {'; '.join(parts)}."


LOSSES = {LOST.format(kind): kind for kind in KINDS}


def _one_watched(found: Watched) -> str:
    line, name = found.first, clean(found.first.variant)
    if found.metric == DRAFTS:
        began = f", {percent(line.means[0], 3)} at the first evaluation" if len(line.means) > 1 else ""
        return f"{percent(line.means[-1], 3)} of the drafts of {name} are accepted{began}"
    against = f", {_load(found.against.means[-1])} in {clean(found.against.variant)}" if found.against else ""
    return f"the busiest expert of a router gets {_load(line.means[-1])} the mean load in {name}{against}"


def _load(violation: float) -> str:
    return f"{number(1 + violation, 2)}×"


def of_loads(found: Sequence[LoadMap]) -> str:
    """How much more than its share the busiest expert gets, in each variant that is drawn."""
    of, *rest = [(f"{number(each.largest, 2)}×", clean(each.variant)) for each in found]
    parts = [f"{of[0]} the mean load in {of[1]}", *(f"{size} in {name}" for size, name in rest)]
    return f"The busiest expert of a router gets, mean over routers, {listed(parts)}."


def of_cost(result: StudyResult) -> str:
    """What is emulated in the figure of costs."""
    kept = drawn(result)
    hollow = sum(emulated(v) for v in result.variants if v.name in kept)
    said = [f"against {clean(reference(result).name)}, which is 1"]
    if hollow:
        said.append(f"the speed and memory of {plural(hollow, 'variant')} are emulated")
    if len(kept) < len(result.variants):
        left = plural(len(result.variants) - len(kept), "further variant")
        said.append(f"{left}, between the ends, are in the table of speed")
    joined = "; ".join(said)
    return f"{joined[0].upper()}{joined[1:]}."


def of_noise(found: Sequence[Strip], result: StudyResult) -> str:
    """The noise of one variant's runs, with its own uncertainty."""
    noise = result.noise
    if noise is None:
        return f"{plural(len(found), 'variant')} ran more than once."
    ends = between(*noise.ends(result.plan.interval_confidence))
    hidden = len(found) - MOST_ROWS
    more = f" {MOST_ROWS} of {len(found)} variants are drawn." if hidden > 0 else ""
    return (
        f"Runs of one variant differ by a standard deviation of {number(noise.sd)} nats per token, known from "
        f"{plural(noise.df, 'degree')} of freedom ({confidence(result)} interval {ends}).{more}"
    )


def of_detectable(found: Detectable) -> str:
    """What this study's number of pairs could see."""
    at = min(range(len(found.seeds)), key=lambda i: abs(found.seeds[i] - found.n_pairs))
    return (
        f"{plural(found.seeds[at], 'paired seed')} resolve an effect of {number(found.sizes[at], 3)} nats per token or "
        f"more; the noise itself is known only so far that it may be {number(found.low[at], 3)} to "
        f"{number(found.high[at], 3)}."
    )
