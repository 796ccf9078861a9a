"""Whether a transport changes anything: losses, gradients and counts on ranks against one process, in float64.

The reference is the same model in one process, its micro-batches one after another. Where rows travel in FP8, so do
they there, to itself, those of an expert group at once; and its dense FP8 maps see each rank's tokens by themselves:
which tokens share a scale in a weight's gradient is part of their arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ablate.components.variants import Variant
from ablate.model.block import recompute_blocks
from ablate.model.loss import TrainingLoss, training_loss
from ablate.model.transformer import Transformer, initialise
from ablate.parallel.experts import Held, divided, hold
from ablate.parallel.groups import release
from ablate.parallel.mesh import make_mesh
from ablate.parallel.transport.peers import alone
from ablate.presets import preset
from ablate.spec.ranks import Ranks
from ablate.spec.run import RunSpec

TOLERANCE = 1e-12  # of the largest gradient of a parameter, and of an FP8 one: products there sum in float32
FP8_TOLERANCE = 1e-6
SEED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is compared. idle: ranks without a sequence; starved: experts that no token goes to."""

    levels: dict[str, str]
    ranks: Ranks
    n_routed_experts: int = 8
    idle: int = 0
    starved: int = 0
    recompute: str = "none"  # on the ranks, as of TrainerSpec

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {level}" for name, level in self.levels.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Equality:
    """What came of a case; errors are relative to the largest of a parameter's gradient, or to the loss."""

    loss_error: float
    gradient_error: float
    counts_equal: bool
    norm_error: float
    copies: dict[str, int]  # rows that left a rank, by channel, forward and backward
    n_bytes: dict[str, int]
    n_waits: int  # of a host
    step_s: float
    tolerance: float

    @property
    def holds(self) -> bool:
        worst = max(self.loss_error, self.gradient_error, self.norm_error)
        return self.counts_equal and worst <= self.tolerance


def run_of(case: Case) -> RunSpec:
    """The case at the smallest size, on products that know float64."""
    base = preset("nano")
    moe = replace(base.settings["moe"], n_routed_experts=case.n_routed_experts)
    settings, trainer = {**base.settings, "moe": moe}, replace(base.trainer, ranks=case.ranks)
    base = replace(base, settings=settings, trainer=trainer)
    spec = Variant.of(case.levels).resolve(base)
    model = spec.model.portable()
    model = model.with_backends({"linear": "reference"}) if model.linear.wire() is None else model
    return replace(spec, model=model).run(corpus_hash="", seed=SEED, n_steps=10)


def check(cases: Sequence[Case]) -> list[Equality]:
    """Every case on the ranks of this world, of which this is one; the same on all of them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return [_check(case) for case in cases]
    finally:
        torch.set_default_dtype(before)


def _check(case: Case) -> Equality:
    run = run_of(case)
    mesh = make_mesh(case.ranks)
    ours = hold(run.model, run.trainer.transport, mesh, seed=run.seed)
    model = ours.model
    recompute_blocks(model, case.recompute)
    _starve(model, case.starved)
    generator = torch.Generator().manual_seed(SEED)
    n_busy = case.ranks.data - case.idle
    window_BT1 = torch.randint(
        run.model.vocab_size, (n_busy, run.trainer.sequence_length + 1), generator=generator
    )  # a sequence a rank, and none on the last ones
    dist.barrier()
    start = time.perf_counter()
    found = _loss(model, run, window_BT1[mesh.data_rank : mesh.data_rank + 1])
    (found.total / n_busy).backward()
    ours.holders.join()
    step_s = time.perf_counter() - start
    main = found.main.double() / n_busy
    dist.all_reduce(main)
    counts = _counts(found)
    dist.all_reduce(counts)
    with _whole(run, case) as whole:
        norm = ours.holders.clip(1.0, [name for name, _ in whole.named_parameters()])
        reference = _reference(whole, run, window_BT1)
        expected_norm = nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
        errors = torch.tensor(
            [
                float((main - reference.main).abs() / reference.main),
                _gradient_error(whole, ours),
                float((norm - expected_norm).abs() / expected_norm),
                float(not torch.equal(counts, _counts(reference))),
            ]
        )
    dist.all_reduce(errors, op=dist.ReduceOp.MAX)
    release([*mesh.groups.values(), *ours.holders.groups.values()])
    return _equality(run, ours, errors, step_s)


def _equality(run: RunSpec, ours: Held, errors: Tensor, step_s: float) -> Equality:
    channels = ours.peers.channels if ours.peers else ()
    sent = torch.tensor([[c.n_rows, c.n_bytes] for c in channels] or [[0, 0]])
    dist.all_reduce(sent)
    return Equality(
        loss_error=float(errors[0]),
        gradient_error=float(errors[1]),
        norm_error=float(errors[2]),
        counts_equal=not errors[3],
        copies={c.name: int(n) for c, (n, _) in zip(channels, sent.tolist(), strict=False)},
        n_bytes={c.name: int(n) for c, (_, n) in zip(channels, sent.tolist(), strict=False)},
        n_waits=ours.peers.n_waits if ours.peers else 0,
        step_s=step_s,
        tolerance=TOLERANCE if run.model.linear.wire() is None else FP8_TOLERANCE,
    )


def _loss(model: Transformer, run: RunSpec, window_BT1: Tensor) -> TrainingLoss:
    return training_loss(model, run.text, {"window_BT1": window_BT1}, decaying=False)


def _counts(found: TrainingLoss) -> Tensor:
    """Choices of each expert in each layer, int64 (L, E)."""
    return torch.stack([each.counts_BE.sum(0) for each in found.routing])


def _starve(model: nn.Module, n: int) -> None:
    for module in model.modules():
        bias = getattr(module, "bias_E", None)
        if n and isinstance(bias, Tensor):
            bias[:n] = -9.0


@contextmanager
def _whole(run: RunSpec, case: Case) -> Iterator[Transformer]:
    """The model in one process."""
    model = Transformer(run.model)
    transport, wire = run.trainer.transport, run.model.linear.wire()
    if transport is not None and wire is not None:
        peers = alone(case.n_routed_experts)
        divided(model, peers, transport.build(peers, case.n_routed_experts, wire), case.n_routed_experts)
    initialise(model, run.model.init, run.seed)
    _starve(model, case.starved)
    yield model


def _reference(model: Transformer, run: RunSpec, window_BT1: Tensor) -> TrainingLoss:
    """Loss and gradients of all sequences, together where they meet at an expert in FP8; main: the mean over them."""
    n, meet = len(window_BT1), run.model.linear.wire() is not None and run.trainer.transport is not None
    size = run.trainer.ranks.expert if meet else 1
    if meet:
        apart(model, size)
    groups = window_BT1.split(size)
    parts = [_loss(model, run, group) for group in groups]
    for group, part in zip(groups, parts, strict=True):
        (part.total / (n / len(group))).backward()
    main = torch.stack([part.main.double() * len(group) for group, part in zip(groups, parts, strict=True)]).sum() / n
    layers = list(zip(*(part.routing for part in parts), strict=True))
    routing = [replace(layer[0], counts_BE=torch.cat([r.counts_BE for r in layer])) for layer in layers]
    return TrainingLoss(main, main, routing)


def apart(model: Transformer, n: int) -> None:
    """Let dense FP8 maps, and the head's loss, see n equal parts of a batch by themselves."""
    for module in model.modules():
        if hasattr(module, "recipe") and getattr(module, "weight").ndim == 2:  # noqa: B009
            whole = module.forward
            module.forward = lambda x, whole=whole: torch.cat([whole(part) for part in x.chunk(n)])
    loss = model.head.cross_entropy

    def mean(hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        parts = zip(hidden_BTD.chunk(n), targets_BT.chunk(n), strict=True)
        return torch.stack([loss(*part) for part in parts]).mean()

    model.head.cross_entropy = mean


def _gradient_error(whole: Transformer, ours: Held) -> float:
    own, worst = dict(ours.model.named_parameters()), 0.0
    for name, p in whole.named_parameters():
        if p.grad is None:
            continue
        expected = p.grad[ours.parts[name][0]] if name in ours.parts else p.grad
        found = own[name].grad
        found = torch.zeros_like(own[name]) if found is None else found
        if expected.numel():
            scale = max(float(p.grad.abs().max()), torch.finfo(p.dtype).tiny)
            worst = max(worst, float((found - expected).abs().max()) / scale)
    return worst
