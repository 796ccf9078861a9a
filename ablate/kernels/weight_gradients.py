"""Weight gradients put off: the backward pass of a chunk in two parts, every product computed once.

A zero-bubble schedule (arXiv:2401.10241) needs the gradient of a chunk's input as soon as it can be had, since another
rank waits for it, and the gradients of its weights at any time after. Autograd could be asked for either alone, but
runs a function of one's own whole both times; so such functions hand their weight product over here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Product = Callable[[], Tensor]


class _Now:
    """What holds at the moment. Not of a thread: autograd works off a GPU's part of a graph in a thread of its own."""

    splitting = False
    waiting: list[tuple[Tensor, Product]] | None = None


@contextmanager
def split_forward() -> Iterator[None]:
    """Round the forward pass of a chunk whose backward will come in two parts."""
    before, _Now.splitting = _Now.splitting, True
    try:
        yield
    finally:
        _Now.splitting = before


def splitting() -> bool:
    """Whether this forward pass is of a chunk whose backward comes in two parts."""
    return _Now.splitting


@contextmanager
def put_off() -> Iterator[list[tuple[Tensor, Product]]]:
    """Round the input part of a backward pass: gives the weights whose products wait, for `work_off`."""
    assert _Now.waiting is None, "one backward pass at a time"
    waiting: list[tuple[Tensor, Product]] = []
    _Now.waiting = waiting
    try:
        yield waiting
    finally:
        _Now.waiting = None


@torch.no_grad()
def work_off(waiting: list[tuple[Tensor, Product]]) -> None:
    """The weight part: compute the products and add them to the weights' gradients."""
    for weight, product in waiting:
        gradient = product()
        weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
    waiting.clear()


def weight_gradient(weight: Tensor, product: Product) -> Tensor | None:
    """What a backward function returns for a weight: its gradient, or None where that is put off.

    `product` holds tensors and never the function's context, whose saved tensors go with the graph.
    """
    if _Now.waiting is None:
        return product()
    _Now.waiting.append((weight, product))
    return None


def linear_in_both(operation: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """operation(x, weight), made of torch's own functions; its two gradients can be had apart in a split chunk."""
    if not _Now.splitting or not torch.is_grad_enabled():
        return operation(x, weight)
    y: Tensor = _Apart.apply(x, weight, operation)
    return y


class _Apart(torch.autograd.Function):
    """An operation with a graph of its own, whose functions compute only the half that they are asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.weight = weight
        ctx.x, ctx.leaf = x.detach().requires_grad_(), weight.detach().requires_grad_()
        with torch.enable_grad():
            ctx.y = operation(ctx.x, ctx.leaf)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g,), x, leaf, y = gradients, ctx.x, ctx.leaf, ctx.y
        ctx.x = ctx.leaf = ctx.y = None
        (x_gradient,) = torch.autograd.grad(y, x, g, retain_graph=True)
        return x_gradient, weight_gradient(ctx.weight, lambda: torch.autograd.grad(y, leaf, g)[0]), None
