"""Trainer.fit on ranks and on one process from the same batches, for tests: what each ends with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ablate.components.variants import Variant, fitting_micro_batch, on_ranks
from ablate.model.tensor_file import save_tensors
from ablate.model.weights import load_tensors
from ablate.parallel.launch import launch
from ablate.parallel.layout import schedule_of
from ablate.parallel.team import assemble
from ablate.presets import preset
from ablate.runs.timelines import write_timeline
from ablate.schedules.action import Schedule
from ablate.spec.ranks import Ranks
from ablate.spec.run import RunSpec
from ablate.training.evaluation import HeldOut
from ablate.training.module import TrainingModule
from ablate.training.ranks import RanksModule
from ablate.training.timeline import Recorder
from ablate.training.trainer import slot_callbacks, trainer_for

STEPS, KEPT_AT, WINDOWS = 4, 2, 5
FLOAT32 = 1e-6  # what a head gives its loss in, whose sum over micro-batches has another order


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A training from the start, or from the checkpoint that another one left. It leaves its own at `place`.

    `recorded`: steps of which it leaves a timeline, `timeline_of` it.
    """

    place: Path
    ranks: Ranks = field(default_factory=Ranks)
    levels: Mapping[str, str] = field(default_factory=dict)
    resume: Path | None = None
    n_layers: int = 2  # one for each stage
    trainer: Mapping[str, Any] = field(default_factory=dict)  # other values of its fields
    recorded: range = range(0)


@dataclass(frozen=True)
class Fitted:
    """The whole model's state after the last step, what it makes of held-out text, and the mean loss of each step."""

    state: dict[str, Tensor]
    metrics: dict[str, float]
    losses: list[float]


def fit_all(fits: Sequence[Fit], n_ranks: int) -> list[Fitted]:
    """One after another in processes of their own, whose default is float64; those of one process on the first."""
    told: list[Any] = launch(_fit_all, n_ranks, list(fits))[0]
    return [Fitted(load_tensors(_state(fit.place)), *said) for fit, said in zip(fits, told, strict=True)]


def difference(a: Fitted, b: Fitted) -> float:
    """The largest of any weight, metric or loss."""
    assert a.state.keys() == b.state.keys()
    assert a.metrics.keys() == b.metrics.keys()
    weights = max((a.state[n] - b.state[n]).abs().max().item() for n in a.state)
    metrics = max(abs(a.metrics[n] - b.metrics[n]) for n in a.metrics)
    losses = max(abs(x - y) for x, y in zip(a.losses, b.losses, strict=True))
    return max(weights, metrics, losses if losses > FLOAT32 else 0.0)


def _fit_all(fits: Sequence[Fit]) -> list[Any]:
    torch.set_default_dtype(torch.float64)
    rank, world = str(dist.get_rank()), str(dist.get_world_size())  # as torchrun leaves it, which starts real ranks
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    found = []
    for fit in fits:
        if fit.ranks.world > 1 or rank == "0":
            found.append(_fit(fit))
        dist.barrier()
    return found


def _run(fit: Fit) -> RunSpec:
    """A run of the small model with everything that Trainer.fit does for it: clipping, bias, further tokens."""
    small = on_ranks(preset("nano"), fit.ranks)
    size = fitting_micro_batch(8, 4, Ranks(pipeline=2, data=2))
    trainer = replace(small.trainer, batch_size=8, micro_batch_size=size, gradient_clip=0.5, branches=(), **fit.trainer)
    small = replace(small, trainer=trainer, model=replace(small.model, n_layers=fit.n_layers))
    spec = (Variant.full(small) | {"distill": "raw", "fp8": "bf16"} | fit.levels).resolve(small)
    model = spec.model.portable().with_backends({"linear": "reference"})
    run = spec.run(corpus_hash="", seed=3, n_steps=STEPS, n_warmup_steps=0)
    return replace(run, model=model)


def _fit(fit: Fit) -> Any:
    run = _run(fit)
    generator, size = torch.Generator().manual_seed(11), run.trainer.micro_batch_size
    shape = (STEPS, run.trainer.n_micro_batches, size, run.trainer.sequence_length + 1)
    windows = torch.randint(run.model.vocab_size, shape, generator=generator)
    held_out = torch.randint(run.model.vocab_size, (WINDOWS, shape[-1]), generator=generator)
    text = HeldOut(held_out, torch.zeros_like(held_out), torch.ones(run.model.vocab_size))
    steps = [[{"window_BT1": w} for w in step] for step in windows[KEPT_AT if fit.resume else 0 :]]
    team = assemble(run) if run.trainer.ranks.world > 1 else None
    module: Any = TrainingModule(run) if team is None else RanksModule(run, team)

    def judge(trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step - 1 in fit.recorded:
            module.evaluate({"held_out": text}, 2)  # within a recorded step, of which it is no part

    def keep(trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == KEPT_AT and (batch_idx + 1) % module.n_micro_batches == 0:
            trainer.save_checkpoint(fit.place)

    callbacks = [LambdaCallback(on_train_batch_end=keep), *slot_callbacks(run)]
    if team is not None and fit.recorded:
        path = timeline_of(fit)
        callbacks.append(LambdaCallback(on_train_batch_end=judge))
        callbacks.append(Recorder(path.stem, team, fit.recorded, partial(write_timeline, path)))
    trainer = trainer_for(run, callbacks, folder=fit.place.parent, team=team)
    data = steps if team else [micro for step in steps for micro in step]
    trainer.fit(module, DataLoader(_Stream(data), batch_size=None), ckpt_path=fit.resume and str(fit.resume))  # type: ignore[arg-type]
    metrics = module.evaluate({"held_out": text}, 2)
    losses = [float(loss) for loss in module.step_losses]
    state: dict[str, Tensor] = {name: t.clone() for name, t in module.whole_state().items()}
    if state:
        save_tensors(state, _state(fit.place))
    return metrics, losses


class _Stream(IterableDataset[Any]):
    """Batches whose number is not known ahead, as those of a run."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def timeline_of(fit: Fit) -> Path:
    return fit.place.with_name(f"{fit.place.name}.json")


def schedule(fit: Fit) -> Schedule:
    return schedule_of(_run(fit).trainer)


def _state(place: Path) -> Path:
    return place.with_name(f"{place.name}.safetensors")
