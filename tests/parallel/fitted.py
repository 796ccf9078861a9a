"""Trainer.fit on ranks and on one process from the same batches, for tests: what each ends with."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.utils.data import DataLoader

from ablate.components.variants import Variant, fitting_micro_batch, on_ranks
from ablate.model.tensor_file import save_tensors
from ablate.parallel.team import assemble
from ablate.presets import preset
from ablate.spec.ranks import Ranks
from ablate.spec.run import RunSpec
from ablate.training.module import TrainingModule
from ablate.training.ranks import RanksModule
from ablate.training.trainer import slot_callbacks, trainer_for

STEPS, KEPT_AT = 4, 2


def run_on(ranks: Ranks, schedule: str) -> RunSpec:
    """A run of the small model with everything that Trainer.fit does for it: clipping, bias, further tokens."""
    small = on_ranks(preset("nano"), ranks)
    size = fitting_micro_batch(8, 4, Ranks(pipeline=2, data=2))
    trainer = replace(small.trainer, batch_size=8, micro_batch_size=size, gradient_clip=0.5, branches=())
    small = replace(small, trainer=trainer)
    levels = {"distill": "raw", "fp8": "bf16"} | ({"dualpipe": schedule} if ranks.pipeline > 1 else {})
    spec = (Variant.full(small) | levels).resolve(small)
    model = spec.model.portable().with_backends({"linear": "reference"})
    run = spec.run(corpus_hash="", seed=3, n_steps=STEPS, n_warmup_steps=0)
    return replace(run, model=model)


def train(run: RunSpec, folder: Path, resume: Path | None = None) -> dict[str, Tensor]:
    """The whole model's state after the last step (on ranks: on the first). A checkpoint is left in `folder`."""
    torch.set_default_dtype(torch.float64)
    generator, size = torch.Generator().manual_seed(11), run.trainer.micro_batch_size
    windows = torch.randint(run.model.vocab_size, (STEPS, run.trainer.n_micro_batches, size, 33), generator=generator)
    steps = [[{"window_BT1": w} for w in step] for step in windows[KEPT_AT if resume else 0 :]]
    team = assemble(run) if run.trainer.ranks.world > 1 else None
    module: Any = TrainingModule(run) if team is None else RanksModule(run, team)

    def keep(trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == KEPT_AT and (batch_idx + 1) % module.n_micro_batches == 0:
            trainer.save_checkpoint(folder)

    callbacks = [LambdaCallback(on_train_batch_end=keep), *slot_callbacks(run)]
    trainer = trainer_for(run, callbacks, folder=folder.parent, team=team)
    data = steps if team else [micro for step in steps for micro in step]
    trainer.fit(module, DataLoader(data, batch_size=None), ckpt_path=resume and str(resume))  # type: ignore[arg-type]
    found: dict[str, Tensor] = {name: t.clone() for name, t in module.whole_state().items()}
    return found


def on_a_rank(ranks: Ranks, schedule: str, place: str, resume: str) -> None:
    """`train` as a rank calls it; the first leaves the state beside the checkpoint."""
    if ranks.world > 1:  # as torchrun leaves it, which starts the ranks of real runs
        rank, world = str(dist.get_rank()), str(ranks.world)
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    found = train(run_on(ranks, schedule), Path(place), Path(resume) if resume else None)
    if found:
        save_tensors(found, state_file(Path(place)))


def state_file(place: Path) -> Path:
    return place.with_name(f"{place.name}.safetensors")
