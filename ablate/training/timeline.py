"""Records what the ranks do in some steps in the middle of a run, and gathers it behind the last of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback

from ablate.parallel.team import Team
from ablate.schedules.timeline import Timeline, aligned


class Recorder(Callback):
    """Switches the recorder of this rank on for `steps`. Before the first of them the ranks compare their clocks.

    An attempt that goes on from a checkpoint within them records those that are left, and one behind them none.
    """

    def __init__(self, run_id: str, team: Team, steps: range, keep: Callable[[Timeline], object]) -> None:
        """`keep`: what the first rank does with the timeline of all."""
        self.run_id, self.team, self.steps, self.keep = run_id, team, steps, keep

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step not in self.steps:
            return
        spans = self.team.mesh.spans
        if not spans.has_begun:
            spans.begin()
        spans.start_step(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step - 1 not in self.steps:
            return
        self.team.mesh.spans.end_step()
        if trainer.global_step == self.steps.stop:
            self._gather()

    def _gather(self) -> None:
        mesh, spans = self.team.mesh, self.team.mesh.spans
        every: list[Any] | None = [None] * mesh.ranks.world if self.team.leads else None
        dist.gather_object(spans.recording(), every)
        if every is None:
            return
        steps, error_s = aligned(every)
        self.keep(
            Timeline(
                run_id=self.run_id,
                n_data_ranks=mesh.ranks.data,
                clock=spans.clock,
                clock_error_s=round(error_s, 6),
                n_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                load=round(os.getloadavg()[0], 2),
                steps=steps,
            )
        )
