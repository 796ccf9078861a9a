"""Runs a schedule on one rank of a pipeline: computes, sends, receives, and leaves gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ablate.kernels.weight_gradients import Product, put_off, split_forward, work_off
from ablate.parallel.mesh import Mesh
from ablate.parallel.spans import OFF
from ablate.parallel.wires import Empty, Wires
from ablate.schedules.action import Action, Schedule
from ablate.schedules.check import check, with_transfers
from ablate.schedules.tables import forwards

# (stage, input or None at the first, micro-batch) -> what the next stage reads or the loss, and a second loss or None
Forward = Callable[[int, Tensor | None, int], tuple[Tensor, Tensor | None]]
Key = tuple[int, int]  # stage, micro-batch


class Pipeline:
    """One rank of one pipeline. Data ranks have pipelines of their own, and are other holders of the same names."""

    def __init__(self, schedule: Schedule, mesh: Mesh) -> None:
        """Every rank of the world makes it at once."""
        self.peaks = check(schedule)
        self.schedule, self.place = with_transfers(schedule), mesh.pipeline_rank
        self.wires = Wires(self.schedule, mesh)
        self.spans = mesh.spans

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that this rank holds."""
        return self.schedule.stages_of(self.place)

    def train(self, forward: Forward, empty: Empty, weight: float) -> int:
        """One optimizer step: the gradients of `weight` times the sum of all losses. Returns the most live chunks.

        `empty`: a tensor as what travels of a micro-batch.
        """
        run = _Run(self, forward, weight)
        run.do(self.schedule.ranks[self.place], empty)
        assert run.peak <= self.peaks[self.place], "more chunks are alive than the schedule allows"
        return run.peak

    @torch.no_grad()
    def evaluate(self, forward: Forward, empty: Empty, n_micro_batches: int) -> None:
        """Forward passes alone, all in the first direction."""
        table = with_transfers(forwards(self.schedule, n_micro_batches))
        _Run(self, forward, None).do(table.ranks[self.place], empty)


class _Run:
    """What is under way in one pass through a table."""

    def __init__(self, pipeline: Pipeline, forward: Forward, weight: float | None) -> None:
        """`weight`: of the losses; None: no backward pass follows."""
        self.pipeline, self.forward, self.weight = pipeline, forward, weight
        self.schedule, self.wires = pipeline.schedule, pipeline.wires
        actions = self.schedule.ranks[pipeline.place] if weight is not None else ()
        self.in_two = {(a.stage, a.micro) for a in actions if a.kind == "I"}
        self.arrived: dict[tuple[str, int, int], Tensor] = {}
        self.leaving: dict[tuple[str, int, int], Tensor] = {}
        self.chunks: dict[Key, tuple[Tensor | None, list[Tensor]]] = {}
        self.owed: dict[Key, list[tuple[Tensor, Product]]] = {}
        self.peak = 0
        self.kinds: dict[str, Callable[[Action], None]] = {
            "F": self.do_forward, "B": self.do_backward, "I": self.do_backward, "W": self.do_weights,
        }  # fmt: skip

    def do(self, actions: tuple[Action, ...], empty: Empty) -> None:
        """All actions of a rank in their order."""
        self.wires.expect(actions, empty)
        for action in actions:
            with self.pipeline.spans.of(action) if self.weight is not None else OFF:  # an evaluation is none of a step
                self.one(action)
            self.peak = max(self.peak, len(self.chunks) + len(self.owed))
        self.wires.finish()
        left = (self.arrived, self.leaving, self.chunks, self.owed)
        assert not any(left), "the table left something undone"

    def one(self, action: Action) -> None:
        key = (action.kind[-1], action.stage, action.micro)
        if action.kind[0] == "R":
            self.arrived[key] = self.wires.receive(action)
        elif action.kind[0] == "S":
            self.wires.send(action, self.leaving.pop(key))
        else:
            self.kinds[action.kind](action)

    def hand_on(self, action: Action, what: str, tensor: Tensor) -> None:
        """To the stage that reads it: by a send that follows, or as it is where this rank has that stage too."""
        if self.schedule.target(action) is not None:
            self.leaving[what, action.stage, action.micro] = tensor
        else:
            self.arrived[what, action.stage + (1 if what == "F" else -1), action.micro] = tensor

    def do_forward(self, action: Action) -> None:
        key = action.stage, action.micro
        x = None if action.stage == 0 else self.arrived.pop(("F", *key))
        if x is not None and self.weight is not None:
            x.requires_grad_()
        context: AbstractContextManager[Any] = split_forward() if key in self.in_two else nullcontext()
        with context:
            y, second = self.forward(action.stage, x, action.micro)
        if self.weight is not None:
            self.chunks[key] = x, [y] if second is None else [y, second]
        if action.stage < self.schedule.last_stage:
            self.hand_on(action, "F", y.detach())

    def do_backward(self, action: Action) -> None:
        key = action.stage, action.micro
        x, roots = self.chunks.pop(key)
        last = action.stage == self.schedule.last_stage
        # A loss is worked off where it arises; each root is of its own dtype, and so is its seed.
        seeds = [torch.full_like(root, self.weight or 0.0) for root in roots[0 if last else 1 :]]
        if not last:
            seeds = [self.arrived.pop(("B", *key)), *seeds]
        if action.kind == "I":
            with put_off() as waiting:
                torch.autograd.backward(roots, seeds)
            self.owed[key] = waiting
        else:
            torch.autograd.backward(roots, seeds)
        if x is not None:
            assert x.grad is not None
            self.hand_on(action, "B", x.grad)

    def do_weights(self, action: Action) -> None:
        work_off(self.owed.pop((action.stage, action.micro)))
