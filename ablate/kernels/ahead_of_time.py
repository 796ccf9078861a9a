"""Compiling kernels for Hopper without a GPU, and reading what they use: registers, spills, memory, instructions.

Operators run on meta tensors; where they would launch a kernel it is compiled for sm_90a with exactly the
specialisation and configuration of that launch. Not possible while Triton interprets (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ablate.kernels import launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
REGISTERS = 255  # a thread's most
SHARED_BYTES = 227 * 1024  # a block's most on sm_90
ANY: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """One kernel as compiled for sm_90a. `stack_bytes` of a thread hold spilled registers; 0 is none."""

    kernel: str
    configuration: str
    target: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    wgmma: int  # matrix instructions in the PTX
    tma: int  # tensor copies by the memory accelerator in the PTX
    hgmma: int  # matrix instructions in the machine code, of 16-bit and TF32 numbers
    qgmma: int  # of 8-bit numbers
    copies: (
        int  # asynchronous copies to shared memory in the machine code: how gathered rows come while others are used
    )
    local: int  # loads and stores of local memory in the machine code: what spills cost
    repeats: int  # how often the warps compute the same numbers of a matrix product; 1 is never twice, 0 is no product
    seconds: float


class _NoDevice:
    """What Triton asks of a driver in order to compile."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(only: Mapping[str, int] = ANY) -> Iterator[list[Compiled]]:
    """Inside, launches on meta tensors compile their kernels and are listed, each specialisation once.

    only: options that a launch must have in order to be compiled.
    """
    found: list[Compiled] = []
    seen: set[str] = set()

    def compile_(kernel: Any, grid: Sequence[int], arguments: Sequence[Any], options: dict[str, Any]) -> None:
        if not only.items() <= options.items():
            return
        start = time.monotonic()
        binary = kernel.warmup(*arguments, grid=tuple(grid), **options)
        if binary.hash not in seen:
            seen.add(binary.hash)
            found.append(_read(binary, options, time.monotonic() - start))

    if launch.INTERPRETED:
        raise ValueError("kernels cannot be compiled while TRITON_INTERPRET=1 is set; unset it")
    before = driver._active
    driver.set_active(_NoDevice())
    launch.compiler = compile_
    try:
        yield found
    finally:
        launch.compiler, driver._active = None, before


def _read(binary: Any, options: dict[str, Any], seconds: float) -> Compiled:
    ptx: str = binary.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        usage, sass = _run("cuobjdump", "-res-usage", str(cubin)), _run("cuobjdump", "-sass", str(cubin))
    target = re.search(r"\.target (\S+)", ptx)
    counted = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert target
    assert counted
    sizes = {k: v for k, v in options.items() if k not in ("num_warps", "num_stages")}
    text = " ".join(f"{k}={v}" for k, v in sizes.items())
    return Compiled(
        kernel=binary.metadata.name,
        configuration=f"{text} w{binary.metadata.num_warps} s{binary.metadata.num_stages}".strip(),
        target=target[1].rstrip(","),
        registers=int(counted[1]),
        stack_bytes=int(counted[2]),
        shared_bytes=binary.metadata.shared,
        wgmma=len(re.findall(r"wgmma\.mma_async", ptx)),
        tma=len(re.findall(r"cp\.async\.bulk\.tensor", ptx)),
        hgmma=len(re.findall(r"\bHGMMA\b", sass)),
        qgmma=len(re.findall(r"\bQGMMA\b", sass)),
        copies=len(re.findall(r"\bLDGSTS\b", sass)),
        local=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        repeats=repeats(binary.asm["ttgir"]),
        seconds=round(seconds, 2),
    )


def repeats(ttgir: str) -> int:
    """How often a product's numbers are computed at most, by the layouts of Triton's intermediate code.

    Warps stand `warpsPerCTA` deep and wide, each with an instruction of `instrShape`: where a tile has fewer rows or
    columns than they cover together, some compute what others do.
    """
    layouts = {
        name: [int(warps) * int(size) for warps, size in zip(deep_wide.split(","), shape.split(","), strict=False)]
        for name, deep_wide, shape in re.findall(
            r"(#\w+) = #ttg\.nvidia_mma<\{versionMajor = 3,.*?warpsPerCTA = \[(.*?)\].*?instrShape = \[(.*?)\]", ttgir
        )
    }
    products = re.findall(r"warp_group_dot .*-> tensor<(\d+)x(\d+)x\w+, (#\w+)>", ttgir)
    found = [max(1, layouts[at][0] // int(m)) * max(1, layouts[at][1] // int(n)) for m, n, at in products]
    return max(found, default=0)


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
