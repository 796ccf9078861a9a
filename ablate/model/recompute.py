"""Activation recomputation (arXiv:1604.06174): a block keeps its input alone, and is computed again to go backward.

The pass is made twice; what must happen once is not: transfers between ranks and counts go through `once`, which in the
second pass hands out what the first one made of them. Numbers are the same, bit for bit: a model draws no random ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ablate.kernels.weight_gradients import split_forward, splitting
from ablate.model.turns import Steps, at_once

T = TypeVar("T")
Function = Callable[[Tensor], Steps[tuple[Tensor, Any]]]  # x -> (y of the same kind, a dataclass or None)


@dataclass(slots=True)
class _Once:
    """What one pass made once, in its order; `again`: whether this is the second pass, which takes it from here."""

    made: deque[Any] = field(default_factory=deque)
    again: bool = False


class _Now:
    """The pass under way. Not of a thread: autograd works off a GPU's part of a graph in a thread of its own."""

    once: _Once | None = None


def recomputing() -> bool:
    """Whether this pass is one of two: gradients are wanted of it, even where they are off in the first."""
    return _Now.once is not None


def once(make: Callable[[], T], *, stand_in: Callable[[], T] | None = None) -> T:
    """`make()`; in a pass that is made a second time what it gave in the first, without doing it again.

    It is kept until then. `stand_in`: what takes its place where the second pass does not read it, and nothing is kept.
    """
    now = _Now.once
    if now is None:
        return make()
    if now.again:
        kept = now.made.popleft()
        return kept if stand_in is None else stand_in()
    value = make()
    now.made.append(value if stand_in is None else None)
    return value


def recomputed(function: Function, x: Tensor) -> Steps[tuple[Tensor, Any]]:
    """function(x), of which only x and what it does `once` is kept for the backward pass.

    x: requires a gradient, and is all that does beside parameters. The second result is a dataclass or None; of its
    floating-point tensors gradients flow back.
    """
    assert x.requires_grad, "nothing would reach the parameters"
    twice = _Twice(function, x.device.type)
    twice.results = yield from twice.first(x)
    y, *others = _Recomputed.apply(twice, x)
    beside, twice.beside = twice.beside, None
    return y, replace(beside, **dict(zip(_differentiable(beside), others, strict=True))) if others else beside


def _differentiable(beside: Any) -> list[str]:
    """The fields of a dataclass through which gradients may flow."""
    named = [] if beside is None else [(f.name, getattr(beside, f.name)) for f in fields(beside)]
    return [name for name, value in named if isinstance(value, Tensor) and value.is_floating_point()]


class _Twice:
    """A function whose second pass is made as the first one was: under the same autocast, split or not."""

    def __init__(self, function: Function, kind: str) -> None:
        self.function, self.once = function, _Once()
        self.results: tuple[Tensor, ...] = ()  # of the first pass, until they are in the graph
        self.beside: Any = None
        self.autocast: dict[str, Any] = {"device_type": kind, "enabled": torch.is_autocast_enabled(kind)}
        if self.autocast["enabled"]:
            # Autocast's own copies of weights may come from the first pass, which has no graph.
            self.autocast |= {"dtype": torch.get_autocast_dtype(kind), "cache_enabled": False}
        self.split = splitting()

    def first(self, x: Tensor) -> Steps[tuple[Tensor, ...]]:
        """The results, without a graph. What is done between the steps is none of this pass."""
        steps = self.function(x)
        while True:
            with torch.no_grad(), _under_way(self.once):
                try:
                    next(steps)
                except StopIteration as end:
                    y, self.beside = end.value
                    return y, *(getattr(self.beside, name) for name in _differentiable(self.beside))
            yield

    def second(self, x: Tensor) -> tuple[Tensor, ...]:
        """The same results, with a graph."""
        self.once.again = True
        split: AbstractContextManager[None] = split_forward() if self.split else nullcontext()
        with ExitStack() as stack:
            for context in (torch.enable_grad(), torch.autocast(**self.autocast), split, _under_way(self.once)):
                stack.enter_context(context)
            y, beside = at_once(self.function(x))
        assert not self.once.made, "the second pass did less than the first"
        return y, *(getattr(beside, name) for name in _differentiable(beside))


@contextmanager
def _under_way(once: _Once) -> Iterator[None]:
    assert _Now.once is None, "a block inside a block cannot be computed again"
    _Now.once = once
    try:
        yield
    finally:
        _Now.once = None


class _Recomputed(torch.autograd.Function):
    """Parameters are no inputs: the graph of the second pass adds to their gradients, or puts them off, by itself."""

    @staticmethod
    def forward(ctx: Any, twice: _Twice, x: Tensor) -> tuple[Tensor, ...]:
        ctx.twice = twice
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        results, twice.results = twice.results, ()
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, Tensor | None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        pairs = zip(ctx.twice.second(x), gradients, strict=True)
        wanted = [(y, g) for y, g in pairs if g is not None and y.requires_grad]
        torch.autograd.backward([y for y, _ in wanted], [g for _, g in wanted])
        return None, x.grad
