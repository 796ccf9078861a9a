"""What the operations share: random inputs, and functions repeated forward, backward or both ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ablate.bench.operation import Prepared, Tensors

PASSES = ("forward", "backward")


def random(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
    """Normal numbers on the default device; the same everywhere but for the device's generator."""
    device = torch.get_default_device()
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)


def integers(high: int, *shape: int, seed: int) -> Tensor:
    """int64 numbers in [0, high) on the default device."""
    device = torch.get_default_device()
    return torch.randint(high, shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def forward(function: Callable[..., Any]) -> Callable[..., Prepared]:
    """The `prepare` of an implementation that is a function's forward pass, without what a backward pass needs."""

    def prepare(*inputs: Tensor) -> Prepared:
        def run() -> Any:
            with torch.no_grad():
                return function(*inputs)

        return run

    return prepare


def backward(function: Callable[..., Any], n_gradients: int, *, both: bool = False) -> Callable[..., Prepared]:
    """The `prepare` of an implementation that is a function's backward pass by its first `n_gradients` inputs.

    The last input is the gradient of the result. `both`: the forward pass is repeated, and timed, with it.
    """

    def prepare(*inputs: Tensor) -> Prepared:
        *given, gradient = inputs
        wanted = [x.detach().requires_grad_() for x in given[:n_gradients]]
        arguments = [*wanted, *given[n_gradients:]]
        if both:
            return lambda: torch.autograd.grad(function(*arguments), wanted, gradient)
        result = function(*arguments)
        return lambda: torch.autograd.grad(result, wanted, gradient, retain_graph=True)

    return prepare


def expected_backward(function: Callable[..., Tensor], n_gradients: int) -> Callable[..., Tensors]:
    """What `backward` of a function gives: the `expected` of an operation."""
    return lambda *wide: backward(function, n_gradients)(*wide)()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """By torch.compile, when it is first called (importing the compiler takes seconds); one graph for each shape."""

    @cache
    def made() -> Callable[..., Any]:
        from torch._functorch import config

        # Else a compiled backward pass may use what was kept for it as scratch, and cannot be timed twice.
        config.donated_buffer = False
        return torch.compile(function, dynamic=False)

    return lambda *arguments, **options: made()(*arguments, **options)
