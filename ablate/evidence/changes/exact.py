"""What each change does to a model's arithmetic, parameters, cache and state at a preset's size: closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from ablate.cluster.hardware import Cluster
from ablate.cluster.layout import SYSTEM, Layout
from ablate.components.component import ON
from ablate.components.registry import component
from ablate.components.variants import Variant
from ablate.evidence.gap import dense_as_large, deployed_flops
from ablate.presets.account import account_preset
from ablate.schedules.tables import table
from ablate.spec.model import ModelSpec
from ablate.spec.ranks import Ranks
from ablate.spec.run import Preset

FLOPS, PARAMETERS, CACHE, STATE = "flops_per_token", "parameters", "kv_bytes_per_token", "state_bytes"
# Figure -> what it is called, its unit ("" is a bare count, "B" bytes).
TITLES = {
    FLOPS: ("FLOPs per token", "FLOP"),
    PARAMETERS: ("parameters", ""),
    CACHE: ("KV bytes per token", "B"),
    STATE: ("weights and optimizer state", "B"),
}
DENSE = "flops_per_token_of_a_dense_model_as_large"
COPIES, BETWEEN_NODES = "copies_of_the_weights_on_a_rank", "copies_between_nodes_per_token_and_layer"
BYTES = "bytes_between_nodes_per_token"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One exact number with a change and without it."""

    name: str
    title: str
    unit: str
    on: float
    off: float

    @property
    def multiple(self) -> float | None:
        """With over without; None where there is nothing without."""
        return self.on / self.off if self.off else None

    @property
    def changes(self) -> bool:
        return self.on != self.off


@dataclass(frozen=True, kw_only=True, slots=True)
class Exact:
    """The figures of TITLES beside the preset's whole recipe, and what else of a change is known exactly."""

    figures: tuple[Figure, ...]
    further: tuple[Figure, ...]
    reason: str  # why there are none, or ""
    by_construction: bool  # it is no part of the model, so that no figure of the model can change

    def figure(self, name: str) -> Figure | None:
        return next((f for f in (*self.figures, *self.further) if f.name == name), None)


def exact(base: Preset, name: str, cluster: Cluster, layout: Layout | None) -> Exact:
    """The figures of one change. `layout`: where it is published, machinery has figures of its own in it."""
    chosen = component(name)
    outside = not set(chosen.slots) & {f.name for f in fields(ModelSpec)}
    further = tuple(_further(base, name, cluster, layout))
    full = Variant.full(base)
    if outside:
        here = _summary(full, base)
        return Exact(figures=_figures(here, here), further=further, reason="", by_construction=True)
    on = full | {name: ON}
    try:
        figures = _figures(_summary(on, base), _summary(on.without([name]), base))
    except ValueError as error:
        return Exact(figures=(), further=(), reason=str(error), by_construction=False)
    return Exact(figures=figures, further=further, reason="", by_construction=False)


def _summary(variant: Variant, base: Preset) -> dict[str, float]:
    found = variant.resolve(base).model.cost(base.trainer.sequence_length).summary()
    return {
        FLOPS: found["training_flops_per_token"],
        PARAMETERS: found["total_parameters"],
        CACHE: found["kv_cache_bytes_per_token"],
        STATE: found["weight_bytes"] + found["optimizer_bytes"],
    }


def _figures(on: dict[str, float], off: dict[str, float]) -> tuple[Figure, ...]:
    return tuple(
        Figure(name=name, title=title, unit=unit, on=on[name], off=off[name]) for name, (title, unit) in TITLES.items()
    )


def _further(base: Preset, name: str, cluster: Cluster, layout: Layout | None) -> Iterator[Figure]:
    """Experts against a dense model of as many parameters; weights that lie twice; what crosses nodes."""
    if name == "moe" and name in base.recipe:
        length = base.trainer.sequence_length
        dense = dense_as_large(base, Variant.full(base).resolve(base).model)
        experts = Variant.of({name: ON}).resolve(base).model  # experts alone, as in the path of FLOPs per token
        yield Figure(
            name=DENSE, title="FLOPs per token of experts alone, against a dense model of as many parameters",
            unit="FLOP", on=deployed_flops(experts.cost(length)), off=deployed_flops(dense.cost(length)),
        )  # fmt: skip
    if layout is not None and name == "dualpipe":
        on, off = (
            table(schedule, layout.pipeline, 2 * layout.pipeline, n_chunks=layout.interleave).n_directions
            for schedule in (SYSTEM[name][0], SYSTEM[name][1][0])
        )
        yield Figure(name=COPIES, title="copies of the weights on a rank", unit="", on=on, off=off)
    if layout is not None and layout.expert > 1:
        yield from _sent(base, name, Ranks(data=layout.expert, expert=layout.expert,
                                           node=min(cluster.gpus_per_node, layout.expert)))  # fmt: skip


def _sent(base: Preset, name: str, ranks: Ranks) -> Iterator[Figure]:
    """What a token's way to its experts sends between nodes in training, over all layers."""
    two_hop, flat = SYSTEM["alltoall"][0], SYSTEM["alltoall"][1][0]
    if name == "alltoall":
        of = account_preset(base.name, [], [], {}, None, ranks)["transports"]
        on, off = of[two_hop], of[flat]
        copies = (on["copies_between_nodes"], off["copies_between_nodes"])
        yield Figure(
            name=BETWEEN_NODES, title="copies of a token sent between nodes, a layer", unit="", on=copies[0],
            off=copies[1],
        )  # fmt: skip
    elif name == "fp8" and name in base.recipe:
        on, off = (
            account_preset(base.name, disabled, [], {}, None, ranks)["transports"][two_hop]
            for disabled in ([], [name])
        )  # fmt: skip
    else:
        return
    sent = "model_training_bytes_between_nodes"
    yield Figure(name=BYTES, title="bytes of a token sent between nodes", unit="B", on=on[sent], off=off[sent])
