"""The ranks of a run as they work together: this one's place, its stages, its pipeline."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from ablate.model.stage import Stage, part, stages
from ablate.model.transformer import Part, Transformer
from ablate.parallel.executor import Pipeline
from ablate.parallel.groups import WATCHDOG
from ablate.parallel.layout import layers_of, schedule_of
from ablate.parallel.mesh import Mesh, make_mesh
from ablate.spec.run import RunSpec

T = TypeVar("T")


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

    def from_first(self, value: T) -> T:
        """What the first rank has; every rank calls it."""
        shared = [value]
        dist.broadcast_object_list(shared)
        return shared[0]

    def largest(self, value: float) -> float:
        """The largest that any rank has; every rank calls it."""
        every = [value] * self.mesh.ranks.world
        dist.all_gather_object(every, value)
        return max(every)


def assemble(run: RunSpec) -> Team:
    """Meet the other ranks of a run, which torchrun or a cluster has started. Every rank calls it at once."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # else all ranks of a machine take its first one
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=WATCHDOG)
    schedule, mesh = schedule_of(run.trainer), make_mesh(run.trainer.ranks)
    with torch.device("meta"):
        names = tuple(name for name, _ in Transformer(run.model).named_parameters())
    return Team(mesh, Pipeline(schedule, mesh), stages(layers_of(run.model, run.trainer)), names)
