"""Launching kernels: where they may run, with which configuration, and the checks that every operator makes."""

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

from ablate.spec.machine import HOPPER, Machine, this_machine

INTERPRETED = bool(knobs.runtime.interpret)
if INTERPRETED:
    from ablate.kernels.interpreter import repair

    repair()

TMA_ALIGNMENT_BYTES = 16  # of a tensor's start and of every stride but the last

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


def check_rows(name: str, x: Tensor, dtypes: Sequence[torch.dtype], n_dims: int | None = None) -> None:
    """ValueError unless x has one of the dtypes, the number of axes, and a last axis that is contiguous."""
    if x.dtype not in dtypes:
        raise ValueError(f"{name} is {x.dtype}; it must be one of {', '.join(map(str, dtypes))}")
    if n_dims is not None and x.ndim != n_dims:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have {n_dims} axes")
    if x.ndim and x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name} has strides {x.stride()}; its last axis must be contiguous: call contiguous() first")


def check_aligned(name: str, x: Tensor) -> None:
    """ValueError unless the tensor memory accelerator can read x: start and strides in multiples of 16 bytes."""
    strides = [s * x.element_size() for s, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    start = 0 if x.device.type == "meta" else x.data_ptr()
    if any(s % TMA_ALIGNMENT_BYTES for s in (start, *strides)):
        raise ValueError(
            f"{name} starts at byte {start % TMA_ALIGNMENT_BYTES} modulo 16 with strides of {strides} bytes; both must "
            "be multiples of 16: give its last axis a multiple of 8 numbers of BF16 (16 of FP8)"
        )


def check_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """ValueError unless x has exactly this shape."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {tuple(shape)}")


def next_power_of_2(n: int) -> int:
    return triton.next_power_of_2(n)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
