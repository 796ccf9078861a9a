"""The answer in at most five sentences, each made from the numbers of one kind of evidence and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT, NOT_RESOLVED
from ablate.evidence.changes.content import AnswerContent, Change
from ablate.evidence.changes.measured import PERHAPS_GAIN, PERHAPS_HARM, LogCost, Measured, same_size
from ablate.evidence.changes.reported import AGREES, CANNOT_TELL, DISAGREES
from ablate.evidence.changes.simulated import Factor
from ablate.evidence.changes.trend import Reach
from ablate.quantities import between, listed, number, percent, plural, scaled

FACTORS = {"tokens": "tokens", "flops_per_token": "FLOPs per token", "flops_per_s": "FLOP/s of a GPU"}
DECIMALS = 2  # of a factor
AGREEMENTS = (AGREES, DISAGREES, CANNOT_TELL)


def sentences(content: AnswerContent) -> tuple[str, ...]:
    """Cost, speed, what was measured, what papers say, and how far all that reaches."""
    return (*cheaper(content), *faster(content), *better(content), *beside(content), far(content))


def factor(log: float, decimals: int = DECIMALS) -> str:
    """A logarithm as a factor."""
    return f"{number(math.exp(log), decimals)}×"


def saving(cost: LogCost | None) -> str:
    """A saving with its interval, or the bound that is known."""
    if cost is None:
        return "not measured"
    if cost.estimate is not None:
        return f"{factor(cost.estimate)} ({between(math.exp(cost.low), math.exp(cost.high), DECIMALS)})"
    if math.isfinite(cost.low):
        return f"at least {factor(cost.low)}"
    return f"at most {factor(cost.high)}" if math.isfinite(cost.high) else "not known"


def speed(found: Factor) -> str:
    """A factor of tokens a second with its range."""
    return f"{number(found.estimate, DECIMALS)}× ({between(found.low, found.high, DECIMALS)})"


def cheaper(content: AnswerContent) -> Iterator[str]:
    """The identity of GPU hours, which factor is largest, and which change makes FLOPs per token few."""
    if content.cost is None:
        return
    cost, factors = content.cost, content.cost.identity["factors"]
    product = " × ".join(f"{number(f['estimate'], 2)} ({FACTORS[name]})" for name, f in factors.items())
    largest = max(factors, key=lambda name: abs(math.log(factors[name]["estimate"])))
    hours = number(cost.identity["gpu_hours_ratio"]["estimate"], 1)
    said = (
        f"Cheaper: {_short(cost.first_title)} took {hours} times the GPU hours of {_short(cost.second_title)} = "
        f"{product}, of which {FACTORS[largest]} are {percent(factors[largest]['share_of_log'], 2)} in logarithms"
    )
    steps = [step for step in cost.path[1:] if step["step"].endswith(" on")]
    if largest == "flops_per_token" and steps:
        step = max(steps, key=lambda each: abs(math.log(each["factor"])))
        name = step["step"].removesuffix(" on")
        said += (
            f"; what makes them few is {name}, {number(step['factor'], 1)} times fewer than a dense model of as many "
            "parameters (exact)"
        )
    yield said + "."


def _short(title: str) -> str:
    """A model's name without what its totals are of."""
    return title.partition(",")[0]


def faster(content: AnswerContent) -> Iterator[str]:
    """Which changes speed the step up, slow it down, or are below what the simulator resolves."""
    if not content.speeds.changes:
        return
    known = [(change.name, change.simulated) for change in content.changes if change.simulated is not None]
    ordered = sorted(known, key=lambda pair: -pair[1].factor.estimate)
    resolved = [(name, s.factor) for name, s in ordered if s.resolved]
    parts = [
        _clause([f"{name} {speed(f)}" for name, f in resolved if f.estimate > 1], "speeds it up", "speed it up"),
        _clause([f"{n} {speed(f)}" for n, f in reversed(resolved) if f.estimate < 1], "slows it down", "slow it down"),
        _clause([name for name, s in ordered if not s.resolved], "is not resolved", "are not resolved"),
    ]
    yield (
        f"Faster (simulated): on {content.speeds.cluster_title}, in tokens a second and each against its off, "
        f"{'; '.join(filter(None, parts))}."
    )


def better(content: AnswerContent) -> Iterator[str]:
    """What was measured in tokens for the same loss at the largest size, and how it moved with size."""
    sized = {c.name: c.largest for c in content.moving if c.largest is not None and c.largest.tokens is not None}
    if not sized:
        yield "Better (measured here): nothing is known, since no study that gives the cost of a loss is at hand."
        return
    largest = max(sized.values(), key=lambda each: each.flops)
    known = {name: m.tokens for name, m in sized.items() if m.tokens and same_size(m, largest)}
    parts = [
        _clause(_named(known, GAIN), "saves tokens", "save tokens"),
        _clause(_named(known, PERHAPS_GAIN), "saves tokens, perhaps negligibly", "save tokens, perhaps negligibly"),
        _clause(_named(known, HARM), "costs tokens", "cost tokens"),
        _clause(_named(known, PERHAPS_HARM), "costs tokens, perhaps negligibly", "cost tokens, perhaps negligibly"),
        _clause(_named(known, NO_EFFECT), "changes them by no more than 2 %", "change them by no more than 2 %"),
        _clause(
            [n for n, cost in known.items() if cost.verdict == NOT_RESOLVED], "is not resolved", "are not resolved"
        ),
        _clause([n for n in sized if n not in known], "was measured smaller only", "were measured smaller only"),
        _clause([c.name for c in content.moving if c.name not in sized], "was not measured", "were not measured"),
    ]
    yield (
        f"Better (measured here): at {_sizes(sized, largest)} parameters, in tokens for the same loss, above 1 a "
        f"saving, {'; '.join(filter(None, parts))}{_whole(content)}{_moved(content.moving)}."
    )


def _sizes(sized: Mapping[str, Measured], largest: Measured) -> str:
    """Parameters of the models that were compared at this size: a dense study's are fewer than the full recipe's."""
    found = sorted({m.parameters for m in sized.values() if same_size(m, largest)})
    return scaled(found[0]) if len(found) == 1 else f"{scaled(found[0])} to {scaled(found[-1])}"


def _clause(names: Sequence[str], one: str, several: str) -> str:
    return f"{listed(names)} {several if len(names) > 1 else one}" if names else ""


def _named(known: Mapping[str, LogCost], verdict: str) -> list[str]:
    """The changes of a verdict with their savings, the largest first."""
    found = [(name, cost) for name, cost in known.items() if cost.verdict == verdict]
    return [f"{name} {saving(cost)}" for name, cost in sorted(found, key=lambda pair: -(pair[1].estimate or 0))]


def _whole(content: AnswerContent) -> str:
    if not content.together:
        return ""
    last = content.together[-1]
    return f"; all together {factor(last.log_tokens)} in tokens and {factor(last.log_flops)} in training FLOPs"


def _moved(changes: Sequence[Change]) -> str:
    """Which savings move with size; "" where there is one size only."""
    slopes = {c.name: c.trend for c in changes if c.trend.per_decade is not None}
    if not slopes:
        return ""
    moved = {name: t for name, t in slopes.items() if t.resolved}
    named = [f"that of {name} by {factor(t.per_decade or 0.0)}" for name, t in moved.items()]
    said = f"a decade of compute multiplies savings, {listed(named)}" if moved else "no saving moves resolvably"
    n_sizes = sorted({t.n_sizes for t in (moved or slopes).values()})
    return f"; over {' to '.join(map(str, dict.fromkeys((n_sizes[0], n_sizes[-1]))))} sizes {said}"


def beside(content: AnswerContent) -> Iterator[str]:
    """On which changes these runs agree with papers."""
    kinds = {kind: [c.name for c in content.moving if c.reported.agreement == kind] for kind in AGREEMENTS}
    parts = [
        f"these runs and papers agree on {listed(kinds[AGREES])}" if kinds[AGREES] else "",
        f"these runs and papers disagree on {listed(kinds[DISAGREES])}" if kinds[DISAGREES] else "",
        f"whether they agree on {listed(kinds[CANNOT_TELL])} cannot be told" if kinds[CANNOT_TELL] else "",
    ]
    n = plural(len(content.moving), "change")
    yield f"Beside the papers: of the {n} that can move the loss, {'; '.join(filter(None, parts))}."


def far(content: AnswerContent) -> str:
    """Where claims from these measurements end, and where the model's own training lies."""
    if content.reach is None:
        return f"How far it reaches: nothing was measured, so whether a change made {content.preset} better is open."
    r: Reach = content.reach
    if math.isinf(r.claims_end_flops):
        return (
            f"How far it reaches: {r.n_sizes} sizes up to {scaled(r.largest_flops, 'FLOP')} a run allow a trend with "
            f"its band and no more; the training of {content.preset} took {scaled(r.model_flops, 'FLOP')}."
        )
    end, model = scaled(r.claims_end_flops, "FLOP"), scaled(r.model_flops, "FLOP")
    said = f"How far it reaches: the runs allow claims up to {end} a run, half a decade beyond the largest size"
    if r.decades_beyond <= 0:
        return f"{said}, and the training of {content.preset} ({model}) lies within them."
    return (
        f"{said}; the training of {content.preset} ({model}) lies {number(r.decades_beyond, 1)} decades further, so "
        "what a change was worth there in tokens is not known from here."
    )
