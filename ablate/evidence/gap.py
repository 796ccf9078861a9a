"""Why one model took fewer GPU hours than another: tokens, FLOPs per token and FLOP/s, and what is in the last two."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ablate.cluster.question import Asked, Request, resolve
from ablate.cluster.search import search
from ablate.cluster.simulate import Question, Simulation, simulate
from ablate.components.component import ON
from ablate.components.moe.spec import SwiGLU
from ablate.components.variants import Variant
from ablate.documents import read_toml
from ablate.errors import nearest
from ablate.evidence.gap_text import render
from ablate.presets import preset, preset_file
from ablate.spec.cost import ModelCost
from ablate.spec.decoding import decode
from ablate.spec.model import ModelSpec
from ablate.spec.ranges import NotNegative, Positive, checked
from ablate.spec.run import Preset

FOLDER = "totals"
SAMPLES = 48
EXTRA = "mtp"  # trained beside the deployed model, and outside of published MFUs
# What the FLOP/s of the second model are simulated without: title, components off.
WITHOUT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("without FP8", ("fp8",)),
    ("without DualPipe (1F1B)", ("dualpipe",)),
    ("with a flat all-to-all", ("alltoall",)),
    ("without all three", ("fp8", "dualpipe", "alltoall")),
)


@checked("totals")
@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What is published of a whole training run. `preset`: the model's sizes, by name or as a TOML file.

    Roundings are half of the last digit. quality: metric -> value, lower better: whether two models are equally good.
    """

    title: str
    preset: str
    tokens: Positive
    gpu_hours: Positive
    device: str
    flops_per_s: Positive  # the device's dense peak in BF16
    source: str
    tokens_rounding: NotNegative = 0.0
    gpu_hours_rounding: NotNegative = 0.0
    quality: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """Totals with the model they are of."""

    totals: Totals
    preset: Preset
    model: ModelSpec

    @property
    def length(self) -> int:
        return self.preset.trainer.sequence_length

    @property
    def flops_per_token(self) -> float:
        """Of the deployed model, causal: what published MFUs count."""
        return deployed_flops(self.model.cost(self.length))

    @property
    def flops_per_s(self) -> float:
        return self.totals.tokens * self.flops_per_token / (self.totals.gpu_hours * 3600)


def deployed_flops(cost: ModelCost) -> float:
    return 3.0 * cost.main.forward_flops


def totals_names() -> tuple[str, ...]:
    """The models with published totals that are shipped, sorted."""
    folder = resources.files(__package__) / FOLDER
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir()))


def totals(name: str) -> Known:
    """Shipped totals, or those of a TOML file; ValueError names the nearest."""
    if name in totals_names():
        text = (resources.files(__package__) / FOLDER / f"{name}.toml").read_text(encoding="utf-8")
        found = decode(Totals, tomllib.loads(text), "")
    elif name.endswith(".toml"):
        data = read_toml(Path(name), "the totals", "give a TOML file with the fields of published totals")
        found = decode(Totals, data, name)
    else:
        raise ValueError(f"no totals of {name!r} are shipped; {nearest(name, totals_names())}; or give a TOML file")
    base = preset_file(Path(found.preset)) if found.preset.endswith(".toml") else preset(found.preset)
    return Known(totals=found, preset=base, model=Variant.full(base).resolve(base).model)


def gap_document(first: str, second: str, cluster: str) -> tuple[dict[str, Any], str]:
    """The document and its text. ValueError for models without totals, or that are one."""
    if first == second:
        raise ValueError(f"--gap was given {first} twice; give two models")
    a, b = totals(first), totals(second)
    document: dict[str, Any] = {
        "models": [_facts(first, a), _facts(second, b)],
        **identity(a, b),
        "flops_per_token_path": path(a, b),
        "quality": _quality(a, b),
        "simulated": _simulated(a, b, cluster),
    }
    return document, render(document)


def _facts(name: str, known: Known) -> dict[str, Any]:
    t = known.totals
    cost = known.model.cost(known.length)
    return {
        "name": name, "title": t.title, "tokens": t.tokens, "gpu_hours": t.gpu_hours, "device": t.device,
        "sequence_length": known.length, "flops_per_token": known.flops_per_token,
        "flops_per_token_with_extra": cost.training_flops_per_token, "flops_per_s_per_gpu": known.flops_per_s,
        "mfu": known.flops_per_s / t.flops_per_s, "source": t.source, "note": t.note,
    }  # fmt: skip


def _published(a: float, a_rounding: float, b: float, b_rounding: float) -> dict[str, Any]:
    low, high = (a - a_rounding) / (b + b_rounding), (a + a_rounding) / (b - b_rounding)
    return {"estimate": a / b, "low": low, "high": high, "evidence": "published, range of rounding"}


def identity(a: Known, b: Known) -> dict[str, Any]:
    """The ratio of GPU hours, and the three factors whose product it is, each with its share of the logarithm."""
    first, second = a.totals, b.totals
    hours = _published(first.gpu_hours, first.gpu_hours_rounding, second.gpu_hours, second.gpu_hours_rounding)
    tokens = _published(first.tokens, first.tokens_rounding, second.tokens, second.tokens_rounding)
    flops = a.flops_per_token / b.flops_per_token
    per_token = {"estimate": flops, "low": flops, "high": flops, "evidence": "exact, closed form"}
    rate = {
        "estimate": hours["estimate"] / tokens["estimate"] / flops,
        "low": hours["low"] / tokens["high"] / flops,
        "high": hours["high"] / tokens["low"] / flops,
        "evidence": "published, derived",
    }
    found = {"tokens": tokens, "flops_per_token": per_token, "flops_per_s": rate}
    whole = math.log(hours["estimate"])
    for factor in found.values():
        factor["share_of_log"] = math.log(factor["estimate"]) / whole if whole else None
    return {"gpu_hours_ratio": hours, "factors": found}


def path(a: Known, b: Known) -> list[dict[str, Any]]:
    """FLOPs per token from one model to the other in steps, exact; `factor`: how many times fewer than the step before.

    From a dense model to one with experts: at the other's sequences, dense of the other's size, its experts, its
    further components. Between others there is no path: the other's sequences, then the other model.
    """
    cost_of = [("", a.model, a.length), (f"sequences of {b.length} tokens instead of {a.length}", a.model, b.length)]
    components = [name for name in b.preset.recipe if name != EXTRA]
    if "moe" in components and "moe" not in a.preset.recipe:
        levels = {name: ON for name in components if name == "moe"}
        cost_of.append(("dense, of as many parameters as the second model has in all", dense_of_size(b), b.length))
        for name in sorted(components, key=lambda name: name != "moe"):
            levels[name] = ON
            if name == "aux-free" or name in b.preset.recipe:
                cost_of.append((f"{name} on", Variant.of(levels).resolve(b.preset).model, b.length))
    else:
        cost_of.append(("the second model; no path of components is between them", b.model, b.length))
    steps: list[dict[str, Any]] = []
    for title, model, length in cost_of:
        flops = deployed_flops(model.cost(length))
        before = steps[-1]["flops_per_token"] if steps else flops
        if not steps or flops != before:
            steps.append({"step": title or "the first model", "flops_per_token": flops, "factor": before / flops})
    return steps


def dense_of_size(known: Known) -> ModelSpec:
    """`dense_as_large` as the second model of a pair."""
    return dense_as_large(known.preset, known.model)


def dense_as_large(base: Preset, model: ModelSpec) -> ModelSpec:
    """The preset's dense end with a feed-forward so wide that it has as many parameters in all as the model."""
    dense_end, length = Variant.none().resolve(base).model, base.trainer.sequence_length
    wanted = model.cost(length).main.parameters

    def of_width(hidden: int) -> ModelSpec:
        dense = SwiGLU(hidden_dim=hidden)
        return replace(dense_end, feed_forward=dense, first_feed_forward=dense)

    narrow = of_width(1).cost(length).main.parameters
    each = of_width(2).cost(length).main.parameters - narrow
    return of_width(max(1, 1 + round((wanted - narrow) / each)))


def _quality(a: Known, b: Known) -> list[dict[str, Any]]:
    shared = [metric for metric in a.totals.quality if metric in b.totals.quality]
    return [
        {"metric": m, "values": [a.totals.quality[m], b.totals.quality[m]], "evidence": "published"} for m in shared
    ]


def _simulated(a: Known, b: Known, cluster: str) -> dict[str, Any]:
    """The second model on a cluster as it is and without parts of its machinery, and the first model there, trained on
    as many tokens a step. Factors are of seconds a token against the second model as it is, under the same draws.
    """
    name = b.totals.preset
    full = _placed(Request(cluster=cluster, preset=name))
    base = simulate(full.question, SAMPLES)
    asked = [("the second model", full.question)]
    on = {component for component, level in full.levels.items() if level == ON}
    for title, off in WITHOUT:
        if set(off) <= on:
            without = resolve(Request(cluster=cluster, preset=name, disable=off)).question
            layout = replace(full.question.layout, schedule=without.layout.schedule, transport=without.layout.transport)
            asked.append((title, replace(without, layout=layout)))
    asked += _first_there(a, full.question, cluster)
    rows = [_row(title, found, base) for title, question in asked for title, found in _fitting(title, question)]
    return {"evidence": "simulated", "cluster": full.question.cluster.title, "rows": rows}


def _placed(request: Request) -> Asked:
    """The request in its published layout, else in the fastest that fits."""
    asked = resolve(request)
    return asked if asked.layout_known else replace(asked, question=search(asked.question)[0].question)


def _fitting(title: str, question: Question) -> list[tuple[str, Simulation]]:
    """The question as it is; where the memory is too small for that, also with everything recomputed."""
    found = [(title, simulate(question, SAMPLES))]
    if not found[0][1].fits and question.layout.recompute != "full":
        again = simulate(replace(question, layout=replace(question.layout, recompute="full")), SAMPLES)
        found.append(("  and all recomputed", again))
    return found


def _first_there(a: Known, of_second: Question, cluster: str) -> list[tuple[str, Question]]:
    """The first model on the second's cluster with its batch of tokens, in BF16 and, where it was not, in FP8."""
    length = of_second.cost.sequence_length
    request = Request(cluster=cluster, preset=a.totals.preset, batch=of_second.batch, sequence_length=length)
    question = _placed(request).question
    found = [("the first model there", question)]
    if not question.model.low_precision and question.cluster.fp8_flops_per_s:
        low = replace(question, model=replace(question.model, low_precision=True))
        found.append(("the first model there, in FP8", low))
    return found


def _row(title: str, found: Simulation, base: Simulation) -> dict[str, Any]:
    def tokens_per_s(one: Simulation) -> Any:
        return one.metrics["tokens_per_day"] / one.question.cluster.n_gpus

    slower = tokens_per_s(base) / tokens_per_s(found)
    low, high = found.draws.range(slower)
    hours_low, hours_high = found.range("gpu_hours_per_trillion_tokens")
    rate = tokens_per_s(found) / 86_400 * deployed_flops(found.question.cost)
    rate_low, rate_high = found.draws.range(rate)
    return {
        "variant": title,
        "seconds_per_token_factor": {"estimate": found.draws.central(slower), "low": low, "high": high},
        "gpu_hours_per_trillion_tokens": {
            "estimate": found.value("gpu_hours_per_trillion_tokens"), "low": hours_low, "high": hours_high,
        },
        "flops_per_s_per_gpu": {"estimate": found.draws.central(rate), "low": rate_low, "high": rate_high},
        "layout": found.question.layout.facts(found.question.cluster, found.question.batch),
        "memory_fits": found.fits,
    }  # fmt: skip
