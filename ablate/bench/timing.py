"""Seconds of functions on this machine, measured in turn; and the two ceilings that seconds are compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Function = Callable[[], Any]

ROUNDS = 4  # turns of all candidates; each turn is a share of the repetitions
L2_BYTES = 60 * 2**20  # of an H200; inputs of several times this do not stay between two turns
FASTEST_CLOCK = 2.0e9  # cycles a second, of which a wait is counted in


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of repeated calls."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median call, in seconds."""
        return statistics.median(self.seconds)

    def summary(self) -> dict[str, float | int]:
        """Median and quartiles in seconds, and the number of calls."""
        if len(self.seconds) == 1:
            low = high = self.seconds[0]
        else:
            low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return {"median": self.median, "q1": low, "q3": high, "n": len(self.seconds)}


def measure(candidates: Mapping[str, Sequence[Function]], device: torch.device, budget_s: float) -> dict[str, Sample]:
    """Seconds of each candidate, in turn A B A B; `budget_s` of measuring for each.

    A candidate is one function for each of several sets of inputs, which take turns too, so that no call finds its
    inputs in a cache. On CUDA the seconds are the device's: it is kept waiting until the host has queued the call.
    """
    clock = _cuda_seconds if device.type == "cuda" else _host_seconds
    found: dict[str, list[float]] = {name: [] for name in candidates}
    plan = {}
    for name, functions in candidates.items():
        for function in functions:  # compiles, allocates, fills caches
            function()
        wait = _queueing_seconds(functions[0]) if device.type == "cuda" else 0.0
        once = max(statistics.median(clock(functions, wait)), 1e-7)
        plan[name] = wait, max(1, min(50, round(budget_s / ROUNDS / (once + wait) / len(functions))))
    for _ in range(ROUNDS):
        for name, (wait, repeats) in plan.items():
            for _ in range(repeats):
                found[name] += clock(candidates[name], wait)
    return {name: Sample(tuple(seconds)) for name, seconds in found.items()}


def _host_seconds(functions: Sequence[Function], wait: float) -> list[float]:
    seconds = []
    for function in functions:
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def _cuda_seconds(functions: Sequence[Function], wait: float) -> list[float]:
    """Between two events around each call. `wait` seconds of the device before the first cover the host's queueing."""
    marks = []
    for function in functions:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(wait * FASTEST_CLOCK))
        start.record()
        function()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e-3 for start, end in marks]


def _queueing_seconds(function: Function) -> float:
    """What the host takes to queue a call, half as much again, and a little; 50 ms at most."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    torch.cuda.synchronize()
    return min(0.05, 1.5 * seconds + 3e-5)


def n_sets(input_bytes: int, device: torch.device) -> int:
    """Sets of inputs that together pass the L2 cache several times; two at least, four at most."""
    if device.type != "cuda":
        return 1
    return max(2, min(4, -(-4 * L2_BYTES // max(1, input_bytes))))


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this machine reaches at its best: bytes a second of a large copy, FLOP a second of a large product."""

    bytes_per_s: float
    flops_per_s: float
    samples: dict[str, Any]

    def least_seconds(self, flops: float, bytes_: float) -> float:
        """What no implementation goes below, at these ceilings."""
        return max(flops / self.flops_per_s, bytes_ / self.bytes_per_s)

    def summary(self) -> dict[str, Any]:
        """Both rates, and the samples that they were measured by."""
        return {"bytes_per_s": self.bytes_per_s, "flops_per_s": self.flops_per_s, **self.samples}


def ceilings(device: torch.device, *, smoke: bool = False) -> Ceilings:
    """Measured: a copy (read and write) of 2 GiB, and a product of 8192 x 8192 matrices of random bfloat16 numbers.

    On a processor 64 MiB, and 1024 x 1024 float32 numbers; less in a smoke test.
    """
    gpu = device.type == "cuda" and not smoke
    n, m = (2**31, 8192) if gpu else (2**20, 128) if smoke else (2**26, 1024)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    copy, product = _copy(n, device), _product(m, dtype, device)
    return Ceilings(
        bytes_per_s=2 * n / copy.median,
        flops_per_s=2 * m**3 / product.median,
        samples={
            "copy": {"bytes": 2 * n, "seconds": copy.summary()},
            "product": {"size": m, "dtype": str(dtype).removeprefix("torch."), "seconds": product.summary()},
        },
    )


def _copy(n: int, device: torch.device) -> Sample:
    source = torch.randint(256, (n,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return measure({"": [lambda: target.copy_(source)]}, device, 0.3)[""]


def _product(m: int, dtype: torch.dtype, device: torch.device) -> Sample:
    a, b = (torch.randn(m, m, device=device, dtype=dtype) for _ in range(2))
    return measure({"": [lambda: a @ b.T]}, device, 0.5)[""]
