"""What a report says in words. It names a winner only where the verdict is gain or harm."""

from __future__ import annotations

from ablate.attribution.results import Attribution
from ablate.attribution.study.compare import MISSING, Comparison, StudyResult, VariantResult
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT, NOT_RESOLVED
from ablate.report.facts import budget, matched
from ablate.report.format import (
    between,
    clean,
    listed,
    number,
    percent,
    plural,
    scaled,
    short,
    signed,
    signed_between,
    times,
)
from ablate.report.tables import confidence, ratio

V3_PARAMETERS, V3_TOKENS = 671e9, 14.8e12

OUTSIDE_LOSS = {
    "speed": "speed is that of this machine at this size",
    "memory": "memory is that of this machine at this size",
    "KV bytes": "the smaller KV cache pays at decoding, which is counted here in bytes and not timed",
    "balance": "even expert loads pay across many devices, and these runs had one",
    "decoding acceptance": "the share of accepted drafts is given, what it saves in decoding is not timed",
}


def scale(result: StudyResult) -> str:
    """Which study this is, in one line."""
    reference = result.variants[0]
    size = scaled(reference.cost.get("total_parameters"))
    return (
        f"Preset {clean(result.plan.preset)}, {size} parameters, {plural(len(result.variants), 'variant')}, "
        f"{plural(len(result.plan.seeds), 'seed')}, {budget(result)} a run, equal {matched(result)}"
    )


def title(component: str) -> str:
    """A component's title with its name; the name alone where this program does not know it."""
    from ablate.components.registry import component as known

    try:
        return f"{known(component).title} ({component})"
    except ValueError:
        return clean(component)


def subject(comparison: Comparison) -> str:
    """What the two sides differ in, and what goes with it since it means nothing alone."""
    found = listed(title(change.component) for change in comparison.changes if not change.forced)
    forced = listed(clean(change.component) for change in comparison.changes if change.forced)
    return f"{found} with {forced}, which requires it," if forced else found or clean(comparison.name)


def unfinished(result: StudyResult) -> tuple[str, ...]:
    waiting = [run for run in result.runs if run.status in ("missing", "failed")]
    if not waiting:
        return ()
    return (
        f"this study is not finished: {len(waiting)} of {plural(len(result.runs), 'run')} still to be done; "
        "the same command goes on with what is left",
    )


def answer(result: StudyResult) -> tuple[str, str]:
    """Two sentences: what the study shows, and what it costs or what would decide it."""
    if result.attribution is not None:
        return _split(result.attribution, result)
    if result.attribution_reason:
        return (
            f"The study's runs do not give an attribution: {clean(result.attribution_reason)}.",
            "Run what is missing.",
        )
    if not result.comparisons:
        return "The study has one variant, so there is nothing to compare.", "Add a component to turn off."
    if len(result.comparisons) == 1:
        return _single(result.comparisons[0], result)
    return _several(result)


def _single(c: Comparison, result: StudyResult) -> tuple[str, str]:
    effect, margin = c.loss, short(c.loss.margin)
    many = sum(not change.forced for change in c.changes) > 1
    interval = f"{confidence(result)} interval {{}}, {_units(c)}"
    if effect.verdict in (GAIN, HARM):
        assert effect.estimate is not None
        assert effect.low is not None
        assert effect.high is not None
        size, ends = effect.estimate, (effect.low, effect.high)
        verb = "lower" if effect.verdict == GAIN else "raise"
        if effect.verdict == GAIN:
            size, ends = -size, (-ends[1], -ends[0])
        said = (
            f"At equal {matched(result)}, {subject(c)} {verb}{'' if many else 's'} the held-out loss by {number(size)} "
            f"nats per token ({interval.format(between(*ends))}): a {effect.verdict}"
            + (f" beyond the margin of {margin}." if effect.margin else ".")
        )
        return said, _price(c, result)
    found = (
        f"with minus without is {signed(effect.estimate)} nats per token"
        if effect.estimate is not None
        else "no pair of runs has finished"
    )
    if effect.low is not None:
        found += f" ({interval.format(signed_between(effect.low, effect.high))})"
    if effect.verdict == NO_EFFECT:
        return (
            f"At equal {matched(result)}, {subject(c)} {'have' if many else 'has'} no effect within the margin of "
            f"{margin} nats per token on the held-out loss: {found}.",
            _price(c, result),
        )
    return (
        f"Whether {subject(c)} {'change' if many else 'changes'} the held-out loss at equal {matched(result)} is not "
        f"resolved: {found}.",
        _what_resolves(c, result),
    )


def _units(c: Comparison) -> str:
    return plural(c.loss.n, "paired seed") if c.pairing_ok else f"{plural(c.loss.n, 'run')}, unpaired"


def _what_resolves(c: Comparison, result: StudyResult) -> str:
    effect = c.loss
    if effect.reason is not None:
        return f"No interval is given, because {why_none(c, result)}."
    if not effect.seeds_to_resolve:
        return "The estimate is so near the margin that no practical number of seeds would resolve it."
    return (
        f"About {plural(effect.seeds_to_resolve, 'more seed')} of each variant would resolve it "
        "(80 % power, if the estimate is the truth)."
    )


def why_none(c: Comparison, result: StudyResult) -> str:
    """Why a comparison has no interval: the runs that it lacks, by name."""
    lost = [
        f"seed {run.seed} of {clean(run.variant)} {'is missing' if run.status == MISSING else run.status}"
        for run in result.runs
        if run.variant in (c.with_variant, c.without_variant) and run.status != "finished"
    ]
    return listed(lost) or clean(c.loss.reason)


def _price(c: Comparison, result: StudyResult) -> str:
    """What the component costs: arithmetic exactly, speed as it was measured or emulated."""
    flops = _flops_ratio(c, result)
    arithmetic = f"it takes {times(flops)} the training FLOPs per token" if flops else "its FLOPs are not known"
    value, interval = ratio(c.speed)
    if c.speed is None or c.speed.estimate is None:
        said = f"{arithmetic}; no speed ratio is given" + (
            f" because {clean(c.speed_reason)}" if c.speed_reason else ""
        )
    else:
        ends = f" ({confidence(result)} interval {interval})" if c.speed.low is not None else ""
        kind = (
            " in emulation, which says nothing of real speed" if "emulated" in c.speed_evidence else " on this machine"
        )
        said = f"{arithmetic} and runs at {value} the tokens per second{ends}{kind}"
    return said[0].upper() + said[1:] + "."


def _flops_ratio(c: Comparison, result: StudyResult) -> float | None:
    costs = {v.name: v.cost.get("training_flops_per_token") for v in result.variants}
    on, off = costs[c.with_variant], costs[c.without_variant]
    return on / off if on and off else None


def _several(result: StudyResult) -> tuple[str, str]:
    parts = []
    for verdict in (GAIN, HARM, NO_EFFECT):
        found = [c for c in result.comparisons if c.loss.verdict == verdict]
        if found:
            named = listed(f"{clean(c.name)} ({signed(c.loss.estimate)})" for c in found)
            what = (
                f"no effect within the margin of {short(result.plan.margin_nats)}" if verdict == NO_EFFECT else verdict
            )
            parts.append(f"{what}: {named}")
    open_ = [c for c in result.comparisons if c.loss.verdict == NOT_RESOLVED]
    n = len(result.comparisons)
    first = f"Of {n} effects on the held-out loss at equal {matched(result)}, {n - len(open_)} are resolved"
    first += f" (with minus without, nats per token; {'; '.join(parts)})." if parts else "."
    if not open_:
        return first, "None of them is left open."
    return first, f"Not resolved: {listed(f'{clean(c.name)} ({_more(c, result)})' for c in open_)}."


def _split(found: Attribution, result: StudyResult) -> tuple[str, str]:
    """A designed study: the verdicts, each on the headline index, and the total where the design gives one."""
    parts, n = [], len(found.effects)
    for verdict in (GAIN, HARM, NO_EFFECT):
        named = [
            f"{clean(name)} ({signed(effect.indices[effect.verdict_from].estimate)})"
            for name, effect in found.effects.items()
            if effect.verdict == verdict and effect.verdict_from
        ]
        if named:
            parts.append(f"{verdict}: {listed(named)}")
    open_ = [name for name, effect in found.effects.items() if effect.verdict == NOT_RESOLVED]
    first = f"Of {n} components at equal {matched(result)}, {n - len(open_)} are resolved"
    first += f" (on minus off, nats per token; {'; '.join(parts)})" if parts else ""
    if found.total.estimate is not None:
        first += f"; all together {signed(found.total.estimate)}"
    left = f"Not resolved: {listed(clean(name) for name in open_)}." if open_ else "None of them is left open."
    return f"{first}.", left


def _more(c: Comparison, result: StudyResult) -> str:
    if c.loss.reason is not None:
        return f"no interval, because {why_none(c, result)}"
    n = c.loss.seeds_to_resolve
    return f"about {plural(n, 'more seed')}" if n else "too near the margin for any number of seeds"


def effect_notes(result: StudyResult) -> tuple[str, ...]:
    """How to read the effects, and what this study can see."""
    margin = short(result.plan.margin_nats)
    notes = [
        "The difference is the loss with the component minus the loss without it, so a negative one is a gain. "
        f"Verdicts: gain or harm where the {confidence(result)} interval lies wholly beyond ±{margin} nats; no effect "
        f"within the margin where the {percent(2 * result.plan.confidence - 1)} interval lies inside ±{margin}; "
        "not resolved otherwise.",
        "More seeds to resolve: further seeds of both variants that decide with 80 % power if the estimate is the "
        "truth.",
    ]
    if len(result.comparisons) > 1:
        notes.append(
            "Each interval holds by itself; with several effects the chance that one of them misses is larger."
        )
    if any(len(c.changes) > 1 for c in result.comparisons):
        notes.append("Components named together were turned off together: their shares are not told apart here.")
    if result.plan.design == "add-one-in":
        notes.append("Each component is added alone to the variant without any of them.")
    notes += [
        f"{clean(c.name)}: no interval, because {why_none(c, result)}." for c in result.comparisons if c.loss.reason
    ]
    if result.noise is None:
        return (*notes, f"Noise: {clean(result.noise_reason)}.")
    return (
        *notes,
        f"Noise: runs of one variant differ from seed to seed with standard deviation {number(result.noise.sd)} nats "
        f"per token (pooled, {plural(result.noise.df, 'degree')} of freedom).",
    )


def speed_notes(result: StudyResult) -> tuple[str, ...]:
    notes = [
        "Speed is the median optimizer step of each run, without evaluation and checkpoints; memory is the peak of the "
        "device, or of the process where there is none. FLOPs and KV bytes are exact closed forms."
    ]
    emulated = [clean(v.name) for v in result.variants if "emulated" in v.evidence.get("speed", ())]
    if emulated:
        notes.insert(
            0,
            f"Emulated speed and memory: {listed(emulated)}. This machine lacks part of their arithmetic, which was "
            "computed exactly but not fast; the figures say nothing of hardware that has it, and are not set against "
            "measured ones.",
        )
    return tuple(notes)


def limits(result: StudyResult) -> tuple[str, ...]:
    """What the study does not show."""
    reference = result.variants[0]
    found = [_scale_limit(reference), *_rate_limit(result)]
    found.append(
        "The verdicts are about held-out language-model loss on one corpus. Gains that were published on benchmarks "
        "can be invisible in it."
    )
    for name in dict.fromkeys(change.component for c in result.comparisons for change in c.changes):
        outside = [OUTSIDE_LOSS[a] for a in _affects(name) if a in OUTSIDE_LOSS]
        if outside:
            said = f"{title(name)} is not made for loss alone: {'; '.join(outside)}."
            found.append(said[0].upper() + said[1:])
    if result.plan.design == "one" or len(result.comparisons) == 1:
        found.append("Each effect is beside everything else as it was; interactions with the rest are not measured.")
    return tuple(found)


def _scale_limit(reference: VariantResult) -> str:
    parameters, n_tokens = reference.cost.get("total_parameters", 0), reference.n_tokens
    if not parameters or not n_tokens:
        return "The scale of these runs is not that of DeepSeek-V3; signs and sizes do not carry over."
    larger, longer = scaled(V3_PARAMETERS / parameters), scaled(V3_TOKENS / n_tokens)
    return (
        f"Scale: {scaled(parameters)} parameters and {scaled(n_tokens)} tokens a run, where DeepSeek-V3 has 671 B "
        f"parameters and saw 14.8 T tokens: {larger} and {longer} times as many. Neither the size nor the sign of an "
        "effect carries over from one to the other."
    )


def _rate_limit(result: StudyResult) -> tuple[str, ...]:
    if len({v.learning_rate for v in result.variants}) > 1 or len(result.variants) < 2:
        return ()
    return (
        "All variants had one learning rate. The best rate of each was not sought in this study, so part of an effect "
        "may be the rate's.",
    )


def _affects(name: str) -> tuple[str, ...]:
    from ablate.components.registry import component

    try:
        return component(name).affects
    except ValueError:
        return ()
