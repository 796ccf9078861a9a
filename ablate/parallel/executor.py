"""Runs a schedule on one rank of a pipeline: computes, sends, receives, and leaves gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ablate.kernels.weight_gradients import Product, put_off, split_forward, work_off
from ablate.model.turns import Pass, Steps, at_once, beside
from ablate.parallel.mesh import Mesh
from ablate.parallel.wires import Empty, Wires
from ablate.schedules.action import Action, Schedule
from ablate.schedules.check import check, pairs, with_transfers
from ablate.schedules.tables import forwards

# (stage, input or None at the first, micro-batch) -> what the next stage reads or the loss, and a second loss or None
Made = tuple[Tensor, Tensor | None]
Forward = Callable[[int, Tensor | None, int], Steps[Made]]
Context = Callable[[], AbstractContextManager[Any]]
Key = tuple[int, int]  # stage, micro-batch


class Pipeline:
    """One rank of one pipeline. Data ranks have pipelines of their own, and are other holders of the same names."""

    def __init__(self, schedule: Schedule, mesh: Mesh) -> None:
        """Every rank of the world makes it at once."""
        self.peaks = check(schedule)
        self.schedule, self.place = with_transfers(schedule), mesh.pipeline_rank
        self.wires = Wires(self.schedule, mesh)
        self.spans = mesh.spans
        # A pair takes turns where rows travel to experts; where none do it has nothing to wait for.
        self.overlaps = mesh.ranks.expert > 1

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that this rank holds."""
        return self.schedule.stages_of(self.place)

    def train(self, forward: Forward, empty: Empty, weight: float, around: Context = nullcontext) -> int:
        """One optimizer step: the gradients of `weight` times the sum of all losses. Returns the most live chunks.

        `empty`: a tensor as what travels of a micro-batch. `around`: what a forward pass is made in, and a backward
        pass is not.
        """
        run = _Training(self, forward, weight, around)
        run.do(self.schedule.ranks[self.place], empty)
        assert run.peak <= self.peaks[self.place], "more chunks are alive than the schedule allows"
        return run.peak

    @torch.no_grad()
    def evaluate(self, forward: Forward, empty: Empty, n_micro_batches: int) -> None:
        """Forward passes alone, all in the first direction."""
        table = with_transfers(forwards(self.schedule, n_micro_batches))
        _Run(self, forward).do(table.ranks[self.place], empty)


class _Run:
    """What is under way in one pass through a table of forward passes."""

    def __init__(self, pipeline: Pipeline, forward: Forward) -> None:
        self.pipeline, self.forward = pipeline, forward
        self.schedule, self.wires = pipeline.schedule, pipeline.wires
        self.arrived: dict[tuple[str, int, int], Tensor] = {}
        self.leaving: dict[tuple[str, int, int], Tensor] = {}

    def do(self, actions: tuple[Action, ...], empty: Empty) -> None:
        """All actions of a rank in their order."""
        self.wires.expect(actions, empty)
        for group in pairs(actions):
            self.together(group)
        self.wires.finish()
        assert not self.arrived, "the table left an input unread"
        assert not self.leaving, "the table left an output unsent"

    def together(self, group: list[Action]) -> None:
        """One action, or two that are a pair."""
        for action in group:
            self.one(action)

    def one(self, action: Action) -> None:
        key = (action.kind[-1], action.stage, action.micro)
        if action.kind[0] == "R":
            self.arrived[key] = self.wires.receive(action)
        elif action.kind[0] == "S":
            self.wires.send(action, self.leaving.pop(key))
        else:
            self.compute(action)

    def compute(self, action: Action) -> None:
        y, _ = at_once(self.forward(action.stage, self.input(action), action.micro))
        self.hand_on(action, "F", y)

    def input(self, action: Action) -> Tensor | None:
        """What a forward pass reads; None at the first stage."""
        return None if action.stage == 0 else self.arrived.pop(("F", action.stage, action.micro))

    def hand_on(self, action: Action, what: str, tensor: Tensor) -> None:
        """To the stage that reads it: by a send that follows, or as it is where this rank has that stage too."""
        if self.schedule.target(action) is not None:
            self.leaving[what, action.stage, action.micro] = tensor
        elif what == "B" or action.stage < self.schedule.last_stage:
            self.arrived[what, action.stage + (1 if what == "F" else -1), action.micro] = tensor


class _Training(_Run):
    """The same with backward passes, which leave gradients."""

    def __init__(self, pipeline: Pipeline, forward: Forward, weight: float, around: Context) -> None:
        """`weight`: of the losses."""
        super().__init__(pipeline, forward)
        self.weight, self.around, self.spans = weight, around, pipeline.spans
        self.in_two = {(a.stage, a.micro) for a in self.schedule.ranks[pipeline.place] if a.kind == "I"}
        self.chunks: dict[Key, tuple[Tensor | None, list[Tensor]]] = {}
        self.owed: dict[Key, list[tuple[Tensor, Product]]] = {}
        self.peak = 0

    def do(self, actions: tuple[Action, ...], empty: Empty) -> None:
        super().do(actions, empty)
        assert not self.chunks, "the table left a chunk without a backward pass"
        assert not self.owed, "the table left products of weights"

    def together(self, group: list[Action]) -> None:
        """A pair takes turns: where the backward pass would wait for rows, the forward pass goes on.

        The backward pass is first, since it begins with rows on their way to experts.
        """
        if len(group) == 1 or not self.pipeline.overlaps:
            return super().together(group)
        forward, backward = group
        x, going = self.begin(forward)
        self.peak = max(self.peak, self.n_live + 1)
        with beside(going):
            self.one(backward)
        return self.end(forward, x, going.finish())

    def one(self, action: Action) -> None:
        if action.kind == "F":  # it has spans of its own, a step each
            self.compute(action)
        else:
            with self.spans.of(action):
                super().one(action)
        self.peak = max(self.peak, self.n_live)

    @property
    def n_live(self) -> int:
        """Chunks of which something is kept."""
        return len(self.chunks) + len(self.owed)

    def compute(self, action: Action) -> None:
        if action.kind == "F":
            x, going = self.begin(action)
            self.end(action, x, going.finish())
        elif action.kind == "W":
            work_off(self.owed.pop((action.stage, action.micro)))
        else:
            self.backward(action)

    def begin(self, action: Action) -> tuple[Tensor | None, Pass[Made]]:
        """A forward pass, of which nothing is made yet; and its input."""
        x = self.input(action)
        if x is not None:
            x.requires_grad_()
        return x, Pass(self.forward(action.stage, x, action.micro), lambda: self.inside(action))

    @contextmanager
    def inside(self, action: Action) -> Iterator[None]:
        """What a step of a forward pass is made in, between those of a backward pass too."""
        split: AbstractContextManager[Any] = nullcontext()
        if (action.stage, action.micro) in self.in_two:
            split = split_forward()
        with ExitStack() as stack:
            for context in (self.spans.of(action), torch.enable_grad(), split, self.around()):
                stack.enter_context(context)
            yield

    def end(self, action: Action, x: Tensor | None, made: Made) -> None:
        """Keep what the backward pass needs, and hand the output on."""
        y, second = made
        self.chunks[action.stage, action.micro] = x, [y] if second is None else [y, second]
        self.hand_on(action, "F", y.detach())

    def backward(self, action: Action) -> None:
        key = action.stage, action.micro
        x, roots = self.chunks.pop(key)
        last = action.stage == self.schedule.last_stage
        # A loss is worked off where it arises; each root is of its own dtype, and so is its seed.
        seeds = [torch.full_like(root, self.weight) for root in roots[0 if last else 1 :]]
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
