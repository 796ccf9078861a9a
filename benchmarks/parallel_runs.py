"""Which is faster on this machine: runs side by side with one thread each, or one after the other with all threads?

    python benchmarks/parallel_runs.py --preset cpu --steps 60

Runs one seed a core of the full variant both ways, and prints tokens per second of the machine as a whole, start-up
and evaluation included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.components.variants import Variant
from ablate.data.prepare import prepare
from ablate.presets import preset
from ablate.runs.job import Job
from ablate.runs.store import Store
from ablate.spec.decoding import run_id
from ablate.spec.machine import this_machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Threaded(Job):
    """A run with a number of threads that is not its model's own."""

    given: int

    @property
    def n_threads(self) -> int:
        return self.given


def main() -> None:
    arguments = _arguments()
    cores = len(os.sched_getaffinity(0))
    for label, n_parallel, n_threads in (("side by side", cores, 1), ("one by one", 1, cores)):
        n_tokens, seconds = _run(arguments.preset, arguments.steps, cores, n_parallel, n_threads)
        rate = n_tokens / seconds
        print(f"{label:13} {n_parallel} at a time, {n_threads} threads each: {rate:8.0f} tokens/s, {seconds:.1f} s")


def _run(name: str, n_steps: int, n_runs: int, n_parallel: int, n_threads: int) -> tuple[int, float]:
    base = preset(name)
    variant = Variant.full(base)
    spec = variant.resolve(base).for_machine(this_machine())
    corpus = prepare(base.data.source, vocab_size=base.model.vocab_size)
    runs = [spec.run(corpus_hash=corpus.hash, seed=seed, n_steps=n_steps) for seed in range(n_runs)]
    jobs = [
        Threaded(
            run=run,
            run_id=run_id(run),
            variant=variant.levels,
            corpus=corpus,
            keep_weights=False,
            given=n_threads,
        )
        for run in runs
    ]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.create()
        start = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(n_parallel) as pool:
            statuses = pool.starmap(_execute, [(job, store) for job in jobs], chunksize=1)
        seconds = time.perf_counter() - start
    assert set(statuses) == {"finished"}
    return sum(run.n_tokens for run in runs), seconds


def _execute(job: Job, store: Store) -> str:
    from ablate.runs.execute import execute

    return execute(job, store, lambda *_: None).status


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--steps", type=int, default=60)
    return parser.parse_args()


if __name__ == "__main__":
    main()
