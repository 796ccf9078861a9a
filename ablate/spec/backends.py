"""Which backend fills a slot on a machine: what can run there, and what `auto` means. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ablate.spec.machine import Machine
from ablate.spec.measured import measured_backends

AUTO = "auto"
EMULATED = ("compiled", "emulated")  # of FP8 products: exact in their numbers, and their seconds say nothing of FP8
Backend = Literal["auto", "reference", "library", "compiled", "triton"]


def resolve_backend(slot: str, asked: str, machine: Machine, obstacles: Mapping[str, str]) -> Any:
    """The backend that runs in `slot` on `machine`. ValueError if the one asked for cannot.

    obstacles: every backend of the slot, with the reason why it cannot run here, or "". `auto` takes the one that was
    measured to be the fastest on this device, else the first without an obstacle: libraries stand before kernels of
    our own, which are chosen unmeasured only where there is nothing else.
    """
    if asked != AUTO and asked not in obstacles:
        raise ValueError(f"{slot}.backend is {asked!r}; there are: {', '.join([AUTO, *obstacles])}")
    usable = [name for name, obstacle in obstacles.items() if not obstacle]
    if asked == AUTO:
        measured = measured_backends(machine).get(slot)
        return measured if measured in usable else usable[0]
    if obstacles[asked]:
        raise ValueError(
            f"{slot}.backend is {asked!r}, and {obstacles[asked]} (this machine: {machine}); "
            f"here there are: {', '.join([AUTO, *usable])}"
        )
    return asked


def without_triton(machine: Machine) -> str:
    """Why kernels of this program cannot run on a machine; "" if they can."""
    if machine.runs_triton:
        return ""
    return "its kernels need a GPU of compute capability 9.0 (H100, H200)"


def without_cuda(machine: Machine) -> str:
    """Why a library of CUDA's cannot be used; "" if it can."""
    return "" if machine.kind == "cuda" else "it needs a CUDA device"


def without_compiler(machine: Machine, dtype: str) -> str:
    """Why C for the processor cannot be used; "" if it can."""
    if machine.kind != "cpu":
        return "it is for the processor, and runs go to the GPU here"
    if not machine.compiles_c:
        return "it needs a C compiler (cc, gcc, clang, or $CC)"
    return "" if dtype == "float32" else f"it takes float32 and not {dtype}"


def require_concrete(asked: str) -> str:
    """A backend on its way into a module. ValueError for `auto`, which is replaced when a run is planned."""
    if asked == AUTO:
        raise ValueError("backend is auto, which names none: call for_machine on the model before it is built")
    return asked
