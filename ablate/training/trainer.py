"""The one Trainer of every run, and what it may use of this machine."""

from __future__ import annotations

import logging
import os
import resource
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from ablate.parallel.strategy import RanksStrategy
from ablate.parallel.team import Team
from ablate.spec.run import RunSpec
from ablate.training.checkpoint import FolderCheckpoint


def device() -> str:
    """What runs are trained on here, as Lightning names it: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def slot_callbacks(run: RunSpec) -> list[Callback]:
    """What the nodes of a run bring to its training."""
    balance = run.model.balance
    return [*run.model.linear.callbacks(), *(balance.callbacks() if balance else [])]


def trainer_for(
    run: RunSpec,
    callbacks: Sequence[Callback],
    *,
    folder: Path,
    logger: Any = None,
    until: int | None = None,
    team: Team | None = None,
) -> Trainer:
    """The Trainer of a run on this machine's device, up to its end or the step `until`.

    Lightning's own files go to `folder`. `team`: the ranks that train it together.
    """
    _quiet()
    kind = device()
    trainer = Trainer(
        accelerator=kind,
        **_processes(team),
        max_steps=run.n_steps if until is None else until,
        max_epochs=-1,
        gradient_clip_val=run.trainer.gradient_clip,
        accumulate_grad_batches=1 if team else run.trainer.n_micro_batches,
        plugins=[run.model.linear.precision(run.trainer.dtype, kind), FolderCheckpoint()],
        callbacks=list(callbacks),
        logger=logger or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    # A signal to stop is the Keeper's. Lightning ends training at the next micro-batch, in the middle of a step, where
    # no checkpoint can be; and on ranks it broadcasts inside its handler, whatever they are just sending each other.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _processes(team: Team | None) -> dict[str, Any]:
    """Devices and Strategy. The processes of a team were started before, equally many on each machine."""
    if team is None:
        return {"devices": 1}
    world, here = team.mesh.ranks.world, int(os.environ.get("LOCAL_WORLD_SIZE", team.mesh.ranks.world))
    return {"devices": here, "num_nodes": world // here, "strategy": RanksStrategy(team)}


def _quiet() -> None:
    """Lightning's advice is for people at a notebook; what matters here is in the record."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def peak_memory_bytes() -> int:
    """Peak of the device's memory, or without one of this process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
