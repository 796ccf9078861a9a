"""Launching kernels: where they may run, with which configuration, and how they become operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from ablate.kernels.table import Configuration, Table
from ablate.spec.machine import HOPPER, Machine, this_machine

INTERPRETED = bool(knobs.runtime.interpret)
if INTERPRETED:
    from ablate.kernels.interpreter import repair

    repair()

MIN_BLOCK = 16  # numbers along every axis of what tl.dot multiplies

# Set while kernels are compiled without a device: takes the place of a launch.
compiler: Callable[..., None] | None = None


def machine_of(device: torch.device) -> Machine:
    """The machine that a kernel on this device is configured for. ValueError where kernels do not run."""
    if device.type == "meta" and compiler is not None:
        return Machine(kind="cuda", name="compiled", capability=HOPPER)
    machine = this_machine()
    if device.type == "cuda":
        return machine
    if INTERPRETED and device.type == "cpu":
        return replace(machine, kind="cpu", name="cpu", capability=None, interpreted=True)
    raise ValueError(
        f"a Triton kernel was given a tensor on {device}; it runs on a CUDA device of compute capability 9.0 "
        "(or on the processor with TRITON_INTERPRET=1, slowly, for tests): choose backend library or reference"
    )


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """A function of tensors as the operator `ablate::name`, which changes none of them.

    `operator.launched` is the function itself, past PyTorch's dispatcher: what compiles on meta tensors. The caller
    registers a fake and, of what is differentiated, an autograd formula, so that torch.compile takes it whole.
    """

    def register(function: Callable[..., Any]) -> Any:
        made: Any = torch.library.custom_op(f"ablate::{name}", function, mutates_args=())
        made.launched = function
        return made

    return register


def launch(kernel: Any, grid: Sequence[int], *arguments: Any, **options: Any) -> None:
    """Run `kernel` on a grid of programs; nothing where the grid is empty. `options`: constants, warps, stages."""
    if 0 in grid:
        return
    if compiler is not None:
        compiler(kernel, grid, arguments, options)
        return
    first = next((a for a in arguments if isinstance(a, Tensor | TensorDescriptor)), None)
    device = first.base.device if isinstance(first, TensorDescriptor) else None if first is None else first.device
    # Triton launches on the current device, whichever its arguments are on.
    elsewhere = device is not None and device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        kernel[tuple(grid)](*arguments, **options)


def describe(x: Tensor, block: Sequence[int]) -> TensorDescriptor:
    """A descriptor for the tensor memory accelerator, which copies blocks of this shape; zeros beyond the edges."""
    return TensorDescriptor.from_tensor(x, list(block))


def describe_rows(x_PN: Tensor, block: Sequence[int]) -> TensorDescriptor:
    """The same of rows of which there may be one: it gets the stride of its length, as not every other is taken."""
    return describe(x_PN.flatten().view(1, -1) if x_PN.shape[0] == 1 else x_PN, block)


def choose(table: Table, kernel: str, x: Tensor, exact: Configuration, **sizes: int) -> Configuration:
    """The table's configuration of a kernel that multiplies x, for these sizes; `exact` for float32 on a device.

    There float32 is for comparisons: exact products use no tensor cores, so nothing about them is tuned.
    """
    machine = machine_of(x.device)
    if x.dtype == torch.float32 and not machine.interpreted:
        return exact
    return table.choose(kernel, machine, **sizes)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n, which is at least 1."""
    return triton.next_power_of_2(n)


def block_of(n: int) -> int:
    """The block of a matrix product that holds n numbers along an axis: a power of two, zeros beyond the edge."""
    return max(MIN_BLOCK, next_power_of_2(n))


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up; b is positive."""
    return -(-a // b)
