"""What people see of a study: the plan as a table, progress, where it stands. Everything goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich import progress as bars
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ablate.quantities import duration, number, plural, whole
from ablate.runs.events import Ended, Event, Failed, Interrupted, Killed, Leaving, Progress, Started, Stopping
from ablate.runs.plan import Plan
from ablate.sweep import plan_table
from ablate.sweep.estimate import Estimate
from ablate.sweep.status import STATES, OpenRun, StudyStatus

ENOUGH = 0.02  # of a study: its own pace then says how long the rest takes
SAID_EVERY_S = 60.0  # where there is no terminal
SHOWN_RUNS = 8  # of a variant in a table


class ConsoleDisplay:
    """The display of a study: bars on a terminal; on something else a line a minute, and one for what happens."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._follower: _Follower | None = None

    def say(self, message: str) -> None:
        self.console.print(message, style="dim", markup=False)

    def show_plan(self, plan: Plan, n_parallel: int, folder: Path, time: Estimate) -> None:
        plan_table.show(self.console, plan, n_parallel, folder, time)

    def follow(self, plan: Plan, n_parallel: int) -> Callable[[Event], None]:
        """What shows the events of a plan's runs, until `end`; runs of a plan that comes meanwhile beside them."""
        if self._follower is None:
            self._follower = _Follower(self.console)
        for variant in plan.variants:
            for seed, identity in zip(variant.seeds, variant.run_ids, strict=True):
                self._follower.add(
                    identity, _Run(variant.name, seed, variant.n_all_steps, variant.run_s or variant.n_all_steps)
                )
        self._follower.expect(plan.seconds(n_parallel))
        return self._follower

    def end(self) -> None:
        if self._follower is not None:
            self._follower.bars.stop()
            self._follower = None


@dataclass(slots=True)
class _Run:
    variant: str
    seed: int
    n_steps: int
    work: float  # seconds, or steps where the speed is not known
    share: float = 0.0  # that is done
    progress: Progress | None = None  # None: it is not going on, or has said nothing yet

    def __str__(self) -> str:
        return f"{self.variant} seed {self.seed}"


class _Follower:
    """A line for each variant that has runs going on, and one of the whole study with the time that is left."""

    def __init__(self, console: Console) -> None:
        self.runs: dict[str, _Run] = {}
        self.estimate_s: float | None = 0.0
        self.total, self.done, self.done_before = 0.0, 0.0, 0.0
        self.console, self.terminal = console, console.is_terminal
        self.active: dict[str, list[str]] = {}  # variant -> its runs that go on
        self.ended = 0
        self.begun = self.said = time.monotonic()
        self.bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.TextColumn("{task.fields[figures]}"),
            bars.TimeElapsedColumn(),
            console=console,
            disable=not self.terminal,
        )
        self.tasks: dict[str, bars.TaskID] = {}
        self.whole = self.bars.add_task("study", total=0.0, figures="")
        self.bars.start()

    def add(self, identity: str, run: _Run) -> None:
        if identity not in self.runs:
            self.runs[identity] = run
            self.total += run.work
            self.bars.update(self.whole, total=self.total)

    def expect(self, seconds: float | None) -> None:
        """So much longer it will take, by the estimate of a plan."""
        self.estimate_s = None if seconds is None or self.estimate_s is None else self.estimate_s + seconds

    def left_s(self) -> float | None:
        """Seconds until all is done at the pace so far; at first by the plan's estimate, None where there is none."""
        here, passed = self.done - self.done_before, time.monotonic() - self.begun
        if here > 0 and (here >= ENOUGH * self.total or passed > SAID_EVERY_S):
            return (self.total - self.done) * passed / here
        return None if self.estimate_s is None else self.estimate_s * (1 - self.done / self.total)

    def _reach(self, run: _Run, share: float) -> None:
        self.done += run.work * (share - run.share)
        run.share = share

    def __call__(self, event: Event) -> None:
        match event:
            case Stopping(n_runs):
                self.console.print(f"stopping {plural(n_runs, 'run')} with a checkpoint; Ctrl-C now ends at once")
                return
            case Leaving(n_runs):
                what = f"{plural(n_runs, 'run')} stay with the cluster"
                self.console.print(f"{what}; `dsv3-ablate sweep watch` follows, `sweep cancel` ends them")
                return
        run = self.runs[event.run_id]
        going_on = self.active.setdefault(run.variant, [])
        if isinstance(event, Started):
            going_on.append(event.run_id)
        elif isinstance(event, Progress):
            run.progress = event
            self._reach(run, min(1.0, event.step / run.n_steps))
        else:
            self._end(event, run, going_on)
        self._show_variant(run.variant)
        self._show_whole()

    def _end(self, event: Ended | Failed | Killed | Interrupted, run: _Run, going_on: list[str]) -> None:
        run.progress = None
        if isinstance(event, Ended | Failed):
            self.ended += 1
            self._reach(run, 1.0)
        if event.run_id not in going_on:
            if isinstance(event, Ended):  # before the study was started again
                self.done_before += run.work
                return
        else:
            going_on.remove(event.run_id)
        said: str
        match event:
            case Ended(status=status):
                said = status
            case Failed(reason=reason) | Killed(reason=reason):
                said = f"{type(event).__name__.lower()}: {reason}"
            case Interrupted():
                said = "interrupted"
        if said != "finished":
            self.console.print(f"{run} {said}", markup=False)

    def _show_variant(self, variant: str) -> None:
        """One line: the runs of a variant that go on, the figures those of the one that is furthest."""
        runs = [self.runs[identity] for identity in self.active.get(variant, [])]
        if not self.terminal:
            return
        if not runs:
            if (task := self.tasks.pop(variant, None)) is not None:
                self.bars.remove_task(task)
            return
        if variant not in self.tasks:
            self.tasks[variant] = self.bars.add_task(variant, total=1.0, figures="")
        share = sum(run.share for run in runs) / len(runs)
        self.bars.update(self.tasks[variant], completed=share, figures=_figures(runs))

    def _show_whole(self) -> None:
        left = self.left_s()
        rest = f"about {duration(left)} left" if left is not None else "time left not known yet"
        counted = f"{self.ended} of {plural(len(self.runs), 'run')}"
        if self.terminal:
            self.bars.update(self.whole, completed=self.done, figures=f"{counted}, {rest}")
        elif (now := time.monotonic()) - self.said >= SAID_EVERY_S:
            self.said = now
            going_on = [self.runs[i] for identities in self.active.values() for i in identities]
            self.console.print("; ".join([f"{counted}, {rest}", *(f"{r.variant} {_figures([r])}" for r in going_on)]))


def _figures(runs: list[_Run]) -> str:
    """Seeds, and step, loss and speed of the run that is furthest."""
    seeds = f"seed {runs[0].seed}" if len(runs) == 1 else f"{len(runs)} seeds"
    furthest = max(runs, key=lambda run: run.share).progress
    if furthest is None:
        return f"{seeds}  starting"
    figures = f"{seeds}  step {whole(furthest.step)}"
    if furthest.loss is not None:
        figures += f"  loss {number(furthest.loss, 3)}  {whole(sum(_speed(run) for run in runs))} tokens/s"
    return figures


def _speed(run: _Run) -> float:
    return run.progress.tokens_per_s if run.progress else 0.0


class StatusDisplay:
    """Where a study stands, as a table of its variants and a line for every run that goes on or has failed."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)

    def show(self, status: StudyStatus) -> None:
        self.console.print(_table(status))
        self.console.print(_sentence(status), markup=False)

    def follow(self, look: Callable[[], StudyStatus], every_s: float) -> None:
        """Show it again and again, in place on a terminal and else as a line, until no run waits or goes on."""
        status = look()
        if not self.console.is_terminal:
            self.show(status)
            while status.count("running", "waiting"):
                time.sleep(every_s)
                status = look()
                self.console.print(_sentence(status), markup=False)
            return
        with Live(_together(status), console=self.console, transient=False) as live:
            while status.count("running", "waiting"):
                time.sleep(every_s)
                status = look()
                live.update(_together(status))


def _together(status: StudyStatus) -> Group:
    return Group(_table(status), Text(_sentence(status)))


def _sentence(status: StudyStatus) -> str:
    done = status.count("finished", "diverged")
    parts = [f"{done} of {plural(status.n_runs, 'run')} done"]
    parts += [f"{n} {state}" for state in STATES[1:] if (n := status.count(state))]
    if status.count("running", "waiting"):
        parts.append("time left not known yet" if status.left_s is None else f"about {duration(status.left_s)} left")
    return ", ".join(parts)


def _table(status: StudyStatus) -> Table:
    table = Table(title=Text(status.question), title_justify="left", box=None, pad_edge=False)
    shown = [state for state in STATES if status.count(state)]
    for heading in ("variant", *shown, ""):
        table.add_column(heading, justify="left" if heading in ("variant", "") else "right", no_wrap=heading != "")
    for variant, counts in status.variants.items():
        runs = [run for run in status.open if run.variant == variant and run.state in ("running", "failed")]
        lines = [_line(run) for run in runs[:SHOWN_RUNS]]
        lines += [f"and {len(runs) - SHOWN_RUNS} more"] if len(runs) > SHOWN_RUNS else []
        row = [Text(variant), *(Text(str(counts.get(state, ""))) for state in shown), Text("\n".join(lines))]
        table.add_row(*row)
    return table


def _line(run: OpenRun) -> str:
    if run.state == "failed":
        return f"seed {run.seed} failed: {run.detail}"
    figures = f"seed {run.seed}  step {whole(run.step)} of {whole(run.n_steps)}"
    if run.loss is not None:
        figures += f"  loss {number(run.loss, 3)}  {whole(run.tokens_per_s)} tokens/s"
    return f"{figures}  {run.detail}".rstrip()
