"""Passes in steps, so that two of them take turns: one computes while rows of the other travel between ranks.

A forward pass is a generator that yields where a transfer is under way. A backward pass is autograd's and cannot be
left in its middle, so it runs as a whole, and wherever it would wait the forward pass beside it makes a step: the
overlap of DualPipe (arXiv:2412.19437, section 3.2.1, figure 4) in one thread, in one order on all ranks. On a GPU the
host waits for neither: transfers have a stream of their own, and the products of both passes lie between them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]  # yields where a transfer is under way; returns what was made


def at_once(steps: Steps[T]) -> T:
    """What a pass makes, with nothing beside it."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: T = end.value
            return made


def steps_of(module: Any, *inputs: Any) -> Steps[Any]:
    """A module's pass; one that sends no rows (`sends`) is called as any module is, hooks and all, in one step."""
    if getattr(module, "sends", False):
        return (yield from module.steps(*inputs))
    return module(*inputs)


class Pass(Generic[T]):
    """A pass under way. `around`: what each of its steps is made in, since others are made between them."""

    def __init__(self, steps: Steps[T], around: Callable[[], AbstractContextManager[Any]]) -> None:
        self._steps, self._around = steps, around
        self._made: list[T] = []

    def step(self) -> None:
        """Go on to where the next transfer is under way, or to the end; nothing behind it."""
        if self._made:
            return
        with self._around():
            try:
                next(self._steps)
            except StopIteration as end:
                self._made.append(end.value)

    def finish(self) -> T:
        """Go on to the end: what was made."""
        if not self._made:
            with self._around():
                self._made.append(at_once(self._steps))
        return self._made[0]


class _Now:
    """The pass that makes a step where another waits. Not of a thread: autograd has its own for a GPU."""

    beside: Pass[Any] | None = None


@contextmanager
def beside(other: Pass[Any]) -> Iterator[None]:
    """Round a backward pass: wherever it would wait, `other` makes a step."""
    assert _Now.beside is None, "two passes take turns, no more"
    _Now.beside = other
    try:
        yield
    finally:
        _Now.beside = None


def give_way() -> None:
    """Called before a wait: the pass beside this one, if there is any, makes a step."""
    other, _Now.beside = _Now.beside, None  # what waits inside that step gives way to nobody
    if other is not None:
        try:
            other.step()
        finally:
            _Now.beside = other
