"""One sentence above each figure: what to see in it, from the values that it draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ablate.attribution.study.compare import LOSS, SPEED, StudyResult
from ablate.attribution.study.ladder import Ladder
from ablate.attribution.study.responses import Response
from ablate.attribution.study.search import STATES, TrialResult, best, pareto_front
from ablate.attribution.verdicts import GAIN, HARM, NOT_RESOLVED
from ablate.quantities import between, listed, number, percent, plural, short, signed
from ablate.report.cleaning import clean
from ablate.report.curves import Curve, Gap
from ablate.report.ends import drawn, reference, sides
from ablate.report.figures.effects import Row
from ablate.report.figures.pareto import front, points
from ablate.report.interplay import FourPoints, Interplay
from ablate.report.names import confidence, emulated, verdict_said
from ablate.report.noise import MOST_ROWS, Detectable, Strip
from ablate.report.tables.search import SearchSection, objective, own_settings, settings
from ablate.report.tables.tuning import NOT_RUN, TuningSection
from ablate.report.watched import DRAFTS, KINDS, LOST, LoadMap, Watched
from ablate.report.waterfall import COST, ENDS, Waterfall, strongest
from ablate.report.why_faster import CHANNELS, Factors
from ablate.runs.searching import Objective

MOST_NAMED = 4  # in one sentence
SHOWN = 3  # decimals of a loss
LEAST = 0.5 * 10**-SHOWN  # nats between losses that are shown as different
FEW = 10  # evaluations: fewer are said to be few
WORDS: dict[Objective, str] = {"loss": "loss", "seconds": "training time", "tokens_per_s": "speed",
                              "memory": "peak memory", "flops_per_token": "FLOPs per token"}  # fmt: skip
EXACT: tuple[Objective, ...] = ("flops_per_token",)  # the others differ from run to run
FEW_DF = 4  # degrees of freedom: with fewer the upper end of a 95 % interval is over 2.9 times the standard deviation


def of_waterfall(found: Waterfall) -> str:
    """The two ends, the largest step each way, and what is not resolved."""
    start, end = found.ends
    if found.unit == COST:
        first = f"{end} takes {found.said(found.total)} the training FLOPs of {start} for the same loss"
    else:
        first = f"{end} ends {found.said(found.total)} nats per token from {start}"
    first = first.replace("the full recipe", "The full recipe", 1) if end == ENDS[1] else first
    parts = []
    for verdict, word in ((HARM, "the largest step up is"), (GAIN, "the largest step down is")):
        step = strongest(found.steps, verdict)
        if step is not None:
            parts.append(f"{word} {step.name} ({found.said(step.size)})")
    left = [step.name for step in found.steps if step.verdict not in (GAIN, HARM)]
    if left:
        parts.append(f"{listed(left)} {'is' if len(left) == 1 else 'are'} not resolved")
    return f"{first}{': ' if parts else ''}{'; '.join(parts)}."


def of_forest(shown: Sequence[Row], result: StudyResult) -> str:
    """How many intervals leave zero out, and the largest effect each way among the decided; without any, their span.

    An effect is called gain or harm as its verdict calls it.
    """
    margin = result.plan.margin_nats
    said = {row.name: verdict_said(row.verdict, row.low, row.high, margin) for row in shown}
    outside = [row for row in shown if row.low is not None and row.high is not None and not row.low <= 0 <= row.high]
    parts = [_left_out(len(outside), sum(row.low is not None for row in shown), len(shown), confidence(result))]
    open_ = sum(said[row.name] == NOT_RESOLVED for row in outside)
    if open_:
        parts.append(f"after Holm's correction {open_} of them {'is' if open_ == 1 else 'are'} not resolved")
    gains, harms = ([row for row in shown if said[row.name].startswith(word)] for word in (GAIN, HARM))
    if gains:
        parts.append(_extreme("gain", min(gains, key=lambda row: row.estimate), len(shown)))
    if harms:
        parts.append(_extreme("harm", max(harms, key=lambda row: row.estimate), len(shown)))
    if not gains and not harms:
        parts.append(_span(_at(shown[0]), _at(shown[-1]), len(shown)))
    return f"{'; '.join(parts)}."


def _at(row: Row) -> str:
    return signed(row.estimate, 3)


def _span(low: str, high: str, n: int) -> str:
    if n == 1:
        return f"the estimate is {low}"
    return f"all estimates are {low}" if low == high else f"the estimates lie between {low} and {high}"


def _left_out(n: int, known: int, of: int, sure: str) -> str:
    """How many of the intervals that there are leave zero out, and how many effects have none."""
    if not known:
        return "No interval is known"
    none = f", and {plural(of - known, 'effect')} {'has' if of - known == 1 else 'have'} no interval"
    none = none if known < of else ""
    if of == 1:
        return f"The {sure} interval {'leaves out' if n else 'holds'} 0"
    if not n:
        return f"Every {sure} interval holds 0{none}"
    if n == known:
        return f"Every {sure} interval leaves out 0{none}"
    return f"The {sure} interval{'s' * (n > 1)} of {n} of {of} effects leave{'s' * (n == 1)} out 0{none}"


def _extreme(word: str, row: Row, of: int) -> str:
    return f"{'a' if of == 1 else 'the largest'} {word}: {clean(row.name)} ({_at(row)})"


def of_interactions(found: Interplay) -> str:
    """Whether any pair stands out of the noise, and the largest."""
    known = found.known
    largest = known[0]
    name = " × ".join(map(clean, largest.components))
    size = f"the largest is {name} ({signed(largest.number.estimate, 3)})"
    n = len([pair for pair in known if pair.components in found.resolved])
    if all(pair.adjusted_p is None for pair in known):
        return f"Of {plural(len(known), 'pair')} none has an interval; {size}."
    if not n:
        return f"None of {plural(len(known), 'pair')} stands out of the noise; {size}."
    return f"{n} of {plural(len(known), 'pair')} {'stands' if n == 1 else 'stand'} out of the noise; {size}."


def of_interplay(found: Interplay) -> str:
    """What the first of each drawn pair does without the second and with it, and whether the two are told apart."""
    return f"{'; '.join(_four_said(each, each.components in found.resolved) for each in found.strongest)}."


def _four_said(found: FourPoints, resolved: bool) -> str:
    first, second = map(clean, found.components)
    off, on = (signed(found.means[True, level] - found.means[False, level], SHOWN) for level in (False, True))
    said = "resolved" if resolved else "not resolved"
    return f"{first} changes the mean loss by {off} where {second} is off and by {on} where it is on ({said})"


def of_curves(lines: Sequence[Curve], result: StudyResult) -> str:
    """Where the reference ends, how many variants end below it, and how few points there are."""
    ends = {line.variant: line.points[-1].mean for line in lines if line.points}
    name = reference(result).name
    if name not in ends:
        return f"{plural(len(ends), 'variant')} finished; the reference did not."
    # Variants that compute the same differ by the order of their sums: what is not shown is not told.
    below = sum(loss < ends[name] - LEAST for variant, loss in ends.items() if variant != name)
    counts = {len(line.points) for line in lines if line.points}
    whose = "Each line" if len(counts) == 1 else "The shortest line"
    few = f" {whose} has only {plural(min(counts), 'evaluation')}." if min(counts) < FEW else ""
    lost = [clean(v.name) for v in result.variants if v.name not in ends]
    few += f" Not drawn, without a finished run: {_few(lost)}." if lost else ""
    end = f"{clean(name)} ends at {number(ends[name], SHOWN)} nats per token"
    if len(ends) == 2:
        (other,) = (loss for variant, loss in ends.items() if variant != name)
        where = "below it" if below else "above it" if other > ends[name] + LEAST else "at the same"
        return f"{end}, and the other variant {where}.{few}"
    if len(ends) == 1:
        return f"{end}.{few}"
    return f"{end}, and {below} of the {len(ends) - 1} other variants end{'s' if below == 1 else ''} below it.{few}"


def _few(names: Sequence[str]) -> str:
    """Names, or the first of them and how many more there are: every table names each."""
    return listed(names if len(names) <= MOST_NAMED else [*names[:MOST_NAMED], f"{len(names) - MOST_NAMED} more"])


def of_gaps(found: Sequence[Gap]) -> str:
    """How many differences have kept their sign since the first evaluation."""
    found = [gap for gap in found if len(gap.points) > 1]
    if not found:
        return ""
    kept = sum(len({point.mean > 0 for point in gap.points}) == 1 for gap in found)
    if len(found) == 1:
        return f"The difference {'had the same' if kept else 'changed its'} sign{' at every evaluation' * kept}."
    return f"{kept} of {len(found)} differences had the same sign at every evaluation."


def of_pareto(result: StudyResult) -> str:
    """Which variants no other beats in both; what is not drawn is named."""
    found = points(result)
    best = front(found)
    names = [clean(p.name) + (" (emulated)" if p.emulated else "") for p in best]
    lost = [v.name for v in result.variants if LOSS not in v.metrics or SPEED not in v.metrics]
    missing = f" Not drawn, without a loss or a speed: {_few([*map(clean, lost)])}." if lost else ""
    named = _named(result) | {reference(result).name}
    n = len([p for p in found if p.name not in named])
    pale = f" Pale: {plural(n, 'further variant')}." if n else ""
    kind = " of its kind of evidence" if len({p.emulated for p in found}) > 1 else ""
    if len(best) == len(found) == 2:
        return f"Neither variant is both faster and lower in loss than the other{kind}.{missing}"
    if len(best) == len(found):
        return f"None of the {len(found)} variants is both faster and lower in loss than another{kind}.{missing}"
    return f"No other variant{kind} is both faster and lower in loss than {_few(names)}.{pale}{missing}"


def _named(result: StudyResult) -> set[str]:
    return {name for pair in sides(result).values() for name in pair}


def of_channels(found: Sequence[Factors]) -> str:
    """The last row in words: its total and the channel that moves it most."""
    row = found[-1]
    largest = max(row.logs, key=lambda channel: abs(row.logs[channel]))
    known = [c for c in CHANNELS if c in row.logs]
    parts = " × ".join(number(math.exp(row.logs[c]), 2) for c in known)
    missing = f" {row.missing[0].upper()}{row.missing[1:]} and left out." if row.missing else ""
    return f"{clean(row.name)}: {row.said} = {parts} ({', '.join(known)}); the largest factor is {largest}.{missing}"


def of_responses(found: Sequence[Response]) -> str:
    """Along which factors a straight line through the levels is told from a level one."""
    trends = [(each, each.trend.slope) for each in found if each.trend is not None and each.trend.slope.low is not None]
    resolved = [each for each, slope in trends if (slope.low or 0.0) > 0 or (slope.high or 0.0) < 0]
    named = [clean(f"{each.factor.name}{f' for the effect of {each.of}' if each.of else ''}") for each in resolved]
    return _of_trends(named, len(trends), len(found))


def of_ladder(found: Sequence[Ladder]) -> str:
    """Of which effects a trend with size is told from none."""
    trends = [(each, each.trend.slope_interval) for each in found if each.trend is not None]
    named = [clean(f"{each.component} ({each.unit})") for each, (low, high) in trends if low > 0 or high < 0]
    return _of_trends(named, len(trends), len(found))


def _of_trends(named: Sequence[str], known: int, of: int) -> str:
    """`named`: the resolved ones, of `known` that have an interval, of all `of`."""
    none = (
        f" {plural(of - known, 'line')} of {of} {'has' if of - known == 1 else 'have'} no trend." if known < of else ""
    )
    if not named:
        return f"No trend is resolved.{none}"
    verb = "is" if len(named) == 1 else "are"
    return f"{len(named)} of {plural(known, 'trend')} {verb} resolved: {_few(named)}.{none}"


def of_tuning(section: TuningSection) -> str:
    """How far the own rates lie from the shared one, what they change of the verdicts, and what diverged."""
    found, at = section.found, list(section.found.octaves.values())
    low, high = (signed(end, 2) for end in (min(at), max(at)))
    from_shared = f"octaves from the shared one, {short(found.shared_rate)}"
    if found.fitted is None:
        end = "lower" if at[0] == found.used[0] else "upper"
        first = f"No optimum could be fitted, so every variant has the {end} end of the screened range"
    elif low == high:
        first = f"{'The' if len(at) == 1 else 'Every'} own rate lies {low} {from_shared}"
    else:
        first = f"The own rates lie {low} to {high} {from_shared}"
    if found.fitted is not None and found.clipped:
        n = len(found.clipped)
        first += f", {n} of {len(at)} held at an end of the screened range"
    points = [point for response in found.responses for point in response.points]
    lost = sum(point.loss is None for point in points)
    missing = f" Not drawn: {lost} of {plural(len(points), 'screening run')}, which diverged." if lost else ""
    return f"{first}{_kept(section)}.{missing}"


def _kept(section: TuningSection) -> str:
    """What the table of both sides says of the verdicts, as the end of a sentence."""
    rows = [(row[0], row[2], row[4]) for row in section.sides.rows]
    both = [row for row in rows if row[1] != NOT_RUN]
    if not rows:
        return ""
    if not both:
        return "; the shared rate was not run for comparison"
    changed = [clean(name) for name, shared, own in both if shared != own]
    if changed:
        verb = "has" if len(changed) == 1 else "have"
        return f"; {len(changed)} of {plural(len(both), 'effect')} {verb} another verdict at own rates: {_few(changed)}"
    if all(own == NOT_RESOLVED for _, _, own in both):
        return "; at neither is an effect resolved"
    return f"; {'the effect keeps its verdict' if len(both) == 1 else 'every effect keeps its verdict'}"


def of_settings(section: SearchSection) -> str:
    """How many trials are complete, and the best of each group by the first objective."""
    found, plan = section.found, section.found.plan
    states = {state: sum(one.state == state for one in found.trials) for state in STATES}
    n, of, first = states.pop("complete"), plural(len(found.trials), "trial"), plan.objectives[0]
    if not n:
        return f"None of {of} is complete." if found.trials else ""
    others = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    said = f"{n} of {of} {'is' if n == 1 else 'are'} complete{f' ({others})' if others else ''}"
    groups = [found.of(group) for group in plan.groups]
    winners = [(trials, one) for trials in groups if (one := best(trials, plan.objectives)) is not None]
    named = [_winner_said(trials, one, first) for trials, one in winners]
    lead = any(len(_runs(trials)) > 1 for trials in groups) and first not in EXACT
    luck = "; each trial is one run, so no lead is resolved" if lead else ""
    return f"{said}; the best {WORDS[first]} is {_few(named)}{luck}."


def _winner_said(trials: Sequence[TrialResult], one: TrialResult, first: Objective) -> str:
    equal = len(_runs([other for other in trials if other.values and other.values[0] == one.values[0]])) - 1
    also = f", equalled by {plural(equal, 'other trial')}" if equal else ""
    return f"{_valued(first, one.values[0])} in {_trial_said(one)}{also}"


def _trial_said(one: TrialResult) -> str:
    return clean(f"{one.trial.variant} ({settings(own_settings(one))})")


def _valued(name: Objective, value: float) -> str:
    return f"{objective(name, value)}{' tokens/s' if name == 'tokens_per_s' else ''}"


def _runs(trials: Sequence[TrialResult]) -> set[str]:
    """Runs of the complete ones: trials of one specification share theirs."""
    return {one.trial.stages[-1].run_id for one in trials if one.state == "complete"}


def of_front(section: SearchSection) -> str:
    """How many complete trials are on the front of all objectives, and over what it spans."""
    found, objectives = section.found, section.found.plan.objectives
    best_of, n = pareto_front(found.trials, objectives), len(_runs(found.trials))
    if len(objectives) < 2 or not best_of:
        return ""
    names = listed(WORDS[name] for name in objectives)
    if n == 1:
        return f"One trial is complete, and no other is there to weigh {names} against."
    if len(best_of) == 1:
        others = "the other complete trial" if n == 2 else f"each of the {n - 1} other complete trials"
        lead = f"{_trial_said(best_of[0])} is at least as good as {others} in {names}"
        return f"{lead}; each trial is one run, so its lead is not resolved."
    spans = [_span_said(name, [one.values[i] for one in best_of]) for i, name in enumerate(objectives)]
    many = f"{'Both' if n == 2 else f'All {n}'}" if len(best_of) == n else f"{len(best_of)} of {n}"
    many += " different" if n < sum(one.state == "complete" for one in found.trials) else ""
    return (
        f"{many} complete trials are on the Pareto front of {names}, with {listed(spans)}; each trial is one run, so "
        "no place on it is resolved."
    )


def _span_said(name: Objective, values: Sequence[float]) -> str:
    low, high = _valued(name, min(values)), _valued(name, max(values))
    return f"{WORDS[name]} {low}" if low == high else f"{WORDS[name]} from {low} to {high}"


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
    sure = "known from" if noise.df >= FEW_DF else "hardly known, from"
    hidden = len(found) - MOST_ROWS
    more = f" {MOST_ROWS} of {len(found)} variants are drawn." if hidden > 0 else ""
    return (
        f"Runs of one variant differ by a standard deviation of {number(noise.sd)} nats per token, {sure} "
        f"{plural(noise.df, 'degree')} of freedom ({confidence(result)} interval {ends}).{more}"
    )


def of_detectable(found: Detectable) -> str:
    """What this study's number of pairs could see."""
    at = found.seeds.index(found.n_pairs)
    return (
        f"{plural(found.seeds[at], 'paired seed')} resolve an effect of {number(found.sizes[at], 3)} nats per token or "
        f"more; the noise itself is known only so far that it may be {number(found.low[at], 3)} to "
        f"{number(found.high[at], 3)}."
    )
