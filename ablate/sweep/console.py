"""What people see while a study runs: the plan as a table, then progress. Everything goes to stderr."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich import progress as bars
from rich.console import Console
from rich.table import Table

from ablate.quantities import budget, duration, number, percent, plural, scaled, short, whole
from ablate.runs.events import Ended, Event, Failed, Interrupted, Killed, Progress, Started, Stopping
from ablate.runs.factors import PRESET
from ablate.runs.plan import Plan, PlannedVariant

HEADINGS = ("variant", "runs", "steps", "tokens", "FLOPs", "parameters", "activated", "lr", "time a run")
NARROW, DROPPED = 90, ("parameters", "activated")  # columns of a terminal, and of the table that it is too narrow for


class ConsoleDisplay:
    """The display of a study on a terminal; on something else, a line for every run that ends."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress: bars.Progress | None = None

    def say(self, message: str) -> None:
        self.console.print(message, style="dim", markup=False)

    def show_plan(self, plan: Plan, n_parallel: int, folder: Path) -> None:
        self.console.print(plan.question, style="bold", markup=False)
        table = Table(box=None, pad_edge=False)
        # A narrow terminal has fewer columns, and no broken words.
        shown = [h for h in HEADINGS if self.console.width >= NARROW or h not in DROPPED]
        for heading in shown:
            table.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=heading != "variant")
        for variant in plan.variants:
            row = dict(zip(HEADINGS, self._row(variant), strict=True))
            table.add_row(*(row[heading] for heading in shown))
        self.console.print(table)
        sizes = any(factor.name == PRESET for factor in plan.factors)
        amount = f"{plan.match} at each size" if sizes else f"{budget(plan.budget, plan.match)} a run"
        held = f"{amount}, {plural(len(plan.seeds), 'seed')}"
        batch = f"{whole(plan.tokens_per_step)} tokens a step"
        self.console.print(f"Equal for all: {held}, data order and initial values by seed, {batch}.", markup=False)
        reference = plan.variants[0]
        if reference.n_branch_steps:
            more = percent(reference.n_branch_steps / reference.n_steps, 2)
            self.console.print(
                f"Each run is decayed to finished models before its end too, in branches of {more} more steps.",
                markup=False,
            )
        seconds = plan.seconds(n_parallel)
        estimate = "not estimated: too large to be measured here" if seconds is None else f"about {duration(seconds)}"
        self.console.print(
            f"{plural(plan.n_runs, 'run')}, {n_parallel} at a time: {estimate}. Results: {folder}", markup=False
        )

    def _row(self, v: PlannedVariant) -> list[str]:
        return [
            v.name,
            str(len(v.run_ids)),
            whole(v.n_steps),
            scaled(v.n_tokens),
            scaled(v.flops, "FLOP"),
            scaled(v.cost["trained_parameters"]),
            scaled(v.cost["activated_parameters"]),
            short(v.learning_rate),
            duration(v.run_s),
        ]

    def follow(self, plan: Plan, n_parallel: int) -> Callable[[Event], None]:
        labels, work, n_steps = {}, {}, {}
        for variant in plan.variants:
            for seed, identity in zip(variant.seeds, variant.run_ids, strict=True):
                labels[identity] = f"{variant.name} seed {seed}"
                work[identity], n_steps[identity] = variant.run_s or 1.0, variant.n_all_steps
        follower = _Follower(self.console, labels, work, n_steps, n_parallel)
        self._progress = follower.bars
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
        self.bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.TextColumn("{task.fields[figures]}"),
            bars.TimeElapsedColumn(),
            console=console,
            disable=not self.terminal,
        )
        self.tasks: dict[str, bars.TaskID] = {}
        self.whole = self.bars.add_task("study", total=sum(work.values()), figures="")
        self.bars.start()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stopping):
            self.console.print(f"stopping {plural(event.n_runs, 'run')} with a checkpoint; Ctrl-C now ends at once")
            return
        run, label = event.run_id, self.labels[event.run_id]
        if isinstance(event, Started):
            self.tasks[run] = self.bars.add_task(label, total=self.n_steps[run], figures="")
        elif isinstance(event, Progress):
            figures = f"step {whole(event.step)}"
            if event.loss is not None:
                figures += f"  loss {number(event.loss, 3)}  {whole(event.tokens_per_s)} tokens/s"
            self.bars.update(self.tasks[run], completed=event.step, figures=figures)
            self.done[run] = event.step / self.n_steps[run]
        else:
            self._ended(event, label)
        total = sum(self.work.values())
        completed = sum(share * self.work[run] for run, share in self.done.items())
        left = duration((total - completed) / self.n_parallel)
        self.bars.update(self.whole, completed=completed, figures=f"about {left} left")

    def _ended(self, event: Ended | Failed | Killed | Interrupted, label: str) -> None:
        if isinstance(event, Ended | Failed):
            self.done[event.run_id] = 1.0
        if event.run_id not in self.tasks:
            return  # it had ended before the study was started again
        self.bars.remove_task(self.tasks.pop(event.run_id))
        said: str
        match event:
            case Ended(status=status):
                said = status
            case Failed(reason=reason) | Killed(reason=reason):
                said = f"{type(event).__name__.lower()}: {reason}"
            case Interrupted():
                said = "interrupted"
        if said == "finished" and self.terminal:
            return
        self.console.print(f"{label} {said}", markup=False)
