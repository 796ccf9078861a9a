"""Memory of training on several ranks, in closed form: what the fullest rank of each place in a pipeline holds.

`training_memory` prices the parts; here they are laid on ranks: layers by the stages, routed experts by expert ranks,
the optimizer's states by ZeRO-1, and what a chunk keeps by how many are alive at once in the schedule. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ablate.components.moe.spec import RoutedExperts
from ablate.components.mtp.spec import MultiToken
from ablate.presets.training_memory import Keeps, keeps_of, logits_bytes
from ablate.schedules.action import ENDS_A_CHUNK, Schedule
from ablate.schedules.tables import table
from ablate.spec.cost import FP32_BYTES
from ablate.spec.model import ModelSpec
from ablate.spec.nodes import MODEL_SLOTS
from ablate.spec.run import TrainerSpec
from ablate.spec.traffic import INDEX_BYTES, WEIGHT_BYTES

EMBEDDING, END, OBJECTIVE = "embedding", "end", "objective"  # beside the layers, which go by their number
Place = int


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Bytes of a rank at its peak; the sum is at most reached, since not all parts are largest at one moment.

    states: float32 weights and gradients, and the optimizer's; live_chunks: micro-batches of a stage that are between
    forward and backward pass at once; copies: of the weights in the dtype of products, of which every live chunk keeps
    its own unless its blocks are recomputed; activations and logits: of all live chunks.
    """

    states: float
    copies: float
    activations: float
    logits: float
    live_chunks: int

    @property
    def total(self) -> float:
        return self.states + self.copies + self.activations + self.logits


def rank_memory(model: ModelSpec, trainer: TrainerSpec) -> tuple[RankMemory, ...]:
    """Of each place in the pipeline, on the backends that the model names; empty where a node is of another package.

    ValueError where the layers or micro-batches do not go on the ranks.
    """
    keeps = keeps_of(model, trainer)
    if keeps is None:
        return ()
    schedule = _schedule(trainer)
    ranges: tuple[range, ...] = (range(model.n_layers),)
    if trainer.pipeline is not None:
        ranges = trainer.pipeline.layers(model.n_layers, schedule.n_stages)
    stages = [_Stage(keeps, trainer, layers, i, schedule.last_stage) for i, layers in enumerate(ranges)]
    held = [{n for s in schedule.stages_of(place) for n in stages[s].parts} for place in range(schedule.n_ranks)]
    return tuple(_of_place(place, schedule, stages, held, trainer) for place in range(schedule.n_ranks))


def _schedule(trainer: TrainerSpec) -> Schedule:
    n = trainer.n_micro_batches // trainer.ranks.data
    if trainer.pipeline is None:
        return table("1f1b", 1, n)
    return trainer.pipeline.schedule(trainer.ranks.pipeline, n)


class _Stage:
    """What a stage holds by part, and what a chunk of it keeps."""

    def __init__(self, keeps: Keeps, trainer: TrainerSpec, layers: range, number: int, last: int) -> None:
        model, tokens = keeps.model, trainer.micro_batch_size * trainer.sequence_length
        objective = model.objective
        depth = objective.mtp_depth if isinstance(objective, MultiToken) else 0
        further = [model.n_layers + i for i in range(depth)] if number == last else []
        blocks = [keeps.block(layer) for layer in (*layers, *further)]
        embeds = number == 0 or (number == last and depth and getattr(objective, "arrangement", "") == "sequential")
        table_size = model.vocab_size * model.dim
        # Part -> parameters that all ranks of a place have, and those of a rank's experts.
        self.parts: dict[Any, tuple[float, float]] = {layer: _parameters(model, trainer, layer) for layer in layers}
        if embeds:
            self.parts[EMBEDDING] = table_size, 0.0
        if number == last:
            self.parts[END] = table_size + model.dim, 0.0
        if further:
            extra = objective.cost(model, trainer.sequence_length)[0]
            own = [_parameters(model, trainer, layer) for layer in further]
            whole = sum(model.block_cost(layer, trainer.sequence_length).parameters for layer in further)
            self.parts[OBJECTIVE] = extra - whole + sum(s for s, _ in own), sum(e for _, e in own)
        ends = keeps.ends() if number == last else 0.0
        again, head = trainer.recompute == "full", number == last
        kept = sum(_input(keeps, trainer, i) for i in (*layers, *further)) if again else sum(blocks)
        self.kept = tokens * (kept + ends)
        self.at_once = tokens * max(blocks, default=0.0) if again else 0.0
        of_blocks = [shared + experts for name, (shared, experts) in self.parts.items() if name not in (EMBEDDING, END)]
        self.copies = keeps.copies(0.0 if again else sum(of_blocks), head=head)
        self.copies_at_once = keeps.copies(max(of_blocks, default=0.0), head=False) if again else 0.0
        self.logits = logits_bytes(model, tokens, 1 + depth, keeps.e) if number == last else 0.0


def _parameters(model: ModelSpec, trainer: TrainerSpec, layer: int) -> tuple[float, float]:
    """Of a layer: what every rank has, and the routed experts of one that has most of them."""
    whole, experts = model.block_cost(layer, trainer.sequence_length).parameters, _whole_experts(model, layer)
    if trainer.transport is None or not experts:
        return whole, 0.0
    node: Any = model.layer_feed_forward(layer)[0]
    share = max(len(each) for each in trainer.ranks.share(node.n_routed_experts)) / node.n_routed_experts
    return whole - experts, experts * share


def _whole_experts(model: ModelSpec, layer: int) -> int:
    node = model.layer_feed_forward(layer)[0]
    return 3 * model.dim * node.expert_hidden_dim * node.n_routed_experts if isinstance(node, RoutedExperts) else 0


def _input(keeps: Keeps, trainer: TrainerSpec, layer: int) -> float:
    """What a block that is recomputed keeps of a token: its input, and rows that came from other ranks."""
    model, node = keeps.model, keeps.model.layer_feed_forward(layer)[0]
    if trainer.transport is None or not isinstance(node, RoutedExperts):
        return FP32_BYTES * model.dim
    traffic = trainer.transport.traffic(node, trainer.ranks)
    # One of so many copies is the sender's own, which does not travel.
    copies = (traffic.between_nodes + traffic.inside_nodes) * trainer.ranks.expert / max(1, trainer.ranks.expert - 1)
    row = model.linear.wire_bytes(model.dim, trainer.dtype) + traffic.choices * (INDEX_BYTES + WEIGHT_BYTES)
    return FP32_BYTES * model.dim + copies * row


def _of_place(
    place: Place, schedule: Schedule, stages: list[_Stage], held: list[set[Any]], trainer: TrainerSpec
) -> RankMemory:
    here = [stages[s] for s in schedule.stages_of(place)]
    parts: dict[Any, tuple[float, float]] = {name: n for stage in here for name, n in stage.parts.items()}
    ranks, states = trainer.ranks, 0.0
    for name, (shared, experts) in parts.items():
        copies = sum(name in each for each in held)
        among = (copies * ranks.data, copies * ranks.data // ranks.expert) if trainer.zero_stage else (1, 1)
        for n, holders in ((shared, among[0]), (experts, among[1])):
            states += n * (2 * FP32_BYTES + trainer.optimizer.state_bytes_per_parameter / holders)
    peak = _peaks(schedule, place, stages)
    return RankMemory(
        states=states,
        copies=peak["copies"] + max(stage.copies_at_once for stage in here),
        activations=peak["kept"] + max(stage.at_once for stage in here),
        logits=peak["logits"],
        live_chunks=int(peak["chunks"]),
    )


def _peaks(schedule: Schedule, place: Place, stages: list[_Stage]) -> Mapping[str, float]:
    """The most of each kind that is alive at once, by the order of a rank's actions."""
    live = dict.fromkeys(("kept", "copies", "logits", "chunks"), 0.0)
    most = dict(live)
    in_two = {(a.stage, a.micro) for a in schedule.ranks[place] if a.kind == "I"}
    for action in schedule.ranks[place]:
        stage = stages[action.stage]
        ends = action.kind in ENDS_A_CHUNK and (action.kind == "W" or (action.stage, action.micro) not in in_two)
        sign = 1 if action.kind == "F" else -1 if ends else 0
        each = {"kept": stage.kept, "copies": stage.copies, "logits": stage.logits, "chunks": 1.0}
        for what, size in each.items():
            live[what] += sign * size
            most[what] = max(most[what], live[what])
    return most


def by_backends(model: ModelSpec, trainer: TrainerSpec) -> dict[str, list[dict[str, float]]]:
    """Bytes of each place in the pipeline, by libraries and by this program's kernels; empty as of one GPU."""
    found = {}
    for name in ("library", "triton") if trainer.dtype == "bfloat16" else ():
        places = rank_memory(model.with_backends(dict.fromkeys(MODEL_SLOTS, name)), trainer)
        if places:
            found[name] = [asdict(place) | {"total": place.total} for place in places]
    return found
