"""Closed forms of the schedules' bubbles, and executions to compare them with, for tests and benchmarks.

F, I, W: seconds of forward, input part and weight part; B = I + W; P: of an overlapped pair, which
is no shorter than either. Homogeneous stages, no
transfers. The published forms hold where W is no longer than F and I. DualPipe's is exact where F = I; elsewhere the
published order gives the correction below. It is that of the middle ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ablate.cluster.events import Execution, execute
from ablate.cluster.inputs import Floats
from ablate.schedules.tables import table

PIPELINES = (4, 8, 16, 32)
ROUNDS = (2, 3, 4, 6)  # micro-batches over ranks
N_TIMES = 10
NAMES = ("1f1b", "zb1p", "dualpipe")


def run(name: str, ranks: int, micro: int, f: Floats, i: Floats, w: Floats, p: Floats) -> Execution:
    alone = {"F": f, "I": i, "W": w, "B": i + w}
    return execute(table(name, ranks, micro), lambda group: p if len(group) > 1 else alone[group[0].kind])


def closed_form(name: str, ranks: int, f: Floats, i: Floats, w: Floats, p: Floats) -> Floats:
    """Idle seconds: of every rank, or of DualPipe's middle ranks."""
    if name == "1f1b":
        return (ranks - 1) * (f + i + w)
    if name == "zb1p":
        return (ranks - 1) * (f + i - w)
    published = (ranks / 2 - 1) * (p + i - 2 * w)  # (PP/2 - 1)(F&B + B - 3W)
    longer, shorter = (ranks / 2 - 1) * (f - i), np.minimum((ranks / 2 - 1) * (i - f), f)
    return np.asarray(published + np.where(f > i, longer, -shorter))


def times(seed: int, *, equal: bool = False) -> tuple[Floats, Floats, Floats, Floats]:
    """F, I, W and P of N_TIMES draws; equal: F = I."""
    rng = np.random.default_rng(seed)
    f = rng.uniform(0.5, 2.0, N_TIMES)
    i = f if equal else rng.uniform(0.5, 2.0, N_TIMES)
    w = rng.uniform(0.2, 1.0, N_TIMES) * np.minimum(f, i)
    longer, shorter = np.maximum(f, i + w), np.minimum(f, i + w)
    return f, i, w, longer + rng.uniform(0.0, 1.0, N_TIMES) * shorter


def cases(name: str, pipelines: tuple[int, ...] = PIPELINES) -> Iterator[tuple[str, Floats, Floats]]:
    """(what, executed, closed form): 160 of each schedule, N_TIMES at once."""
    for ranks in pipelines:
        for rounds in ROUNDS:
            drawn = times(1000 * ranks + rounds)
            found = run(name, ranks, rounds * ranks, *drawn)
            idle = found.idle[ranks // 2 - 1 if name == "dualpipe" else 0]
            yield f"{name} {ranks} x {rounds * ranks}", idle, closed_form(name, ranks, *drawn)
