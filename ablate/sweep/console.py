"""What people see while a study runs: the plan as a table, then progress. Everything goes to stderr."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ablate.quantities import budget, duration, number, plural, scaled, short, whole

if TYPE_CHECKING:
    from ablate.runs.executors.local import Event
    from ablate.runs.plan import Plan, PlannedVariant


class ConsoleDisplay:
    """The display of a study on a terminal; on something else, a line for every run that ends."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None

    def say(self, message: str) -> None:
        self.console.print(message, style="dim", markup=False)

    def show_plan(self, plan: Plan, n_parallel: int, folder: Path) -> None:
        study, trainer = plan.study, plan.preset.trainer
        self.console.print(study.question, style="bold", markup=False)
        table = Table(box=None, pad_edge=False)
        for heading in ("variant", "runs", "steps", "tokens", "FLOPs", "parameters", "activated", "lr", "time a run"):
            table.add_column(heading, justify="left" if heading == "variant" else "right")
        for variant in plan.variants:
            table.add_row(*self._row(variant))
        self.console.print(table)
        held = f"{budget(plan.budget, study.match)} a run, {plural(len(plan.seeds), 'seed')}"
        batch = f"{trainer.batch_size} x {trainer.sequence_length} tokens a step"
        self.console.print(f"Equal for all: {held}, data order and initial values by seed, {batch}.", markup=False)
        seconds = plan.seconds(n_parallel)
        estimate = "not estimated: too large to be measured here" if seconds is None else f"about {duration(seconds)}"
        self.console.print(
            f"{plural(plan.n_runs, 'run')}, {n_parallel} at a time: {estimate}. Results: {folder}", markup=False
        )

    def _row(self, v: PlannedVariant) -> list[str]:
        return [
            v.name,
            str(len(v.runs)),
            whole(v.n_steps),
            scaled(v.n_tokens),
            scaled(v.flops, "FLOP"),
            scaled(v.cost.trained_parameters),
            scaled(v.cost.main.activated),
            short(v.learning_rate),
            duration(v.run_s),
        ]

    def follow(self, plan: Plan, n_parallel: int) -> Callable[[Event], None]:
        labels, work, n_steps = {}, {}, {}
        for variant in plan.variants:
            for seed, identity in zip(variant.seeds, variant.run_ids, strict=True):
                labels[identity] = f"{variant.name} seed {seed}"
                work[identity], n_steps[identity] = variant.run_s or 1.0, variant.n_steps
        follower = _Follower(self.console, labels, work, n_steps, n_parallel)
        self._progress = follower.progress
        return follower

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()


class _Follower:
    """Bars of the runs that are going on, and of the whole study with the time that is left."""

    def __init__(
        self, console: Console, labels: dict[str, str], work: dict[str, float], n_steps: dict[str, int], n_parallel: int
    ) -> None:
        self.labels, self.work, self.n_steps, self.n_parallel = labels, work, n_steps, n_parallel
        self.console, self.terminal = console, console.is_terminal
        self.done = dict.fromkeys(labels, 0.0)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not self.terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.whole = self.progress.add_task("study", total=sum(work.values()), figures="")
        self.progress.start()

    def __call__(self, event: Event) -> None:
        label = self.labels[event.run_id]
        if event.kind == "started":
            self.tasks[event.run_id] = self.progress.add_task(label, total=self.n_steps[event.run_id], figures="")
        elif event.kind == "progress":
            figures = f"step {whole(event.step)}  loss {number(event.loss, 3)}  {whole(event.tokens_per_s)} tokens/s"
            self.progress.update(self.tasks[event.run_id], completed=event.step, figures=figures)
            self.done[event.run_id] = event.step / self.n_steps[event.run_id]
        else:
            self._ended(event, label)
        total = sum(self.work.values())
        completed = sum(share * self.work[run] for run, share in self.done.items())
        left = duration((total - completed) / self.n_parallel)
        self.progress.update(self.whole, completed=completed, figures=f"about {left} left")

    def _ended(self, event: Event, label: str) -> None:
        if event.run_id in self.tasks:
            self.progress.remove_task(self.tasks.pop(event.run_id))
        if event.kind in ("finished", "diverged", "failed"):
            self.done[event.run_id] = 1.0
        if event.kind == "finished" and self.terminal:
            return
        detail = f": {event.reason}" if event.reason else ""
        self.console.print(f"{label} {event.kind}{detail}", markup=False)
