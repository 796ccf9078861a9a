"""What each change is worth in speed on a cluster that is not at hand, by the simulator's own attribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ablate.cluster.layout import published_layout
from ablate.cluster.question import Request, resolve
from ablate.cluster.simulate import Simulation, simulate
from ablate.components.component import ON
from ablate.evidence.published import findings
from ablate.evidence.simulation import attributed

SAMPLES = 48  # draws behind the range of the step
WHOLE_STEP = "s"  # metric of the published step that a simulation can be held against
MEASURED_ON = ("v3-671b", "h800-2048")  # what that step is of


@dataclass(frozen=True, kw_only=True, slots=True)
class Factor:
    """Tokens a second with a change over without it; low and high are 5 and 95 % over the simulator's inputs."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """One change in the recipe on the cluster. `factor` is its Owen-precedence value, the others the two ends."""

    factor: Factor
    added_first: Factor
    left_out: Factor
    from_flops_per_token: float  # of `factor`, exact
    resolved: bool  # beyond what the simulator can tell, and its range on one side of 1
    memory_with_bytes: float  # of the fullest rank
    memory_without_bytes: float
    fits_without: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step of the whole recipe, beside the published one where it is of the same model and cluster."""

    seconds: float
    low: float
    high: float
    published_s: float | None
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """All changes on one cluster, or why there are none."""

    cluster: str
    cluster_title: str
    layout_source: str
    changes: Mapping[str, Simulated]
    together: Factor | None
    step: Step | None
    n_variants: int
    n_beyond_memory: int
    reason: str


def speeds(preset: str, cluster: str) -> Speeds:
    """The simulator's attribution of a preset on a cluster. ValueError for a cluster there is not.

    Without a published layout there is none, and `reason` says so.
    """
    request = Request(cluster=cluster, preset=preset)
    full = resolve(request)
    layout, title = published_layout(full.name), full.question.cluster.title
    on = [name for name, level in full.levels.items() if level == ON]
    if layout is None or not on:
        what = "nothing of these changes is in it" if layout else "no layout of it is published, which its speed needs"
        return Speeds(
            cluster=cluster, cluster_title=title, layout_source="", changes={}, together=None, step=None, n_variants=0,
            n_beyond_memory=0, reason=f"{full.name}: {what}",
        )  # fmt: skip
    document, _ = attributed(request)
    whole = simulate(full.question, SAMPLES)
    return Speeds(
        cluster=cluster,
        cluster_title=title,
        layout_source=layout.source,
        changes={
            name: _simulated(effect, name, request, whole, full.levels)
            for name, effect in document["components"].items()
        },
        together=_factor(document["total"]),
        step=_step(whole, full.name, cluster),
        n_variants=document["variants"],
        n_beyond_memory=len(document["variants_beyond_memory"]),
        reason="",
    )


def _simulated(
    effect: Mapping[str, Any], name: str, request: Request, whole: Simulation, levels: Mapping[str, str]
) -> Simulated:
    assert levels[name] == ON
    without = simulate(resolve(replace(request, disable=[name])).question, 1)
    return Simulated(
        factor=_factor(effect["owen"]),
        added_first=_factor(effect["first"]),
        left_out=_factor(effect["last"]),
        from_flops_per_token=math.exp(effect["channels_of_owen"]["flops per token"]["estimate"]),
        resolved=effect["resolved"],
        memory_with_bytes=whole.value("memory_bytes_per_rank"),
        memory_without_bytes=without.value("memory_bytes_per_rank"),
        fits_without=without.fits,
    )


def _factor(log: Mapping[str, float]) -> Factor:
    return Factor(**{key: math.exp(log[key]) for key in ("estimate", "low", "high")})


def _step(whole: Simulation, preset: str, cluster: str) -> Step:
    published: float | None = None
    source = ""
    if (preset, cluster) == MEASURED_ON:
        where, finding = next(pair for pair in findings() if not pair[1].component and pair[1].metric == WHOLE_STEP)
        published, source = finding.value, f"{where.title}, {finding.at}"
    low, high = whole.range("step_s")
    return Step(seconds=whole.value("step_s"), low=low, high=high, published_s=published, source=source)
