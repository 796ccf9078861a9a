"""The answer of a report: what diverged and what the study shows, what it costs or what would decide it, its caveat.

A winner is named only where the verdict is gain or harm.
"""

from __future__ import annotations

from collections.abc import Iterable

from ablate.attribution.indices import TITLES
from ablate.attribution.results import Attribution, Number
from ablate.attribution.study.compare import Comparison, StudyResult
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT, NOT_RESOLVED, VERDICTS, Effect
from ablate.quantities import (
    between,
    budget,
    duration,
    listed,
    number,
    plural,
    scaled,
    short,
    signed,
    signed_between,
    times,
)
from ablate.report.cleaning import clean
from ablate.report.names import (
    PERHAPS,
    confidence,
    ladder_sizes,
    matched,
    named,
    subject,
    verdict_said,
    why_no_interval,
)
from ablate.report.tables.effects import attributed_verdict, design_run_s, headline, pair_run_s
from ablate.report.tables.speed import ratio

MAX_NAMED = 4  # variants in one sentence
MAX_LEFT = 8  # effects that are left open, in one: more than a recipe has components


def answer(result: StudyResult) -> tuple[str, str, str]:
    """What was found; what it costs or what would decide it; what to bear in mind above all."""
    found, more = _found(result)
    return f"{found[0].upper()}{found[1:]}", more, _caveat(result)


def diverged(result: StudyResult) -> str:
    """Which variants diverge, which a report says before anything else; "" where none does."""
    counts = {v.name: (v.counts["diverged"], len(v.runs)) for v in result.variants if "diverged" in v.counts}
    if not counts:
        return ""
    named = [f"{clean(name)} ({n} of {plural(of, 'run')})" for name, (n, of) in counts.items()]
    if len(named) > MAX_NAMED:
        named = [*named[:MAX_NAMED], plural(len(named) - MAX_NAMED, "more variant")]
    return f"Diverged: {listed(named)}."


def _caveat(result: StudyResult) -> str:
    if len(result.variants) > 1 and len({v.planned.learning_rate for v in result.variants}) == 1:
        return (
            "The largest caveat: one learning rate served all variants and was sought for none of them, so part of an "
            "effect may be the rate's."
        )
    return "The largest caveat: neither size nor sign of an effect need carry over to another scale."


def _where(result: StudyResult) -> str:
    """Scale and budget, for a sentence."""
    if sizes := ladder_sizes(result):
        return f"at the sizes {clean(listed(sizes))}, each with a budget of its own (equal {matched(result)})"
    plan, parameters = result.plan, result.variants[0].planned.cost.get("total_parameters")
    size = f"{scaled(parameters)} total parameters and " if parameters else ""
    return f"at {size}{budget(plan.budget, plan.match)} a run (equal {matched(result)})"


def _found(result: StudyResult) -> tuple[str, str]:
    if len(result.comparisons) > 1:
        return _of_several(result)
    if result.comparisons:
        return _of_one(result.comparisons[0], result)
    if result.attribution is not None:
        return _of_attribution(result.attribution, result)
    if result.cells.effects:
        return _of_cells(result)
    if result.attribution_reason:
        return (
            f"The study's runs do not give an attribution: {clean(result.attribution_reason)}.",
            "Run what is missing.",
        )
    return "The study has one variant, so there is nothing to compare.", "Add a component to turn off."


def _of_one(c: Comparison, result: StudyResult) -> tuple[str, str]:
    if c.loss.verdict in (GAIN, HARM):
        return _decided(c, result), _price(c, result)
    many = _is_plural(c)
    if c.loss.verdict == NO_EFFECT:
        return (
            f"{_where(result)}, {subject(c)} {'have' if many else 'has'} no effect within the margin of "
            f"{short(c.loss.margin)} nats per token on the held-out loss: {_difference(c, result)}.",
            _price(c, result),
        )
    if _said(c.loss) != NOT_RESOLVED:
        return _perhaps(c, result), _what_resolves(c, result)
    return (
        f"whether {subject(c)} {'change' if many else 'changes'} the held-out loss {_where(result)} is not resolved: "
        f"{_difference(c, result)}.",
        _what_resolves(c, result),
    )


def _decided(c: Comparison, result: StudyResult) -> str:
    """A gain or a harm, with its size as a positive number."""
    effect = c.loss
    assert effect.estimate is not None
    assert effect.low is not None
    assert effect.high is not None
    if effect.verdict == GAIN:
        verb, size, ends = "lower", -effect.estimate, (-effect.high, -effect.low)
    else:
        verb, size, ends = "raise", effect.estimate, (effect.low, effect.high)
    beyond = f" beyond the margin of {short(effect.margin)}" if effect.margin else ""
    return (
        f"{_where(result)}, {subject(c)} {verb}{'' if _is_plural(c) else 's'} the held-out loss by "
        f"{number(size)} nats per token ({_interval(c, result, between(*ends))}): a {effect.verdict}{beyond}."
    )


def _said(effect: Effect) -> str:
    return verdict_said(effect.verdict, effect.low, effect.high, effect.margin)


def _perhaps(c: Comparison, result: StudyResult) -> str:
    """A sign that is known of a size that may be negligible."""
    verb = ("raise" if (c.loss.low or 0.0) > 0 else "lower") + ("" if _is_plural(c) else "s")
    return (
        f"{_where(result)}, {subject(c)} {verb} the held-out loss, perhaps by no more than the margin of "
        f"{short(c.loss.margin)}: {_difference(c, result)}. A {_said(c.loss)}."
    )


def _is_plural(c: Comparison) -> bool:
    return sum(not change.forced for change in c.changes) > 1


def _difference(c: Comparison, result: StudyResult) -> str:
    if c.loss.estimate is None:
        return "no pair of runs has finished"
    found = f"with minus without is {signed(c.loss.estimate)} nats per token"
    if c.loss.low is None:
        return found
    return f"{found} ({_interval(c, result, signed_between(c.loss.low, c.loss.high))})"


def _interval(c: Comparison, result: StudyResult, ends: str) -> str:
    units = plural(c.loss.n, "paired seed") if c.pairing_ok else f"{plural(c.loss.n, 'run')}, unpaired"
    return f"{confidence(result)} interval {ends}, {units}"


def _what_resolves(c: Comparison, result: StudyResult) -> str:
    if c.loss.low is None or c.loss.high is None:
        return f"No interval is given, because {why_no_interval(c, result)}."
    ends = f"below {signed(c.loss.low)} or above {signed(c.loss.high)} nats"
    said = f"A difference {ends} is excluded. "
    if not c.loss.runs_to_resolve:
        return f"{said}The estimate is so near the margin that no practical number of runs would resolve it."
    return (
        f"{said}About {_runs(c.loss.runs_to_resolve, pair_run_s(c))}, half of each variant, would resolve it "
        "(80 % power, if the estimate is the truth)."
    )


def _price(c: Comparison, result: StudyResult) -> str:
    """What the component costs: its arithmetic exactly, its speed as it was measured or emulated."""
    flops = _flops_ratio(c, result)
    arithmetic = f"it takes {times(flops)} the training FLOPs per token" if flops else "its FLOPs are not known"
    value, interval = ratio(c.speed)
    if c.speed is None or c.speed.estimate is None:
        why = f" because {clean(c.speed_reason)}" if c.speed_reason else ""
        said = f"{arithmetic}; no speed ratio is given{why}"
    else:
        ends = f" ({confidence(result)} interval {interval})" if c.speed.low is not None else ""
        emulated = "emulated" in c.speed_evidence
        where = " in emulation, which says nothing of real speed" if emulated else " on this machine"
        said = f"{arithmetic} and runs at {value} the tokens per second{ends}{where}"
    return said[0].upper() + said[1:] + "."


def _flops_ratio(c: Comparison, result: StudyResult) -> float | None:
    costs = {v.name: v.planned.cost.get("training_flops_per_token") for v in result.variants}
    on, off = costs[c.with_variant], costs[c.without_variant]
    return on / off if on and off else None


def _of_several(result: StudyResult) -> tuple[str, str]:
    """Several comparisons with one reference: which are resolved, and what would resolve the others."""
    parts = _by_verdict(((named(c), _said(c.loss), c.loss.estimate) for c in result.comparisons), result)
    left = [
        f"{named(c)} ({_more(c.loss, why_no_interval(c, result), c.loss.runs_to_resolve, pair_run_s(c))})"
        for c in result.comparisons
        if _said(c.loss) == NOT_RESOLVED
    ]
    n = len(result.comparisons)
    n_resolved = sum(c.loss.verdict != NOT_RESOLVED for c in result.comparisons)
    family = max(c.loss.family for c in result.comparisons)  # 1 of one that is refused
    first = f"{_where(result)}, {_resolved(n_resolved, n, 'effects on the held-out loss')}"
    said = "; ".join(["with minus without, nats per token", *_correction(family), *parts])
    return f"{first} ({said}).", _not_resolved(left)


def _of_cells(result: StudyResult) -> tuple[str, str]:
    """A design at each level of a factor: each cell is attributed by itself, and corrected by itself."""
    found = result.cells.effects
    left = [e for e in found if e.verdict == NOT_RESOLVED]
    cells = len({e.cell.label for e in found})
    first = f"{_where(result)}, {_resolved(len(found) - len(left), len(found), 'effects')}"
    return (
        f"{first} in {plural(cells, 'cell')} of the factors, each attributed by itself.",
        _not_resolved([f"{clean(e.component)} at {clean(e.cell.label)}" for e in left]),
    )


def _of_attribution(found: Attribution, result: StudyResult) -> tuple[str, str]:
    """A designed study: each verdict with the index that it was drawn from, and the total where there is one."""
    index = headline(found)
    parts = _by_verdict(
        (
            (clean(name), attributed_verdict(effect, result), effect.indices[effect.verdict_from].estimate)
            for name, effect in found.effects.items()
            if effect.verdict_from
        ),
        result,
    )
    left = []
    for name, effect in found.effects.items():
        if attributed_verdict(effect, result) == NOT_RESOLVED:
            shown = effect.indices[index or "owen"]
            more = _more(shown, clean(shown.reason or ""), effect.runs_to_resolve, design_run_s(result))
            left.append(f"{clean(name)} ({more})")
    n = len(found.effects)
    family = max(effect.family for effect in found.effects.values())
    read = ["on minus off, nats per token", *([TITLES[index]] if index else []), *_correction(family), *parts]
    n_resolved = sum(effect.verdict != NOT_RESOLVED for effect in found.effects.values())
    first = f"{_where(result)}, {_resolved(n_resolved, n, 'components')} ({'; '.join(read)})"
    if found.total.estimate is not None:
        first += f"; all together {signed(found.total.estimate)}"
        first += f" ({signed_between(found.total.low, found.total.high)})" if found.total.low is not None else ""
    return f"{first}.", _not_resolved(left)


def _resolved(n: int, of: int, noun: str) -> str:
    return f"{n} of {of} {noun} {'is' if n == 1 else 'are'} resolved"


def _correction(family: int) -> list[str]:
    return [f"Holm's correction over {family}"] if family > 1 else []


def _by_verdict(found: Iterable[tuple[str, str, float | None]], result: StudyResult) -> list[str]:
    """The resolved ones of (name, verdict, estimate): "gain: mla (−0.0410)", "harm: mtp (+0.1965)"."""
    perhaps = {f"{sign}{PERHAPS}": f"{sign}{PERHAPS}" for sign in (GAIN, HARM)}
    named: dict[str, list[str]] = {verdict: [] for verdict in (*VERDICTS, *perhaps)}
    for name, verdict, estimate in found:
        named[verdict].append(f"{name} ({signed(estimate)})")
    said = {GAIN: GAIN, HARM: HARM, NO_EFFECT: f"{NO_EFFECT} of {short(result.plan.margin_nats)}"} | perhaps
    return [f"{said[verdict]}: {listed(named[verdict])}" for verdict in said if named[verdict]]


def _not_resolved(left: list[str]) -> str:
    if len(left) > MAX_LEFT:
        left = [*left[:MAX_LEFT], f"{len(left) - MAX_LEFT} more, in the tables"]
    return f"Not resolved: {', '.join(left)}." if left else "None of them is left open."


def _more(found: Effect | Number, reason: str, n_runs: int | None, run_s: float | None) -> str:
    """What is excluded of an effect that is not resolved, and what would resolve it."""
    if found.high is None or found.low is None:
        return f"no interval, because {reason}"
    time = "" if run_s is None or not n_runs else f", {duration(n_runs * run_s)} one after another"
    needed = f"about {plural(n_runs, 'more run')}{time}" if n_runs else "too near the margin for any number of runs"
    return f"between {signed(found.low)} and {signed(found.high)}; {needed}"


def _runs(n_runs: int, run_s: float | None) -> str:
    """So many more runs, and their time."""
    time = "" if run_s is None else f" ({duration(n_runs * run_s)} one after another)"
    return f"{plural(n_runs, 'more run')}{time}"
