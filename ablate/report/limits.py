"""What a study does not show, as a report says it."""

from __future__ import annotations

from collections.abc import Iterator

from ablate.attribution.study.compare import StudyResult, VariantResult
from ablate.quantities import scaled
from ablate.report.names import known, title

V3_PARAMETERS, V3_TOKENS = 671e9, 14.8e12  # arXiv:2412.19437, abstract

# What a component affects besides the loss -> why the study does not show it.
OUTSIDE_LOSS = {
    "speed": "speed is that of this machine at this size",
    "memory": "memory is that of this machine at this size",
    "KV bytes": "the smaller KV cache pays at decoding, which is counted here in bytes and not timed",
    "balance": "even expert loads pay across many devices, and these runs had one",
    "decoding acceptance": "the share of accepted drafts is given, what it saves in decoding is not timed",
}


def limits(result: StudyResult) -> Iterator[str]:
    """One text for each limit, the largest first."""
    yield _scale(result.variants[0])
    if len(result.variants) > 1 and len({v.planned.learning_rate for v in result.variants}) == 1:
        yield (
            "All variants had one learning rate. The best rate of each was not sought in this study, so part of an "
            "effect may be the rate's."
        )
    yield (
        "The verdicts are about held-out language-model loss on one corpus. Gains that were published on benchmarks "
        "can be invisible in it."
    )
    if any(v.planned.n_branch_steps for v in result.variants) and len({v.planned.n_steps for v in result.variants}) > 1:
        yield (
            "All variants warm up for the same number of steps, and each decays over the same share of its own. "
            "The control spike-flops of sweeps/calibration.toml shows whether the cost in tokens is read right."
        )
    for name in _components(result):
        component = known(name)
        outside = [OUTSIDE_LOSS[a] for a in component.affects if a in OUTSIDE_LOSS] if component else []
        if outside:
            said = f"{title(name)} is not made for loss alone: {'; '.join(outside)}."
            yield said[0].upper() + said[1:]
    if result.plan.design.name == "one" or len(result.comparisons) == 1:
        yield "Each effect is beside everything else as it was; interactions with the rest are not measured."


def _components(result: StudyResult) -> list[str]:
    """What the study is about, in any design: the components that two of its variants differ in."""
    levels = [v.planned.levels for v in result.variants]
    names = dict.fromkeys(name for each in levels for name in each)
    return [name for name in names if len({each.get(name) for each in levels}) > 1]


def _scale(reference: VariantResult) -> str:
    parameters, n_tokens = reference.planned.cost.get("total_parameters", 0), reference.planned.n_tokens
    if not parameters or not n_tokens:
        return "The scale of these runs is not that of DeepSeek-V3; signs and sizes do not carry over."
    larger, longer = scaled(V3_PARAMETERS / parameters), scaled(V3_TOKENS / n_tokens)
    return (
        f"Scale: {scaled(parameters)} parameters and {scaled(n_tokens)} tokens a run, where DeepSeek-V3 has "
        f"{scaled(V3_PARAMETERS)} parameters and saw {scaled(V3_TOKENS)} tokens: {larger} and {longer} times as many. "
        "Neither the size nor the sign of an effect carries over from one to the other."
    )
