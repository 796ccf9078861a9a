"""The ranks of a run as they work together: this one's place, its stages, its pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ablate.model.stage import Stage, part, stages
from ablate.model.transformer import Part, Transformer
from ablate.parallel.executor import Pipeline
from ablate.parallel.mesh import Mesh, make_mesh
from ablate.schedules.action import Schedule
from ablate.schedules.tables import table
from ablate.spec.run import RunSpec, TrainerSpec

WATCHDOG = timedelta(minutes=5)  # without news of another rank: then the run ends


@dataclass(frozen=True, slots=True)
class Team:
    """One rank's view of a run on several. `names`: every parameter of the whole model, in its order."""

    mesh: Mesh
    pipeline: Pipeline
    stages: tuple[Stage, ...]
    names: tuple[str, ...]

    @property
    def part(self) -> Part:
        """What of the model is here."""
        return part(self.stages[s] for s in self.pipeline.stages)

    @property
    def leads(self) -> bool:
        """Whether this rank writes what the run leaves."""
        return self.mesh.rank == 0


def schedule_of(trainer: TrainerSpec) -> Schedule:
    """The table of an optimizer step; on one pipeline rank plain accumulation.

    ValueError where the micro-batches cannot be shared, or the schedule cannot be for these numbers.
    """
    ranks, n = trainer.ranks, trainer.n_micro_batches
    if n % ranks.data:
        raise ValueError(
            f"{n} micro-batches of a step cannot be shared evenly by {ranks.data} data ranks; "
            "change trainer.batch_size, trainer.micro_batch_size or the ranks"
        )
    if trainer.pipeline is None:
        return table("1f1b", 1, n // ranks.data)
    return trainer.pipeline.schedule(ranks.pipeline, n // ranks.data)


def layers_of(run: RunSpec, schedule: Schedule) -> tuple[range, ...]:
    """The layers of each stage."""
    if run.trainer.pipeline is None:
        return (range(run.model.n_layers),)
    return run.trainer.pipeline.layers(run.model.n_layers, schedule.n_stages)


def assemble(run: RunSpec) -> Team:
    """Meet the other ranks of a run, which torchrun or a cluster has started. Every rank calls it at once."""
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=WATCHDOG)
    schedule, mesh = schedule_of(run.trainer), make_mesh(run.trainer.ranks)
    with torch.device("meta"):
        names = tuple(name for name, _ in Transformer(run.model).named_parameters())
    return Team(mesh, Pipeline(schedule, mesh), stages(layers_of(run, schedule)), names)
