"""Faults inside a run: memory that is refused, and losses, gradients or metrics that are no numbers."""

from __future__ import annotations

import json
import math
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fault_ground import Try

import ablate.report as reports
from ablate.runs.conduct import N_RETRIES
from ablate.runs.executors.worker import OUT_OF_MEMORY
from ablate.runs.store import Store
from ablate.spec.decoding import run_id
from ablate.training.module import TrainingModule

BALLAST_BYTES = 2**28  # what a run without memory asks for, as a larger batch would


def memory_refused(this: Try) -> None:
    """The system refuses a run's process memory (RLIMIT_AS) at a write: in one attempt, or in every one of the run.

    What is refused is a tensor in the next training step, as of a batch that does not fit. Refused in one attempt, the
    run is tried again and ends; in all, it has failed for want of memory after three, and the others are as ever.
    """
    victim, always = this.draw.choice(sorted(this.ground.records)), this.draw.random() < 0.5
    marks = this.place / "refused"
    marks.mkdir()
    at = this.draw.randint(1, 6)

    def prepare() -> None:
        command, real = os.getpid(), TrainingModule.training_step

        def step(module: Any, batch: Any, batch_idx: int) -> Any:
            if module.global_step + 1 >= at and run_id(module.run) == victim:
                n_before = len(list(marks.iterdir()))
                if os.getpid() != command and (always or n_before == 0):
                    (marks / f"{n_before}-{os.getpid()}").touch()
                    _without_memory()
            return real(module, batch, batch_idx)

        TrainingModule.training_step = step  # type: ignore[method-assign]

    done = this.end(this.begin(prepare=prepare))
    this.met = any(marks.iterdir())
    n = len(list(Store(this.out).attempts_folder(victim).glob("*/program.json")))  # others hold a note alone
    if not always:
        if done.code != 0 or n != 2:
            this.fail("unfinished", f"memory was refused once: {n} attempts, exit code {done.code}\n{done.text}")
        this.check()
        return
    failures = {failure.run_id: failure.reason for failure in Store(this.out).failures()}
    if done.code != 1 or set(failures) != {victim} or OUT_OF_MEMORY not in failures.get(victim, ""):
        this.fail("unclear", f"exit code {done.code}, failures {failures}\n{done.text}")
    if n != N_RETRIES + 1:
        this.fail("unfinished", f"a run without memory was tried {n} times, not {N_RETRIES + 1}")
    this.check(without={victim})
    before = this.before()
    this.finish()
    this.compare(before)


def _without_memory() -> None:
    """No more than there is now, for this process; then ask for more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + BALLAST_BYTES // 2, hard))
    torch.empty(BALLAST_BYTES, dtype=torch.uint8).fill_(1)


def not_a_number(this: Try) -> None:
    """NaN or infinity as the loss, a gradient or a metric of one run at a random step: the run has diverged.

    That is a result: it is told with its step, made once, kept by the next command, and in no mean.
    """
    victim, what = this.draw.choice(sorted(this.ground.records)), this.draw.choice(["loss", "gradient", "metric"])
    value, step = this.draw.choice([math.nan, math.inf, -math.inf]), this.draw.randint(1, 8)
    done = this.end(this.begin(prepare=lambda: _plant(victim, what, value, step)))
    if done.code != 0:
        this.fail("unclear", f"exit code {done.code} after {value} as {what} at step {step}\n{done.text}")
    record = Store(this.out).read(victim)
    if record is None or record.status != "diverged":
        this.fail("wrong", f"{value} as {what} at step {step} gave {record and record.status}")
        return
    at = record.metrics["diverged_step"]
    late = 2 if what == "metric" else 1  # metrics are evaluated at every second step
    if not step <= at <= step + late:
        this.fail("wrong", f"{value} as {what} at step {step} is told as step {at}")
    if len(list(Store(this.out).attempts_folder(victim).iterdir())) != 1:
        this.fail("wrong", "a diverged run was made more than once")
    this.check(without={victim})
    before = this.before()
    again = this.end(this.begin("again.log"))
    if again.code != 0 or this.before() != before:
        this.fail("wrong", f"the same command did not leave the diverged run as it was\n{again.text}")
    _in_no_mean(this, victim)


def _in_no_mean(this: Try, victim: str) -> None:
    document = reports.to_json(reports.build(this.out))
    if [run["run_id"] for run in document["lost_runs"]] != [victim]:
        this.fail("wrong", f"the report's lost runs are {document['lost_runs']}")
    seed = next(run["seed"] for run in document["lost_runs"])
    for effect in document["effects"]:
        if str(seed) in effect["differences"]:
            this.fail("wrong", f"the diverged run is in the difference of seed {seed}")
    text = json.dumps(document, allow_nan=False)
    if "NaN" in text:
        this.fail("wrong", "the report holds NaN")


def _plant(victim: str, what: str, value: float, step: int) -> None:
    """Let a run meet `value` at a step; its branches are runs of other names."""
    train, judge = TrainingModule.training_step, TrainingModule.evaluate

    def training_step(module: Any, batch: Any, batch_idx: int) -> Any:
        hit = module.global_step + 1 == step and run_id(module.run) == victim
        if hit and what == "gradient":
            weight = max(module.model.parameters(), key=lambda p: p.numel())
            weight.register_hook(lambda gradient: torch.full_like(gradient, value))
        found = train(module, batch, batch_idx)
        if hit and what == "loss":
            module.step_losses[-1] = module.step_losses[-1] * value
            return found * value
        return found

    def evaluate(module: Any, held_out: Any, batch_size: int) -> Any:
        found = judge(module, held_out, batch_size)
        if what == "metric" and module.global_step >= step and run_id(module.run) == victim:
            return found | {"nats_per_token": value}
        return found

    TrainingModule.training_step = training_step  # type: ignore[method-assign]
    TrainingModule.evaluate = evaluate  # type: ignore[method-assign]


KINDS: dict[str, Callable[[Try], None]] = {
    "F6 memory refused to a run (RLIMIT_AS), once or always": memory_refused,
    "F9 NaN or infinity as a loss, gradient or metric": not_a_number,
}
