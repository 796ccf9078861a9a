"""Runs that go on from every step, on one process and on two; and ranks of a run that hang, or die while they save."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fault_ground import Ground, Try, essences
from forked import Command, Writes, spawn

from ablate.components.variants import Variant, fitting_micro_batch, on_ranks
from ablate.data.corpus import open_corpus
from ablate.presets import preset
from ablate.runs import conduct
from ablate.runs.attempts import newest
from ablate.runs.execute import execute
from ablate.runs.executors import local
from ablate.runs.executors.local import LocalExecutor
from ablate.runs.job import Job
from ablate.runs.progress import standing
from ablate.runs.store import Store
from ablate.spec.decoding import run_id
from ablate.spec.machine import this_machine
from ablate.spec.ranks import Ranks
from ablate.training.callbacks import Interrupted
from ablate.training.checkpoint import step_of

N_STEPS = 51  # so that there are fifty steps to go on from
HUNG_STEPS = 300  # long enough for a fault to meet training
PATIENCE_S = 900.0  # the machine may be busy


def a_job(ground: Ground, world: int, n_steps: int) -> Job:
    """A run of the smallest model with everything on that means something, on one process or two."""
    ranks = Ranks(pipeline=world)
    small = on_ranks(preset("nano"), ranks) if world > 1 else preset("nano")
    size = fitting_micro_batch(8, 4, ranks) if world > 1 else 4
    trainer = replace(small.trainer, batch_size=8, micro_batch_size=size, branches=(), n_evaluations=4)
    variant = Variant.full(replace(small, trainer=trainer)) | (
        {"distill": "raw"} | ({"fp8": "bf16"} if world > 1 else {})
    )
    spec = variant.resolve(replace(small, trainer=trainer)).for_machine(this_machine())
    folder = next(path.parent for path in ground.cache.rglob("manifest.json") if (path.parent / "train.bin").exists())
    corpus = open_corpus(folder)
    run = spec.run(corpus_hash=corpus.hash, seed=0, n_steps=n_steps)
    return Job(run=run, run_id=run_id(run), variant=variant.levels, corpus=corpus)


def _ranks(job: Job, store: Store, place: Path, cache: Path, stop_at: int | None, prepare: Any = None) -> list[Command]:
    """The processes of an attempt, forked: each calls `execute` as a worker does."""
    attempt, world = store.new_attempt(job.run_id), job.ranks
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def act(rank: int) -> int:
        place_of = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
        if world > 1:
            os.environ |= {name: str(value) for name, value in place_of.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "fault"}
        if prepare is not None:
            prepare(rank)
        asked = 0

        def stop() -> bool:
            nonlocal asked
            asked += 1
            return stop_at is not None and asked >= stop_at

        try:
            execute(job, store, lambda *_: None, stop, attempt=attempt)
        except Interrupted:
            return 75
        return 0

    return [spawn(partial(act, rank), log=place / f"rank{rank}.log", cache=cache) for rank in range(world)]


def _ended(this: Try, commands: list[Command], expected: int) -> None:
    codes = [command.wait(PATIENCE_S) for command in commands]
    for command in commands:
        if command.state:
            command.kill()
    if any(code != expected for code in codes):
        this.fail(
            "unfinished", f"processes ended with {codes}, not {expected}\n{commands[0].text}\n{commands[-1].text}"
        )


def _undisturbed(this: Try, job: Job) -> Any:
    """What the run comes to when nothing happens; made once in a campaign."""
    store = Store(this.ground.folder / f"alone-{job.run_id}")
    if store.read(job.run_id) is None:
        store.create()
        _ended(this, _ranks(job, store, this.place, this.ground.cache, None), 0)
    return dict(essences(store.folder))


def resumed(this: Try) -> None:
    """Stopped after a step and gone on: exactly the run that was not. In turn every step, on one process and on two.

    (Batches are read by the training process itself: there are no loading workers whose number could differ.)
    """
    world, step = 1 + this.index % 2, this.index // 2 % (N_STEPS - 1) + 1
    job = a_job(this.ground, world, N_STEPS)
    expected, store = _undisturbed(this, job), Store(this.out)
    store.create()
    _ended(this, _ranks(job, store, this.place, this.ground.cache, step), 75)
    steps = [step_of(path) for path in store.attempts_folder(job.run_id).glob("*/step-*")]
    if steps != [step]:
        this.fail("wrong", f"stopped after step {step}, and there are checkpoints of {steps}")
    _ended(this, _ranks(job, store, this.place, this.ground.cache, None), 0)
    _compare(this, expected)


def _compare(this: Try, expected: Any) -> None:
    found = dict(essences(this.out))
    for run, essence in expected.items():
        if run not in found:
            this.fail("lost", run)
        elif found[run] != essence:
            this.fail("wrong", f"{run} is not bit for bit the run that was not disturbed")
    for path in this.out.rglob(".writing-*"):
        this.fail("torn", f"{path} was left")


def rank_dies_in_save(this: Try) -> None:
    """One of two ranks is killed at a write of the checkpoint that both make: no half of it is gone on from."""
    job = a_job(this.ground, 2, N_STEPS)
    expected, store = _undisturbed(this, job), Store(this.out)
    store.create()
    victim, n, step = this.draw.randint(0, 1), this.draw.randint(1, 12), this.draw.randint(2, N_STEPS - 2)
    hit = Writes()

    def prepare(rank: int) -> None:
        saving = Writes()

        def act(at: int, path: str) -> None:
            if "step-" in path or ".writing-" in path:
                saving.shared[:1] = b"1"
            if rank == victim and saving.n and at >= n:
                hit.shared[:1] = b"1"
                os.kill(os.getpid(), signal.SIGKILL)

        Writes().watch(act)()

    commands = _ranks(job, store, this.place, this.ground.cache, step, prepare)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and all(command.state for command in commands):
        time.sleep(0.05)
    time.sleep(1.0)  # torchrun ends the others as soon
    for command in commands:
        command.kill()
    this.met = hit.n > 0
    store.clear(job.run_id)
    _ended(this, _ranks(job, store, this.place, this.ground.cache, None), 0)
    _compare(this, expected)


def rank_hangs(this: Try) -> None:
    """One of two ranks stands still (SIGSTOP), so that the other waits for it: both are ended, and the run goes on.

    Through the conductor and torchrun, as a study runs it.
    """
    job = a_job(this.ground, 2, HUNG_STEPS)
    expected, store = _undisturbed(this, job), Store(this.out)
    store.create()
    told = this.place / "told"

    def act() -> int:
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
        conduct.SILENT_S, conduct.START_FACTOR = 30.0, 10
        local._context = lambda: multiprocessing.get_context("fork")

        def listener(event: Any) -> None:
            with told.open("a") as file:
                file.write(f"{event}\n")

        outcome = conduct.execute_all([job], store, LocalExecutor(store, 1), listener=listener)
        return 0 if outcome.status == {job.run_id: "finished"} else 1

    command = spawn(act, log=this.place / "log", cache=this.ground.cache)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and command.state and not _trains(store, job):
        time.sleep(0.1)
    ranks = _rank_processes(job)
    this.met = bool(ranks)
    for pid in this.draw.sample(ranks, min(1, len(ranks))):
        os.kill(pid, signal.SIGSTOP)
    _ended(this, [command], 0)
    if this.met and "made no progress" not in told.read_text():
        this.fail("unclear", f"it is not told that a rank hung\n{told.read_text()}")
    _compare(this, expected)


def _trains(store: Store, job: Job) -> bool:
    attempt = newest(store.attempts_folder(job.run_id), "")
    said = standing(attempt) if attempt else None
    return said is not None and said.loss is not None


def _rank_processes(job: Job) -> list[int]:
    """The workers that torchrun has started for a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
            is_rank = b"\0RANK=" in (path.parent / "environ").read_bytes()
        except OSError:
            continue
        if is_rank and any(job.run_id in word for word in words):
            found.append(int(path.parent.name))
    return found


KINDS: dict[str, Callable[[Try], None]] = {
    "F10 one of two ranks hangs (SIGSTOP)": rank_hangs,
    "F10 one of two ranks is killed as they save": rank_dies_in_save,
    "R1 stopped after a step and gone on": resumed,
}
