"""The gap between two models as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ablate.quantities import between, number, percent, scaled, times, whole

TITLES = {"tokens": "tokens", "flops_per_token": "FLOPs per token", "flops_per_s": "FLOP/s per GPU"}
EQUAL = 0.02  # of a published metric: as far apart as two models may be to be called equal
RESOLVABLE = 0.03


def render(document: Mapping[str, Any]) -> str:
    """Plain text: the identity, the path of FLOPs per token, FLOP/s by simulation, what it does not say."""
    return "\n".join([*_identity(document), "", *_path(document), "", *_rates(document), "", *_limits(document)])


def _identity(document: Mapping[str, Any]) -> Iterator[str]:
    a, b = document["models"]
    factors = document["factors"]
    terms = " x ".join(number(factor["estimate"], 3) for factor in factors.values())
    yield (
        f"{a['name']} took {number(document['gpu_hours_ratio']['estimate'], 2)} times the GPU hours of {b['name']} "
        f"({scaled(a['gpu_hours'])} {a['device']}, {scaled(b['gpu_hours'])} {b['device']}) = {terms}"
    )
    yield ""
    yield f"{'factor':18}{a['name']:>16}{b['name']:>16}{'ratio':>10}   range            of the logarithm"
    shown = {
        "tokens": [scaled(m["tokens"]) for m in (a, b)],
        "flops_per_token": [scaled(m["flops_per_token"], "FLOP") for m in (a, b)],
        "flops_per_s": [scaled(m["flops_per_s_per_gpu"], "FLOP/s") for m in (a, b)],
    }
    for name, factor in factors.items():
        cells = "".join(f"{cell:>16}" for cell in shown[name])
        share = percent(factor["share_of_log"], 2)
        yield (
            f"{TITLES[name]:18}{cells}{number(factor['estimate'], 3):>10}   "
            f"{between(factor['low'], factor['high'], 3):17}{share:6} {factor['evidence']}"
        )
    for model in (a, b):
        with_extra = model["flops_per_token_with_extra"]
        if with_extra > 1.001 * model["flops_per_token"]:
            own, rate = with_extra / model["flops_per_token"], model["flops_per_s_per_gpu"]
            yield (
                f"With what {model['name']} trains beside the deployed model (multi-token prediction) it spends "
                f"{scaled(with_extra, 'FLOP')} a token, at {scaled(rate * own, 'FLOP/s')}; the product is the same."
            )


def _path(document: Mapping[str, Any]) -> Iterator[str]:
    yield "FLOPs per token, step by step (exact; a step's factor is how many times fewer):"
    for step in document["flops_per_token_path"]:
        yield f"  {step['step']:62}{scaled(step['flops_per_token'], 'FLOP'):>12} {times(step['factor']):>9}"


def _rates(document: Mapping[str, Any]) -> Iterator[str]:
    simulated = document["simulated"]
    yield f"Simulated, not measured, on {simulated['cluster']}: seconds a token against the second model"
    for row in simulated["rows"]:
        slower, hours = row["seconds_per_token_factor"], row["gpu_hours_per_trillion_tokens"]
        rate = row["flops_per_s_per_gpu"]
        size = f"{times(slower['estimate'])} ({between(slower['low'], slower['high'], 2)})"
        unresolved = 1e-9 < abs(slower["estimate"] - 1) < RESOLVABLE
        notes = ["not resolvable"] * unresolved + ["does not fit the memory"] * (not row["memory_fits"])
        yield (
            f"  {row['variant']:32}{size:26}{whole(hours['estimate']):>10} GPU hours a trillion tokens, "
            f"{scaled(rate['estimate'], 'FLOP/s')}{'; ' + ', '.join(notes) if notes else ''}"
        )


def _limits(document: Mapping[str, Any]) -> Iterator[str]:
    for quality in document["quality"]:
        first, second = quality["values"]
        far = abs(first - second) / first
        said = f"{percent(far, 2)} apart, so about equal" if far <= EQUAL else f"{percent(far, 2)} apart, so not equal"
        yield f"Quality: {quality['metric']} {first} and {second} (published), {said}. Why, this does not say."
    if not document["quality"]:
        yield "Quality: no metric is published of both; equal GPU hours would not mean equal models."
    for model in document["models"]:
        yield f"{model['name']}: {model['source']}" + (f"; {model['note']}" if model["note"] else "")
