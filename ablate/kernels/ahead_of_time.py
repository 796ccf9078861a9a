"""Compiling kernels for Hopper without a GPU, and reading what they use: registers, spills, memory, instructions.

Operators run on meta tensors; where they would launch a kernel it is compiled for sm_90a with exactly the
specialisation and configuration of that launch. Not possible while Triton interprets (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ablate.kernels import launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
REGISTERS = 255  # a thread's most
SHARED_BYTES = 227 * 1024  # a block's most on sm_90


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
    local: int  # loads and stores of local memory in the machine code: what spills cost
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
def compiling() -> Iterator[list[Compiled]]:
    """Inside, launches on meta tensors compile their kernels and are listed, each specialisation once."""
    found: list[Compiled] = []
    seen: set[str] = set()

    def compile_(kernel: Any, grid: Sequence[int], arguments: Sequence[Any], options: dict[str, Any]) -> None:
        import time

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
        local=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        seconds=round(seconds, 2),
    )


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
