"""The answer of a report in two sentences: what the study shows, and what it costs or what would decide it.

A winner is named only where the verdict is gain or harm.
"""

from __future__ import annotations

from collections.abc import Iterable

from ablate.attribution.results import Attribution
from ablate.attribution.study.compare import Comparison, StudyResult
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT, NOT_RESOLVED
from ablate.quantities import between, listed, number, plural, short, signed, signed_between, times
from ablate.report.cleaning import clean
from ablate.report.names import confidence, matched, subject, why_no_interval
from ablate.report.tables.speed import ratio


def answer(result: StudyResult) -> tuple[str, str]:
    """Both sentences."""
    if result.attribution is not None:
        return _of_attribution(result.attribution, result)
    if result.attribution_reason:
        return (
            f"The study's runs do not give an attribution: {clean(result.attribution_reason)}.",
            "Run what is missing.",
        )
    if not result.comparisons:
        return "The study has one variant, so there is nothing to compare.", "Add a component to turn off."
    if len(result.comparisons) == 1:
        return _of_one(result.comparisons[0], result)
    return _of_several(result)


def _of_one(c: Comparison, result: StudyResult) -> tuple[str, str]:
    if c.loss.verdict in (GAIN, HARM):
        return _decided(c, result), _price(c, result)
    many = _is_plural(c)
    if c.loss.verdict == NO_EFFECT:
        return (
            f"At equal {matched(result)}, {subject(c)} {'have' if many else 'has'} no effect within the margin of "
            f"{short(c.loss.margin)} nats per token on the held-out loss: {_difference(c, result)}.",
            _price(c, result),
        )
    return (
        f"Whether {subject(c)} {'change' if many else 'changes'} the held-out loss at equal {matched(result)} is not "
        f"resolved: {_difference(c, result)}.",
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
        f"At equal {matched(result)}, {subject(c)} {verb}{'' if _is_plural(c) else 's'} the held-out loss by "
        f"{number(size)} nats per token ({_interval(c, result, between(*ends))}): a {effect.verdict}{beyond}."
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
    if c.loss.reason is not None:
        return f"No interval is given, because {why_no_interval(c, result)}."
    if not c.loss.seeds_to_resolve:
        return "The estimate is so near the margin that no practical number of seeds would resolve it."
    return (
        f"About {plural(c.loss.seeds_to_resolve, 'more seed')} of each variant would resolve it "
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
    parts = _by_verdict(((clean(c.name), c.loss.verdict, c.loss.estimate) for c in result.comparisons), result)
    left = [f"{clean(c.name)} ({_more(c, result)})" for c in result.comparisons if c.loss.verdict == NOT_RESOLVED]
    n = len(result.comparisons)
    first = f"Of {n} effects on the held-out loss at equal {matched(result)}, {n - len(left)} are resolved"
    first += f" (with minus without, nats per token; {parts})." if parts else "."
    return first, _not_resolved(left)


def _of_attribution(found: Attribution, result: StudyResult) -> tuple[str, str]:
    """A designed study: each verdict with the index that it was drawn from, and the total where there is one."""
    effects = {clean(name): effect for name, effect in found.effects.items()}
    parts = _by_verdict(
        (
            (name, effect.verdict, effect.indices[effect.verdict_from].estimate)
            for name, effect in effects.items()
            if effect.verdict_from
        ),
        result,
    )
    left = [name for name, effect in effects.items() if effect.verdict == NOT_RESOLVED]
    first = f"Of {len(effects)} components at equal {matched(result)}, {len(effects) - len(left)} are resolved"
    first += f" (on minus off, nats per token; {parts})" if parts else ""
    if found.total.estimate is not None:
        first += f"; all together {signed(found.total.estimate)}"
    return f"{first}.", _not_resolved(left)


def _by_verdict(found: Iterable[tuple[str, str, float | None]], result: StudyResult) -> str:
    """The resolved ones of (name, verdict, estimate): "gain: mla (−0.0410); harm: mtp (+0.1965)"."""
    named: dict[str, list[str]] = {GAIN: [], HARM: [], NO_EFFECT: [], NOT_RESOLVED: []}
    for name, verdict, estimate in found:
        named[verdict].append(f"{name} ({signed(estimate)})")
    said = {GAIN: GAIN, HARM: HARM, NO_EFFECT: f"{NO_EFFECT} of {short(result.plan.margin_nats)}"}
    return "; ".join(f"{said[verdict]}: {listed(named[verdict])}" for verdict in said if named[verdict])


def _not_resolved(left: list[str]) -> str:
    return f"Not resolved: {listed(left)}." if left else "None of them is left open."


def _more(c: Comparison, result: StudyResult) -> str:
    if c.loss.reason is not None:
        return f"no interval, because {why_no_interval(c, result)}"
    n = c.loss.seeds_to_resolve
    return f"about {plural(n, 'more seed')}" if n else "too near the margin for any number of seeds"
