"""From what a user names to what is simulated: cluster, model, variant, layout, rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ablate.cluster.bench import bench_corrections
from ablate.cluster.hardware import Cluster, cluster
from ablate.cluster.inputs import Input, assume, assumptions
from ablate.cluster.layout import SYSTEM, Layout, published_layout
from ablate.cluster.profile import corrections, profile
from ablate.cluster.simulate import Question
from ablate.cluster.work import Model, model_of, model_of_architecture
from ablate.components.component import ON
from ablate.components.registry import NAMES, component
from ablate.components.variants import Variant
from ablate.errors import nearest
from ablate.presets import preset, preset_file
from ablate.presets.account import model_file
from ablate.spec.cost import ModelCost
from ablate.spec.model import ModelSpec
from ablate.spec.run import Preset

RateSource = Literal["profile", "published"]
NEEDS_EXPERTS = ("alltoall",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a user asks for; None and "" stand for what the preset, its authors or the cluster say.

    layout: fields of `Layout` given by hand. profile and bench: files or names of measured rates. assume: inputs by
    name. rates: "published" leaves the cluster's own profile out.
    """

    cluster: str
    preset: str = ""
    model: Path | None = None
    disable: Sequence[str] = ()
    enable: Sequence[str] = ()
    alternatives: Mapping[str, str] = field(default_factory=dict)
    batch: int | None = None
    sequence_length: int | None = None
    layout: Mapping[str, Any] = field(default_factory=dict)
    rates: RateSource = "profile"
    profile: str = ""
    bench: Path | None = None
    assume: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.preset) == (self.model is not None):
            raise ValueError("give --preset NAME or --model FILE.toml, one of them")
        if self.model is not None and (self.enable or self.alternatives or set(self.disable) - set(SYSTEM)):
            raise ValueError("--model describes a whole model; only dualpipe and alltoall can be disabled beside it")
        if self.enable and self.disable:
            raise ValueError("--disable starts from everything on, --enable from everything off; give one of them")
        for name in (*self.disable, *self.enable, *self.alternatives):
            if name not in SYSTEM and name not in NAMES:
                raise ValueError(f"unknown component {name!r}; {nearest(name, (*NAMES, *SYSTEM))}")
        for name in self.alternatives:
            if name not in self.disable:
                raise ValueError(f"--alternative {name}={self.alternatives[name]} has no effect: add --disable {name}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"--batch is {self.batch}; it is the sequences of an optimizer step, at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request resolved: the question, and the levels of all components. `layout_known`: it was published or given."""

    question: Question
    levels: Mapping[str, str]
    name: str
    layout_known: bool


def resolve(request: Request) -> Asked:
    """ValueError says what does not fit and what to do."""
    machine = cluster(request.cluster)
    inputs, corrected = rates(request, machine)
    base, model, cost, levels, batch = _model(request)
    found = published_layout(base.name) if base else None
    layout = replace(found or Layout(), **_given(request.layout))
    layout, system = _machinery(request, layout, model, known=found is not None)
    return Asked(
        question=Question(
            cluster=machine, model=model, cost=cost, layout=layout, batch=batch, inputs=inputs, corrections=corrected
        ),
        levels=levels | system,
        name=base.name if base else str(request.model),
        layout_known=found is not None or bool(set(request.layout) & {"pipeline", "tensor", "expert"}),
    )


def rates(request: Request, machine: Cluster) -> tuple[dict[str, Input], dict[str, str]]:
    """The inputs under the asked source of rates, and which of them corrects which class of work."""
    inputs, corrected = assumptions(), dict[str, str]()
    named = request.profile or (machine.profile if request.rates == "profile" else "")
    if named:
        inputs, corrected = corrections(profile(named), machine, inputs)
    if request.bench is not None:
        inputs, here = bench_corrections(request.bench, machine, inputs)
        corrected |= here
    return assume(inputs, request.assume), corrected


def _model(request: Request) -> tuple[Preset | None, Model, ModelCost, dict[str, str], int]:
    if request.model is not None:
        made, length = model_file(request.model, request.sequence_length)
        model = model_of(made) if isinstance(made, ModelSpec) else model_of_architecture(made)
        if request.batch is None:
            raise ValueError("--batch is missing: with --model, give the sequences of an optimizer step")
        return None, model, made.cost(length), {}, request.batch
    base = preset_file(Path(request.preset)) if request.preset.endswith(".toml") else preset(request.preset)
    variant = _variant(request, base)
    spec = variant.resolve(base)
    length = base.trainer.sequence_length if request.sequence_length is None else request.sequence_length
    if length < 1:
        raise ValueError(f"--sequence-length is {length}; it must be at least 1")
    spec.model.objective.check_length(length)
    levels = {name: level for name, level in variant.levels.items() if name not in SYSTEM}
    return base, model_of(spec.model), spec.model.cost(length), levels, request.batch or base.trainer.batch_size


def _variant(request: Request, base: Preset) -> Variant:
    """The full variant without what is disabled; with `enable`, the baseline with that."""
    off = {name: level for name, level in request.alternatives.items() if name not in SYSTEM}
    if request.enable:
        return Variant.of({name: ON for name in request.enable if name not in SYSTEM})
    disabled = [name for name in request.disable if name not in SYSTEM]
    for name in disabled:
        component(name)
    return Variant.full(base).without(disabled, off)


def _machinery(request: Request, layout: Layout, model: Model, *, known: bool) -> tuple[Layout, dict[str, str]]:
    """The layout with the machinery at its levels: as published, else one-way pipelines and two hops."""
    asked: dict[str, str] = {}
    for name, (_, off) in SYSTEM.items():
        if name in request.disable:
            asked[name] = request.alternatives.get(name, off[0])
        elif request.enable:
            asked[name] = ON if name in request.enable else off[0]
    layout = layout.with_levels(asked)
    if not model.n_routed_experts:
        layout = replace(layout, expert=1, transport="flat")
    return layout, layout.levels()


def _given(layout: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(Layout)}
    assert set(layout) <= known
    return {name: value for name, value in layout.items() if value is not None}
