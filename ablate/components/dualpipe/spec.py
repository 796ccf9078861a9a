"""Nodes of the pipeline slot: DualPipe (on), and one-way, interleaved and V-shaped schedules (off)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ablate.schedules.action import Schedule
from ablate.schedules.tables import table
from ablate.spec.ranges import Count, checked
from ablate.spec.run import Spec

Layers = tuple[int, ...]  # of each stage, along the model; (): as even as can be


@dataclass(frozen=True, kw_only=True, slots=True)
class Laid:
    """How layers lie on stages, under whatever schedule."""

    stage_layers: Layers = ()

    def layers(self, n_layers: int, n_stages: int) -> tuple[range, ...]:
        """The layers of each stage; ValueError if what is given does not fit, or a stage would be left without any."""
        return _layers(self.stage_layers, n_layers, n_stages)


@checked("pipeline")
@dataclass(frozen=True, kw_only=True, slots=True)
class Bidirectional(Laid):
    """DualPipe (arXiv:2412.19437, section 3.2.1): half of the micro-batches enters at each end of the ranks.

    Forward and backward chunks of the two halves are pairs. Where experts are divided over ranks the two of a pair take
    turns, each computing while rows of the other travel (`model.turns`); where they are not, nothing is waited for.
    """

    kind: Literal["dualpipe"] = "dualpipe"

    def schedule(self, n_ranks: int, n_micro_batches: int) -> Schedule:
        return table("dualpipe", n_ranks, n_micro_batches)


@checked("pipeline")
@dataclass(frozen=True, kw_only=True, slots=True)
class Straight(Laid):
    """One stage a rank, micro-batches one way: 1F1B (arXiv:2006.09503), GPipe (1811.06965) or ZB-H1 (2401.10241)."""

    kind: Literal["straight"] = "straight"
    order: Literal["1f1b", "gpipe", "zb1p"]

    def schedule(self, n_ranks: int, n_micro_batches: int) -> Schedule:
        return table(self.order, n_ranks, n_micro_batches)


@checked("pipeline")
@dataclass(frozen=True, kw_only=True, slots=True)
class Interleaved(Laid):
    """1F1B over `n_chunks` stages a rank (arXiv:2104.04473, section 2.2)."""

    kind: Literal["interleaved"] = "interleaved"
    n_chunks: Count

    def schedule(self, n_ranks: int, n_micro_batches: int) -> Schedule:
        return table("interleaved", n_ranks, n_micro_batches, n_chunks=self.n_chunks)


@checked("pipeline")
@dataclass(frozen=True, kw_only=True, slots=True)
class Vshaped(Laid):
    """Two stages a rank, down the ranks and up again: ZB-V (arXiv:2401.10241, section 6) or DeepSeek's DualPipeV."""

    kind: Literal["v-shaped"] = "v-shaped"
    order: Literal["zbv", "dualpipev"]

    def schedule(self, n_ranks: int, n_micro_batches: int) -> Schedule:
        return table(self.order, n_ranks, n_micro_batches)


@checked("dualpipe")
@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a preset may say of pipelines: how many layers each stage has, by the stages a rank that a schedule has.

    `stage_layers` is for schedules with one stage a rank, `chunk_layers` for those with several; `n_chunks` is the
    interleaved schedule's stages a rank.
    """

    stage_layers: Layers = ()
    chunk_layers: Layers = ()
    n_chunks: Count = 2


def _layers(given: Layers, n_layers: int, n_stages: int) -> tuple[range, ...]:
    if not given:
        if n_layers < n_stages:
            raise ValueError(
                f"{n_layers} layers do not give each of {n_stages} pipeline stages one; use fewer pipeline ranks, a "
                "schedule with one stage a rank, or say in the preset's section [dualpipe] how many layers each has"
            )
        ends = [n_layers * (stage + 1) // n_stages for stage in range(n_stages)]
    else:
        if len(given) != n_stages or sum(given) != n_layers or min(given) < 0:
            raise ValueError(
                f"the layers of the pipeline's stages are {list(given)}, {len(given)} stages with {sum(given)} layers; "
                f"the schedule has {n_stages} stages and the model {n_layers} layers: correct [dualpipe] of the preset"
            )
        ends = [sum(given[: stage + 1]) for stage in range(n_stages)]
    return tuple(range(start, end) for start, end in zip([0, *ends], ends, strict=False))


def on(spec: Spec) -> Spec:
    if not spec.trainer.ranks.on_several("pipeline"):
        raise ValueError(
            "dualpipe is a schedule for several pipeline ranks, and this run has one; "
            "give --ranks pipeline=2 or more, or leave dualpipe off"
        )
    return _with(spec, Bidirectional(stage_layers=_settings(spec).stage_layers))


def off(spec: Spec, alternative: str) -> Spec:
    if not spec.trainer.ranks.on_several("pipeline"):
        if alternative != "1f1b":
            raise ValueError(
                f"dualpipe={alternative} is a schedule for several pipeline ranks, and this run has one; "
                "give --ranks pipeline=2 or more, or leave the alternative out"
            )
        return _with(spec, None)
    return _with(spec, _alternative(_settings(spec), alternative))


def _alternative(settings: Settings, alternative: str) -> Any:
    if alternative == "interleaved":
        return Interleaved(n_chunks=settings.n_chunks, stage_layers=settings.chunk_layers)
    order: Any = alternative
    if alternative in ("zbv", "dualpipev"):
        return Vshaped(order=order, stage_layers=settings.chunk_layers)
    return Straight(order=order, stage_layers=settings.stage_layers)


def _settings(spec: Spec) -> Settings:
    found: Settings = spec.preset.settings.get("dualpipe", Settings())
    return found


def _with(spec: Spec, node: Any) -> Spec:
    return replace(spec, trainer=replace(spec.trainer, pipeline=node))
