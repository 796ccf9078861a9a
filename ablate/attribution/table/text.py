"""An attribution as text for people: one table of effects, then what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence

from ablate.attribution.indices import TITLES
from ablate.attribution.results import Attribution, ComponentEffect, Number

SHOWN = ("first", "last", "owen", "shapley")


def render_text(attribution: Attribution) -> str:
    """Plain ASCII text without a line break at its end. Effects are on minus off."""
    question = attribution.question
    unit = f"log({question.metric})" if question.log else question.metric
    better = "lower" if question.lower_is_better else "higher"
    family = max(effect.family for effect in attribution.effects.values())
    verdict = f"verdict (Holm over {family})" if family > 1 else "verdict"
    header = ["component", *(TITLES[index] for index in _shown(attribution)), verdict, "more runs"]
    rows = [_row(name, effect, _shown(attribution)) for name, effect in attribution.effects.items()]
    parts = [
        f"Effects on {unit}, on minus off; {better} is better; {question.confidence:.0%} intervals; "
        f"margin {question.margin:g}",
        _aligned([header, *rows]),
        f"Total, full minus none: {_shown_number(attribution.total)}",
        _interactions(attribution),
        _design(attribution),
        *_reasons(attribution),
        *(f"Warning: {warning}." for warning in attribution.warnings),
    ]
    return "\n\n".join(part for part in parts if part)


def _shown(attribution: Attribution) -> list[str]:
    """Indices worth a column: those that exist for some component, Shapley only where it differs from Owen."""
    return [
        index
        for index in SHOWN
        if any(effect.indices[index].estimate is not None for effect in attribution.effects.values())
        and not (index == "shapley" and _same_as_owen(attribution))
    ]


def _same_as_owen(attribution: Attribution) -> bool:
    return all(effect.indices["shapley"] == effect.indices["owen"] for effect in attribution.effects.values())


def _row(name: str, effect: ComponentEffect, shown: Sequence[str]) -> list[str]:
    more = "?" if effect.runs_to_resolve is None else str(effect.runs_to_resolve)
    numbers = [_shown_number(effect.indices[index]) for index in shown]
    return [name, *numbers, effect.verdict, "" if effect.runs_to_resolve == 0 else more]


def _shown_number(number: Number) -> str:
    if number.estimate is None:
        return "-"
    if number.low is None or number.high is None:
        return f"{number.estimate:+.4g} [no interval]"
    return f"{number.estimate:+.4g} [{number.low:+.4g}, {number.high:+.4g}]"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _interactions(attribution: Attribution) -> str:
    known = [pair for pair in attribution.interactions if pair.number.estimate is not None]
    if not known:
        return ""
    rows = [
        [
            " x ".join(pair.components),
            _shown_number(pair.number),
            "" if pair.adjusted_p is None else f"{pair.adjusted_p:.3g}",
        ]
        for pair in sorted(known, key=lambda pair: -abs(pair.number.estimate or 0.0))
    ]
    return _aligned([["interaction", "Banzhaf index", "adjusted p"], *rows])


def _design(attribution: Attribution) -> str:
    design = attribution.design
    seeds = (
        f", {design['seeds']} seed{'s' * (design['seeds'] > 1)} ({design['seed_layout']})" if design["seeds"] else ""
    )
    noise = "" if attribution.residual_sd is None else f"; noise of one run {attribution.residual_sd:.3g}"
    methods = sorted({effect.method for effect in attribution.effects.values() if effect.method})
    return (
        f"Design: {design['kind']}, {design['runs']} runs of {design['variants']} variants "
        f"({design['feasible_variants']} feasible){seeds}{noise}; {'; '.join(methods) or 'no interval'}."
    )


def _reasons(attribution: Attribution) -> list[str]:
    """Why a number or an interval that the table leads one to expect is missing; each reason once."""
    numbers = [attribution.total]
    for effect in attribution.effects.values():
        numbers += [effect.indices[index] for index in ("first", "last", "owen")]
    reasons = dict.fromkeys(number.reason for number in numbers if number.reason)
    return [f"Not given: {reason}." for reason in reasons if reason not in attribution.warnings]
