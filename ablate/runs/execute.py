"""One run from its specification to its record, in this process."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ablate.data.corpus import token_bytes
from ablate.data.windows import Windows, order_hash
from ablate.files import replace_file, to_json
from ablate.model.weights import write_weights
from ablate.parallel.team import Team, assemble
from ablate.runs import environment, wandb_sink
from ablate.runs.adoption import adopt
from ablate.runs.attempts import ended, held
from ablate.runs.job import Job
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.runs.timelines import write_timeline
from ablate.schedules.timeline import middle
from ablate.spec.decoding import encode
from ablate.spec.run import RunSpec
from ablate.teachers.load import load_model
from ablate.training.callbacks import Branches, Clock, Curve, Diverged, Keeper, Progress, Tell, Until
from ablate.training.checkpoint import PROGRAM, checkpoint_path, drop_checkpoints, newest_valid, state_hash, step_of
from ablate.training.evaluation import HeldOut
from ablate.training.module import TrainingModule
from ablate.training.ranks import RanksModule
from ablate.training.timeline import Recorder
from ablate.training.trainer import device, peak_memory_bytes, slot_callbacks, trainer_for

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 30.0
PROBE_STEPS, MAX_PROBE_STEPS = 6, 1000
WENT_ON_FROM = "went-on-from.txt"


def execute(
    job: Job, store: Store, tell: Tell, stop: Callable[[], bool] = lambda: False, *, attempt: Path | None = None
) -> RunRecord:
    """Train, evaluate and commit. Returns the record of the run, which may be another attempt's that was faster.

    `attempt`: the folder of this attempt where the caller has made it already.
    Goes on from the newest valid checkpoint of any attempt, if it was made under the same program. Raises
    Interrupted at the first step boundary where `stop` says so (with a checkpoint), and whatever a broken run raises.
    """
    if known := store.read(job.run_id):
        return known
    attempt = attempt or store.new_attempt(job.run_id)
    team = assemble(job.run) if job.run.trainer.ranks.world > 1 else None
    if team is not None and not team.leads:  # the first rank writes what all have made
        return _attempt(job, store, attempt, tell, stop, team)
    with held(attempt):
        record = _attempt(job, store, attempt, tell, stop, team)
        if not store.commit(record):
            record = store.read(job.run_id) or record
    drop_checkpoints(ended(attempt.parent))
    store.clear(job.run_id)
    return record


def _attempt(
    job: Job, store: Store, attempt: Path, tell: Tell, stop: Callable[[], bool], team: Team | None
) -> RunRecord:
    """The record of this attempt, before it is committed; its weights are beside it."""
    if team is None or team.leads:
        replace_file(attempt / PROGRAM, to_json(environment.program()))
    session = Session(job, attempt, tell, stop, team)
    if team is not None and job.timeline:
        session.record_spans(team, store.timeline_file(job.run_id))
    start = time.monotonic()
    try:
        session.fit(session.adopted())
        record = session.record("finished", time.monotonic() - start)
        if job.keep_weights:
            session.save_weights(store.run_folder(job.run_id) / "weights")
    except Diverged as fault:
        record = session.record("diverged", time.monotonic() - start, fault)
    return record


class Session:
    """One attempt at a run: the Lightning objects, and what they leave."""

    def __init__(self, job: Job, attempt: Path, tell: Tell, stop: Callable[[], bool], team: Team | None = None) -> None:
        """`team`: the ranks that make it together, each with a session of its own."""
        run = job.run
        torch.set_num_threads(job.n_threads)
        self.job, self.attempt, self.team = job, attempt, team
        self.module = self._module(run)
        self.data = run.text.datamodule(run, job.corpus, load_model)
        parts = slot_callbacks(run)
        self.held_out, self.stop = _held_out(job), stop
        self.curve, self.branches = Curve(run, self.held_out, parts), Branches()
        self.clock, self.progress = Clock(run.trainer.tokens_per_step), Progress(run, tell)
        starts = [branch.decay_start for branch in run.branch_runs]
        keeper = Keeper(attempt, CHECKPOINT_EVERY_S, self.curve, stop, at=starts)
        self.callbacks = [self.clock, *parts, self.branches, self.curve, keeper, self.progress]
        self.logger = wandb_sink.logger(job, attempt)
        self.initial: dict[str, str] = {}

    def _module(self, run: RunSpec) -> TrainingModule:
        return TrainingModule(run) if self.team is None else RanksModule(run, self.team)

    def record_spans(self, team: Team, path: Path) -> None:
        """Record what the ranks do in the middle of the trunk, for a timeline at `path`."""
        steps = middle(self.job.run.n_steps, self.job.timeline)
        self.callbacks.append(Recorder(self.job.run_id, team, steps, partial(write_timeline, path)))

    def adopted(self, branch: str = "") -> Path | None:
        """The checkpoint to go on from, the same on all ranks; `branch`: its name, or "" for the trunk."""
        if self.team is None or self.team.leads:
            found = adopt(self.attempt.parent, self.attempt, environment.program(), branch)
            if found is None and self.job.earlier:
                found = newest_valid(Path(self.job.earlier), environment.program(), branch)
                if found:
                    replace_file(self.attempt / WENT_ON_FROM, f"{found}\n")
                elif not branch:
                    log.warning("%s has no checkpoint of this very program; the run begins anew", self.job.earlier)
        return found if self.team is None else self.team.from_first(found if self.team.leads else None)

    def fit(self, resume: Path | None) -> None:
        """Train the trunk, from a checkpoint if there is one, and each branch where it leaves the trunk."""
        self.module.configure_model()
        self.initial = self.module.hashes()
        at = step_of(resume) if resume else 0
        for branch in self.job.run.branch_runs:
            start = branch.decay_start
            if start >= at:  # else its figures are in the checkpoint
                if start > at:
                    self._train(start, resume)
                    resume = checkpoint_path(self.attempt, start)
                assert resume is not None
                self.branches.points[branch.n_steps] = self._branch(branch, resume)
                at = start
            self.progress.before += branch.n_steps - start
        self._train(self.job.run.n_steps, resume)

    def _train(self, until: int, resume: Path | None) -> None:
        trainer = trainer_for(
            self.job.run, self.callbacks, folder=self.attempt, logger=self.logger, until=until, team=self.team
        )
        trainer.fit(self.module, datamodule=self.data, ckpt_path=str(resume) if resume else None)

    def _branch(self, branch: RunSpec, start: Path) -> dict[str, float]:
        """The figures of the model that a branch ends as, from its own newest checkpoint or from `start`."""
        name = f"branch-{branch.n_steps}-"
        resume = self.adopted(name) or start
        module, parts = self._module(branch), slot_callbacks(branch)
        curve = Curve(branch, self.held_out, parts)
        keeper = Keeper(self.attempt, CHECKPOINT_EVERY_S, curve, self.stop, branch=name)
        trainer = trainer_for(branch, [*parts, curve, keeper, self.progress], folder=self.attempt, team=self.team)
        data = branch.text.datamodule(branch, self.job.corpus, load_model)
        trainer.fit(module, datamodule=data, ckpt_path=str(resume))
        return curve.points[-1]

    def save_weights(self, folder: Path) -> None:
        """The final weights, for export and for teachers."""
        state = self.module.whole_state()
        if self.team is None or self.team.leads:
            write_weights(folder, state, self.job.run)

    def record(self, status: Any, seconds: float, fault: Diverged | None = None) -> RunRecord:
        job, run = self.job, self.job.run
        metrics = dict(self.curve.points[-1]) if self.curve.points else {}
        if fault:
            metrics = {"diverged_step": fault.step}
            if fault.last_finite_loss == fault.last_finite_loss:
                metrics["last_finite_loss"] = fault.last_finite_loss
        else:
            metrics |= self.speed() | {"training_s": self.clock.training_s}
        metrics["seconds"] = seconds
        windows = Windows(job.corpus.train, run.trainer.sequence_length)
        return RunRecord(
            run_id=job.run_id,
            status=status,
            spec=encode(run),
            variant=dict(job.variant),
            reason=str(fault or ""),
            metrics=metrics,
            curve=tuple(self.curve.points),
            branches=tuple(self.branches.points[n] for n in sorted(self.branches.points)),
            judged={name: text.judged() for name, text in self.held_out.items()},
            expert_loads={} if fault else self.module.expert_loads,
            order_hash=order_hash(
                corpus_hash=job.corpus.hash,
                n_windows=len(windows),
                seed=run.seed,
                batch_size=run.trainer.batch_size,
                sequence_length=run.trainer.sequence_length,
            ),
            initial_parameters=self.initial,
            final_parameters_hash=state_hash(iter(self.module.whole_state().items())),
            backends=_backends(run),
            evidence=_evidence(run),
            environment=dict(environment.describe()) | {"n_threads": torch.get_num_threads()},
            attempts=self._attempts(),
        )

    def _attempts(self) -> tuple[dict[str, str], ...]:
        """All that there were; of one that went on from another study's checkpoint, from which."""
        found = []
        for folder in sorted(self.attempt.parent.iterdir()):
            note = folder / WENT_ON_FROM
            found.append({"name": folder.name} | ({"went_on_from": note.read_text().strip()} if note.exists() else {}))
        return tuple(found)

    def speed(self) -> dict[str, float]:
        """Of this attempt's optimizer steps; none if it resumed at the very end."""
        if not self.clock.step_s:
            return {}
        step_s = self.clock.median_step_s()
        return {
            "step_s": step_s,
            "tokens_per_s": self.job.run.trainer.tokens_per_step / step_s,
            "peak_memory_bytes": self._peak_memory_bytes(),
            "evaluation_s": self.curve.evaluation_s,
        }

    def _peak_memory_bytes(self) -> float:
        """On ranks the largest of them."""
        mine = float(peak_memory_bytes())
        return mine if self.team is None else self.team.largest(mine)


def probe(job: Job, folder: Path, seconds: float) -> float:
    """Median seconds of an optimizer step of a run on this machine, from a few steps or as many as take `seconds`.

    It leaves nothing; Lightning's own files go to `folder`.
    """
    run = replace(job.run, n_steps=MAX_PROBE_STEPS)
    torch.set_num_threads(job.n_threads)
    module, clock = TrainingModule(run), Clock(run.trainer.tokens_per_step)
    trainer = trainer_for(run, [clock, Until(clock, PROBE_STEPS, seconds), *slot_callbacks(run)], folder=folder)
    trainer.fit(module, datamodule=run.text.datamodule(run, job.corpus, load_model))
    return statistics.median(clock.step_s[1:])


def _held_out(job: Job) -> dict[str, HeldOut]:
    trainer, lengths = job.run.trainer, token_bytes(job.corpus)
    files = {"held_out": job.corpus.held_out, **job.held_out_texts}
    return {
        name: HeldOut.of(Windows(file, trainer.sequence_length), trainer.n_held_out_windows, lengths)
        for name, file in files.items()
    }


def _backends(run: RunSpec) -> dict[str, str]:
    return run.model.backends | {"device": device()}


def _evidence(run: RunSpec) -> dict[str, str]:
    """How far each kind of figure is a measurement: arithmetic may be emulated, and then its speed says nothing."""
    speed = run.model.linear.speed_evidence()
    return {"loss": "measured", "speed": speed, "memory": speed}
