"""Whether a schedule changes anything: losses, expert counts and gradients on ranks against one process, in float64."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ablate.model.block import recompute_blocks
from ablate.model.loss import training_loss
from ablate.model.stage import part, stage_loss, stages
from ablate.model.transformer import Transformer, initialise
from ablate.model.turns import Steps
from ablate.parallel.executor import Pipeline
from ablate.parallel.experts import divided, hold
from ablate.parallel.groups import release
from ablate.parallel.mesh import Mesh, make_mesh
from ablate.parallel.transport.equality import FP8_TOLERANCE, TOLERANCE, apart
from ablate.parallel.transport.peers import alone
from ablate.randomness import torch_generator
from ablate.schedules.action import Schedule
from ablate.schedules.tables import table
from ablate.spec.model import ModelSpec
from ablate.spec.nodes import PipelineNode, TransportNode
from ablate.spec.ranks import Ranks
from ablate.spec.run import TextNode

SEQUENCES, CLIP = 2, 0.1  # of a micro-batch; a norm that every model here exceeds
Counts = Mapping[str, Tensor]  # int64 (E,) by the name of the router


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One schedule of one variant. The model is small; its layers are one more than the stages, so they are uneven."""

    schedule: str
    variant: str
    model: ModelSpec
    text: TextNode
    pipeline: PipelineNode | None  # None: one pipeline rank
    ranks: Ranks
    n_micro_batches: int  # of a data rank
    length: int
    transport: TransportNode | None = None  # None: every rank has all experts
    recompute: str = "none"  # on the ranks, as of TrainerSpec; the one process keeps everything

    @property
    def table(self) -> Schedule:
        if self.pipeline is None:
            return table("1f1b", 1, self.n_micro_batches)
        return self.pipeline.schedule(self.ranks.pipeline, self.n_micro_batches)

    def layers(self, n_layers: int) -> tuple[range, ...]:
        """Of each stage."""
        return (range(n_layers),) if self.pipeline is None else self.pipeline.layers(n_layers, self.table.n_stages)

    @property
    def in_float64(self) -> ModelSpec:
        """The model on operations that take float64, with one layer more than stages."""
        n_layers = self.table.n_stages + 1
        model = replace(self.model, n_layers=n_layers, n_first_layers=min(self.model.n_first_layers, n_layers - 1))
        return model.portable().with_backends({"linear": "reference"})

    @property
    def in_tiles(self) -> bool:
        """Whether the products at an expert depend on which rows meet there, of which tiles share a scale.

        One process then has to compute at once what meets on ranks.
        """
        return self.transport is not None and self.model.linear.shares_scales() == "tiles"

    @property
    def blocks(self) -> list[list[tuple[int, ...]]]:
        """The micro-batches of all data ranks as one process computes them: groups at once, blocks added up apart.

        A block is what one copy of a stage sees, so that sums have the same order; a group is one micro-batch, or where
        they meet in tiles one of each expert rank.
        """
        m, width = self.n_micro_batches, self.ranks.expert if self.in_tiles else 1
        of_copy, found = m // self.table.n_directions, []
        for first in range(0, self.ranks.data, width):
            for start in range(0, m, of_copy):
                ranks = range(first, first + width)
                found.append([tuple(rank * m + i for rank in ranks) for i in range(start, start + of_copy)])
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Equality:
    """How a case came out. Errors are shares of a gradient's largest element; `exact`: equal in every bit."""

    schedule: str
    variant: str
    ranks: str
    n_micro_batches: int
    transport: str  # "none": every rank has all experts
    losses_exact: bool
    loss_error: float  # of the micro-batch that is furthest off, as a share
    counts_exact: bool
    n_gradients: int
    n_gradients_exact: int
    gradient_error: float
    norm_error: float
    peak_live_chunks: tuple[int, ...]  # by place in the pipeline
    seconds: float  # of the step on ranks
    tolerance: float  # of gradients and their norm, and of losses where experts are divided
    recompute: str = "none"  # of the ranks

    @property
    def what(self) -> str:
        """What is compared, by name."""
        named = [self.schedule] if len(self.peak_live_chunks) > 1 else []
        named += [self.transport] if self.transport != "none" else []
        named += ["every block recomputed"] if self.recompute == "full" else []
        return ", ".join(named) or "gradients of data ranks"

    @property
    def holds(self) -> bool:
        """Whether nothing differs but the order of sums."""
        worst = max(self.gradient_error, self.norm_error, 0.0 if self.transport == "none" else self.loss_error)
        return (self.losses_exact or self.transport != "none") and self.counts_exact and worst <= self.tolerance

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"what": self.what, "holds": self.holds}


def compare_all(cases: Sequence[Case]) -> list[Equality]:
    """Cases of the same ranks, one after another, on the ranks of a world that has been started."""
    mesh = make_mesh(cases[0].ranks)
    return [compare(case, mesh) for case in cases]


def compare(case: Case, mesh: Mesh) -> Equality:
    """One step of a case on all ranks and on this one alone. Every rank calls it, and gets the same answer."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return _compare(case, mesh)
    finally:
        torch.set_default_dtype(before)


def _compare(case: Case, mesh: Mesh) -> Equality:
    spec, m = case.in_float64, case.n_micro_batches
    batches = _batches(case, spec, m * mesh.ranks.data)
    mine = batches[mesh.data_rank * m : (mesh.data_rank + 1) * m]
    ours = _on_ranks(case, spec, mesh, mine, 1 / len(batches))
    single = _alone(case, spec, batches)
    exact, error = _differences(ours, single)
    losses = {i + mesh.data_rank * m: loss for i, loss in ours.losses.items()}
    everyone: list[Any] = [None] * mesh.ranks.world
    dist.all_gather_object(everyone, (losses, ours.counts, exact, len(ours.gradients), error, ours.peak, ours.seconds))
    found: dict[int, float] = {}
    counts: dict[str, Tensor] = {}
    for theirs, counted, *_ in everyone:
        found |= theirs
        for name, n in counted.items():
            counts[name] = counts[name] + n if name in counts else n
    off = [_relative(statistics.fmean(found[i] for i in group), loss) for group, loss in single.losses.items()]
    return Equality(
        schedule=case.schedule,
        variant=case.variant,
        ranks=", ".join(f"{a}={getattr(mesh.ranks, a)}" for a in ("pipeline", "data", "expert")),
        n_micro_batches=m,
        transport=case.transport.kind if case.transport else "none",
        losses_exact=max(off) == 0,
        loss_error=max(off),
        counts_exact=counts.keys() == single.counts.keys()
        and all(torch.equal(counts[n], c) for n, c in single.counts.items()),
        n_gradients=sum(row[3] for row in everyone),
        n_gradients_exact=sum(row[2] for row in everyone),
        gradient_error=max(row[4] for row in everyone),
        norm_error=_relative(ours.norm, single.norm),
        peak_live_chunks=tuple(everyone[place * mesh.ranks.data][5] for place in range(mesh.ranks.pipeline)),
        seconds=max(row[6] for row in everyone),
        tolerance=FP8_TOLERANCE if case.in_tiles else TOLERANCE,
        recompute=case.recompute,
    )


def _differences(ours: _Result, single: _Result) -> tuple[int, float]:
    """How many gradients are equal in every bit, and how far the others are off."""
    exact, error = 0, 0.0
    for name, gradient in ours.gradients.items():
        expected = single.gradients[name]
        if gradient is None or expected is None:
            error = max(error, 0.0 if gradient is expected else float("inf"))
            exact += gradient is expected
            continue
        largest, expected = expected.abs().max().item(), expected[ours.rows.get(name, slice(None))]
        exact += torch.equal(gradient, expected)
        difference = (gradient - expected).abs().max().item()
        error = max(error, difference / largest if largest else difference)
    return exact, error


def _relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)


def _batches(case: Case, spec: ModelSpec, n: int) -> list[dict[str, Tensor]]:
    generator, shape = torch_generator(f"equality of {case.schedule}"), (SEQUENCES, case.length + 1)
    return [{"window_BT1": torch.randint(spec.vocab_size, shape, generator=generator)} for _ in range(n)]


@dataclass(slots=True)
class _Result:
    losses: dict[Any, float]  # by micro-batch, or of one process by the group of them
    counts: dict[str, Tensor]
    gradients: dict[str, Tensor | None]
    norm: float
    rows: Mapping[str, slice] = field(default_factory=dict)  # of parameters that are there in part
    peak: int = 0
    seconds: float = 0.0


def _on_ranks(
    case: Case,
    spec: ModelSpec,
    mesh: Mesh,
    batches: Sequence[Mapping[str, Any]],
    weight: float,
) -> _Result:
    pipeline = Pipeline(case.table, mesh)
    layers = stages(case.layers(spec.n_layers))
    held = hold(spec, case.transport, mesh, seed=0, part=part(layers[s] for s in pipeline.stages))
    model, holders = held.model, held.holders
    recompute_blocks(model, case.recompute)
    names = {module: name for name, module in model.named_modules()}
    losses: dict[int, float] = {}
    counts: dict[str, Tensor] = {}

    def forward(stage: int, x: Tensor | None, micro: int) -> Steps[tuple[Tensor, Tensor | None]]:
        made = yield from stage_loss(model, layers[stage], x, case.text, batches[micro], decaying=False)
        _count(counts, made.routing, names)
        if made.main is not None:
            losses[micro] = made.main.item()
        return made.output, made.balance

    shape = (SEQUENCES, case.length, spec.dim)
    dist.barrier()
    start = time.perf_counter()
    peak = pipeline.train(forward, lambda micro: torch.empty(shape), weight)
    seconds = time.perf_counter() - start
    holders.join()
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    with torch.device("meta"):
        order = [n for n, _ in Transformer(spec).named_parameters()]
    rows = {name: rows for name, (rows, _) in held.parts.items()}
    norm = holders.clip(CLIP, order).item()
    release([*pipeline.wires.groups.values(), *holders.groups.values()])
    return _Result(losses, counts, gradients, norm, rows, peak, seconds)


def _alone(case: Case, spec: ModelSpec, batches: Sequence[Mapping[str, Any]]) -> _Result:
    """One process over the whole batch. Each copy's micro-batches are added up apart, as the copies do it."""
    model = _whole(case, spec)
    names = {module: name for name, module in model.named_modules()}
    losses: dict[Any, float] = {}
    counts: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    for block in case.blocks:
        model.zero_grad()
        for group in block:
            batch = {"window_BT1": torch.cat([batches[i]["window_BT1"] for i in group])}
            found = training_loss(model, case.text, batch, decaying=False)
            losses[group] = found.main.item()
            _count(counts, found.routing, names)
            weight = len(group) / len(batches)
            torch.autograd.backward([found.total], [torch.full_like(found.total, weight)])
        for name, p in model.named_parameters():
            if p.grad is not None:
                sums[name] = sums[name] + p.grad if name in sums else p.grad
    for name, p in model.named_parameters():
        p.grad = sums[name].clone() if name in sums else None  # clipping scales it
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
    return _Result(losses, counts, {n: sums.get(n) for n, _ in model.named_parameters()}, norm)


def _whole(case: Case, spec: ModelSpec) -> Transformer:
    """The model in one process. Where rows travel in FP8 they do so here, to itself."""
    model = Transformer(spec)
    if case.transport is not None and case.in_tiles:
        n_experts: int = getattr(spec.feed_forward, "n_routed_experts")  # noqa: B009
        peers = alone(n_experts)
        divided(model, peers, case.transport.build(peers, n_experts, spec.linear.wire()), n_experts)
        apart(model, case.ranks.expert)
    initialise(model, spec.init, 0)
    return model


def _count(counts: dict[str, Tensor], routing: Sequence[Any], names: Mapping[Any, str]) -> None:
    for each in routing:
        name, n = names[each.router], each.counts_BE.sum(0)
        counts[name] = counts[name] + n if name in counts else n
