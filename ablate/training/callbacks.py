"""What watches a training run: the curve, divergence, the clock, checkpoints, signals and progress."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback

from ablate.spec.run import RunSpec
from ablate.training.checkpoint import FolderCheckpoint, checkpoint_path, random_state, restore_random_state
from ablate.training.evaluation import HeldOut, batch_windows
from ablate.training.schedule import learning_rate_factor

CHECK_EVERY = 10  # steps between looks at the losses, which wait for the device
TELL_EVERY_S = 0.5
WRITING_SHARE = 0.02  # of a run's time, that writing checkpoints may take
ASSUMED_BYTES_PER_S = 0.5e9  # of a disk, before the first checkpoint was written
MOST_MARKS = 1000  # events of a GPU that are held at a time
WARM_UP_STEPS = 5  # not part of the measured speed: the first steps allocate and compile

Tell = Callable[[int, float | None, float], None]  # step, loss of the last one (None: none has ended), tokens per s


class Diverged(Exception):
    """The loss is not a finite number. It is a result, not a fault."""

    def __init__(self, step: int, last_finite_loss: float) -> None:
        super().__init__(f"the loss was not finite at step {step}")
        self.step, self.last_finite_loss = step, last_finite_loss


class Interrupted(Exception):
    """Stopped at a step boundary by a signal, with a checkpoint."""


@runtime_checkable
class Measuring(Protocol):
    """A callback that measures something while it runs."""

    def metrics(self) -> dict[str, float]:
        """Figures by name, as they stand."""


class Curve(Callback):
    """Points of the curve at evenly spread steps, the last at the end; raises Diverged.

    A point has step, n_tokens, learning_rate, train_loss (mean since the point before), the held-out metrics (before
    the end on fewer windows), and what measuring callbacks add.
    """

    state_key = "curve"

    def __init__(self, run: RunSpec, held_out: Mapping[str, HeldOut], others: Iterable[Callback] = ()) -> None:
        """`others`: the run's other callbacks, of which those that measure something add to every point."""
        self.run, self.held_out = run, held_out
        self.held_out_before = {name: text.fewer(run.trainer.n_curve_windows) for name, text in held_out.items()}
        self.measuring = [callback for callback in others if isinstance(callback, Measuring)]
        n = min(run.trainer.n_evaluations, run.n_steps)
        self.steps = {round((i + 1) * run.n_steps / n) for i in range(n)}
        self.points: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.last_finite_loss = math.nan
        self.evaluation_s = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if (batch_idx + 1) % pl_module.n_micro_batches:
            return
        if step % CHECK_EVERY == 0 or step in self.steps:
            self.take_losses(pl_module, step)
        if step in self.steps:
            self.add_point(trainer, pl_module, step)

    def take_losses(self, pl_module: Any, step: int) -> None:
        """Move the losses of the steps since the last call from the device; raise Diverged at the first bad one."""
        if not pl_module.step_losses:
            return
        losses = torch.stack(pl_module.step_losses).tolist()
        pl_module.step_losses = []
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise Diverged(step - len(losses) + i + 1, self.last_finite_loss)
            self.last_finite_loss = loss
        self.losses += losses

    def add_point(self, trainer: Any, pl_module: Any, step: int) -> None:
        start, settings = time.perf_counter(), self.run.trainer
        point = {
            "step": step,
            "n_tokens": step * self.run.trainer.tokens_per_step,
            # The scheduler has stepped already: this is the rate that the step was made with.
            "learning_rate": settings.learning_rate * learning_rate_factor(self.run, step - 1),
            "train_loss": statistics.fmean(self.losses) if self.losses else math.nan,
        }
        self.losses = []
        held_out = self.held_out if step == self.run.n_steps else self.held_out_before
        with trainer.precision_plugin.forward_context():
            metrics = pl_module.evaluate(held_out, batch_windows(self.run))
        if not math.isfinite(metrics["nats_per_token"]):
            raise Diverged(step, self.last_finite_loss)
        for callback in self.measuring:
            metrics |= callback.metrics()
        self.points.append(point | metrics)
        self.evaluation_s += time.perf_counter() - start
        if trainer.logger is not None:
            trainer.logger.log_metrics(self.points[-1], step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points, "losses": self.losses, "last_finite_loss": self.last_finite_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points, self.losses = state_dict["points"], state_dict["losses"]
        self.last_finite_loss = state_dict["last_finite_loss"]


class Clock(Callback):
    """Seconds of optimizer steps, evaluation and checkpoints left out.

    `step_s` has only this attempt's, since speed is not resumed; `training_s` is the sum over all steps of the run. On
    a GPU they are its own between two marks in its work, for which nothing waits before somebody asks for them.
    """

    state_key = "clock"

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self._seconds: list[float] = []
        self._marks: list[tuple[Any, Any]] = []  # of steps whose seconds nobody has asked for
        self._start: Any = None
        self._earlier_s = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % pl_module.n_micro_batches == 0:
            self._start = _mark()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % pl_module.n_micro_batches == 0:
            self._marks.append((self._start, _mark()))
            if len(self._marks) >= MOST_MARKS:
                self._read()

    @property
    def step_s(self) -> list[float]:
        self._read()
        return self._seconds

    def _read(self) -> None:
        self._seconds += [_between(start, end) for start, end in self._marks]
        self._marks = []

    def median_step_s(self) -> float:
        measured = self.step_s[WARM_UP_STEPS:] or self.step_s
        return statistics.median(measured)

    @property
    def training_s(self) -> float:
        return self._earlier_s + math.fsum(self.step_s)

    def state_dict(self) -> dict[str, Any]:
        return {"training_s": self.training_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A trunk that goes on after a branch loads what it saved itself, and its steps are in `step_s` already.
        self._earlier_s = state_dict["training_s"] - math.fsum(self.step_s)


class Until(Callback):
    """Ends training after at least `n_steps` steps that took at least `seconds`."""

    def __init__(self, clock: Clock, n_steps: int, seconds: float) -> None:
        self.clock, self.n_steps, self.seconds = clock, n_steps, seconds

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if len(self.clock.step_s) >= self.n_steps and self.clock.training_s >= self.seconds:
            trainer.should_stop = True


def _mark() -> Any:
    """This moment in the work of the GPU, or of the processor where there is none."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    """Seconds from one mark to another; waits until the second is reached."""
    if isinstance(end, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1e3


class Keeper(Callback):
    """Checkpoints at step boundaries: every `every_s` seconds, and at the first boundary where `stop` is true.

    Less often where writing takes long: never so often that it would be more than WRITING_SHARE of a run's time, going
    by the last one, or before the first by the bytes that there are to write. Training goes on meanwhile, and that one
    could not be written stops it at the next boundary.
    Checkpoints of one attempt go to its own folder. Random states are saved here, since Lightning saves none.
    """

    state_key = "random"

    def __init__(
        self,
        attempt: Path,
        every_s: float,
        curve: Curve,
        stop: Callable[[], bool],
        *,
        at: Iterable[int] = (),
        branch: str = "",
    ) -> None:
        """`curve`: takes the losses so far before each checkpoint, which holds them. `at`: further steps to keep, at
        which branches leave. `branch`: the name of the branch that this one keeps.
        """
        self.attempt, self.every_s, self.curve, self.stop = attempt, every_s, curve, stop
        self.at, self.branch = frozenset(at), branch
        self._last, self._write_s = time.monotonic(), 0.0
        self._restore: dict[str, Any] | None = None

    @property
    def interval_s(self) -> float:
        """Seconds from one checkpoint to the next."""
        return max(self.every_s, self._write_s / WRITING_SHARE)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._write_s = self._write_s or _state_bytes(pl_module) / ASSUMED_BYTES_PER_S
        if self._restore is not None:
            restore_random_state(self._restore)
            self._restore = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % pl_module.n_micro_batches or trainer.global_step == pl_module.run.n_steps:
            return
        files: FolderCheckpoint = trainer.strategy.checkpoint_io
        files.check()
        self._write_s = files.write_s or self._write_s
        agreed = trainer.strategy.reduce_boolean_decision  # what one rank wants all do, at one step
        stop = agreed(self.stop(), all=False)
        due = time.monotonic() - self._last >= self.interval_s and not files.busy
        if agreed(trainer.global_step in self.at or due, all=False) or stop:
            self.curve.take_losses(pl_module, trainer.global_step)
            trainer.save_checkpoint(checkpoint_path(self.attempt, trainer.global_step, self.branch))
            self._last = time.monotonic()
        if stop:
            raise Interrupted

    def state_dict(self) -> dict[str, Any]:
        return random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restore = state_dict


def _state_bytes(pl_module: Any) -> int:
    """What a checkpoint holds: every parameter and two moments of it."""
    return 3 * sum(p.numel() * p.element_size() for p in pl_module.parameters())


class Branches(Callback):
    """The figures of the finished models that a run's branches ended as, kept with the checkpoints of its trunk."""

    state_key = "branches"

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}  # optimizer steps of the branch's model -> its point

    def state_dict(self) -> dict[str, Any]:
        return {"points": list(self.points.items())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A branch that has just ended is younger than the checkpoint from which the trunk goes on.
        self.points = dict(state_dict["points"]) | self.points


class Progress(Callback):
    """Calls `tell(step, loss, tokens_per_s)` about every half second, as long as batches go through the model.

    It is called from within training and evaluation, by no thread beside them: silence means that nothing goes on.
    """

    def __init__(self, run: RunSpec, tell: Tell) -> None:
        """The steps told are those of trunk and branches together; `before`: of the branches that have ended."""
        self.run, self.tell, self.before = run, tell, 0
        self._told = self._measured = time.monotonic()
        self._figures: tuple[int, float | None, float] = (0, None, 0.0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._measured, self._figures = time.monotonic(), (trainer.global_step, None, 0.0)
        if pl_module.model.embedding is not None:  # else another rank tells
            pl_module.model.embedding.register_forward_hook(lambda *_: self._say())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now, step = time.monotonic(), trainer.global_step
        if now - self._measured < TELL_EVERY_S or not pl_module.step_losses:
            return
        speed = (step - self._figures[0]) * self.run.trainer.tokens_per_step / (now - self._measured)
        self._measured, self._figures = now, (step, float(pl_module.step_losses[-1]), speed)
        self._say()

    def _say(self) -> None:
        if (now := time.monotonic()) - self._told >= TELL_EVERY_S:
            self._told = now
            step, loss, tokens_per_s = self._figures
            self.tell(step + self.before, loss, tokens_per_s)
