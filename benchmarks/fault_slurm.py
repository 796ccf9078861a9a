"""Faults of a study that runs through a real Slurm on loopback: of its jobs, its nodes, its submitting command.

The same study as everywhere, longer, with a sweep through `--executor slurm` in place of processes of its own; what it
leaves is compared with what it leaves on this machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_ground import Ground, Try
from forked import Command
from loopback import Loopback, environments

from ablate.runs import conduct
from ablate.runs.attempts import newest
from ablate.runs.executors.submission import Task, queued
from ablate.runs.progress import standing
from ablate.runs.store import Store

CLUSTER = 'partition = "main"\ntime = "60"\ncpus_per_task = 1\npoll_s = 0.5\nsignal_s = 30\n'
BUDGET = ("--match", "tokens", "--budget", "32768")  # long enough that a fault meets training
PATIENCE_S = 400.0
CPUS = 2  # of each virtual node


@dataclass(slots=True)
class SlurmGround(Ground):
    """The undisturbed study is made on this machine; what is disturbed goes through Slurm."""

    slurm: Any = field(default=None)
    budget: tuple[str, ...] = BUDGET
    patience_s: float = PATIENCE_S

    def make(self) -> None:
        self.write_text()
        self.run(self.whole)
        home = self.folder / "home" / ".config" / "dsv3-ablate" / "clusters"
        home.mkdir(parents=True)
        (home / "loopback.toml").write_text(CLUSTER)
        self.slurm = Loopback(base=self.folder / "slurm", nodes=2, cpus=CPUS).__enter__()

    def close(self) -> None:
        Ground.close(self)
        if self.slurm is not None:
            self.slurm.__exit__()

    def disturbed(self, out: Path, cluster: str = "loopback") -> list[str]:
        study = str(self.whole / "study.toml")
        return ["sweep", study, "--out", str(out), "--executor", "slurm", "--cluster", cluster]

    def start(self, arguments: list[str], **options: Any) -> Command:
        prepare = options.pop("prepare", None)

        def also() -> None:
            conduct.SILENT_S, conduct.START_FACTOR = 60.0, 10
            os.environ |= {"HOME": str(self.folder / "home"), "PYTHONPATH": str(Path(__file__).parents[1])}
            if prepare is not None:
                prepare()

        return Ground.start(self, arguments, prepare=also, **options)


def _tasks(this: Try) -> list[Task]:
    store = Store(this.out)
    return (queued(store) or []) if store.plan_file.exists() else []


def _until(this: Try, command: Command | None, holds: Callable[[], Any]) -> Any:
    """What `holds` gives as soon as it is something; None if the command ends first, or in too long a time."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and (command is None or command.state):
        if found := holds():
            return found
        time.sleep(0.2)
    return None


def _training(this: Try) -> list[Task]:
    """Tasks whose runs are past their start."""
    store, found = Store(this.out), []
    for task in _tasks(this):
        attempt = newest(store.attempts_folder(task.run), task.key) if task.runs else None
        said = standing(attempt) if attempt else None
        if said and said.phase == "training" and said.loss is not None:
            found.append(task)
    return found


def _met(this: Try, command: Command | None) -> Task | None:
    """A task to disturb: half of the tries in training, half at any time."""
    running: Callable[[], list[Task]] = lambda: [task for task in _tasks(this) if task.runs]  # noqa: E731
    found = _until(this, command, (lambda: _training(this)) if this.draw.random() < 0.5 else running)
    if not found:
        this.met = False
        return None
    time.sleep(this.draw.uniform(0, 2))
    task: Task = this.draw.choice(found)
    return task


def _processes(this: Try) -> list[int]:
    """The Python processes of this try's tasks: conductors and workers."""
    mark, found = str(this.out).encode(), []
    for pid, environment in environments():
        if any(line.startswith(b"SLURM_ARRAY_TASK_ID=") for line in environment):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                name = Path(f"/proc/{pid}/comm").read_text()
                if name.startswith("python") and (mark in words or b"forkserver" in words):
                    found.append(pid)
    return found


def _end(this: Try, command: Command) -> None:
    this.end(command)
    before = this.before()
    this.finish()
    this.compare(before)


def task_process_killed(this: Try) -> None:
    command = this.begin()
    if _met(this, command) and (processes := _processes(this)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(this.draw.choice(processes), signal.SIGKILL)
    _end(this, command)


def submitting_command_killed(this: Try) -> None:
    """SIGKILL of the command at a random time; its jobs go on, and the next command adopts them."""
    command = this.begin()
    time.sleep(this.draw.uniform(0.5, 25))
    this.met = bool(command.state)
    command.kill()
    n_before = len(list(this.out.glob("slurm/*.json")))
    waiting = {task.run for task in _tasks(this) if task.active}
    this.finish()
    submitted = len(list(this.out.glob("slurm/*.json")))
    if waiting == set(this.ground.records) and submitted > n_before:
        this.fail("duplicated", "what was in the queue was submitted again")


def signalled(this: Try) -> None:
    """SIGUSR1 as before a time limit: a checkpoint at the next step, and the job goes back into the queue by itself."""
    command = this.begin()
    found = _until(this, command, lambda: _training(this))
    task = this.draw.choice(found) if found else None
    if task is None:
        this.met = False
    else:
        subprocess.run(["scancel", "--signal=USR1", task.job], check=False, capture_output=True)
        store = Store(this.out)

        def requeued() -> bool:
            return bool(_restarts(task.job)) or store.status(task.run) is not None

        _until(this, command, requeued)
        n = _restarts(task.job)
        this.met = n > 0
        if n > 1:
            this.fail("unfinished", f"the job was put back {n} times")
        if this.met and not list(store.attempts_folder(task.run).glob("*/step-*")) and not store.status(task.run):
            this.fail("wrong", "the job was put back, and there is no checkpoint")
    _end(this, command)


def _restarts(job: str) -> int:
    said = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=False).stdout
    return int(said.partition("Restarts=")[2].split()[0]) if "Restarts=" in said else 0


def cancelled(this: Try) -> None:
    """`sweep cancel` from another shell while the command watches; the same command goes on."""
    command = this.begin()
    _met(this, command)
    done = this.call("sweep", "cancel", str(this.out))
    if done.code != 0:
        this.fail("unfinished", f"sweep cancel ended with {done.code}\n{done.text}")
    command.signal_group(signal.SIGINT)
    _end(this, command)


def watched(this: Try) -> None:
    """Ctrl-C of the command leaves the runs to the cluster; `sweep watch` follows them to their end."""
    command = this.begin()
    _met(this, command)
    command.signal_group(signal.SIGINT)
    this.end(command)
    done = this.call("sweep", "watch", str(this.out), "--every", "0.5")
    if done.code != 0 or not done.says("4 of 4 runs done"):
        this.fail("unfinished", f"sweep watch ended with {done.code}\n{done.text}")
    this.finish()


def task_hangs(this: Try) -> None:
    """SIGSTOP of a run's process on its node: ended there, or by the command that watches, and gone on with."""
    command = this.begin()
    if _until(this, command, lambda: _training(this)) and (processes := _processes(this)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(processes[-1], signal.SIGSTOP)
    else:
        this.met = False
    _end(this, command)


def preempted(this: Try) -> None:
    """A more urgent job takes every node: Slurm ends the runs, and puts them back into the queue."""
    command = this.begin()
    if _met(this, command):
        size = [f"--nodes={this.ground.slurm.nodes}", "--exclusive", "--partition=urgent", "--output=/dev/null"]
        subprocess.run(["sbatch", *size, "--wrap", "sleep 2"], check=True, capture_output=True)
    _end(this, command)


def node_dies(this: Try) -> None:
    command = this.begin()
    if _met(this, command):
        node = this.draw.randint(1, this.ground.slurm.nodes)
        this.met = this.ground.slurm.kill_node(node) > 0
        _until(this, command, lambda: _is_down(node))
        this.ground.slurm.start_node(node)
    _end(this, command)


def _is_down(node: int) -> bool:
    command = ["scontrol", "-o", "show", "node", f"n{node}"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.upper()
    return "DOWN" in said or "NOT_RESPONDING" in said or "*" in said.partition("STATE=")[2][:12]


def node_comes_back(this: Try) -> None:
    """A node and its jobs stand still until Slurm has given them up and the study has ended; then they come back."""
    command = this.begin()
    stopped: list[int] = []
    if _met(this, command):
        node = this.draw.randint(1, this.ground.slurm.nodes)
        stopped = this.ground.slurm.stop_node(node)
        this.met = len(stopped) > 1
    this.end(command)
    this.finish()
    before, files = this.before(), this.attempts()
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    time.sleep(15)
    this.compare(before)
    this.check()
    changed = [path for path, content in files.items() if path.exists() and path.read_bytes() != content]
    for path in changed:
        if path.name not in ("progress.json", "failure.json"):
            this.fail("wrong", f"{path} was changed by who came back")
    this.ground.slurm.restart_node(node) if stopped else None


def twice(this: Try) -> None:
    """The same command in two shells at once: one set of jobs, or two; one record a run."""
    commands = [this.begin("log0")]
    time.sleep(this.draw.uniform(0, 15))
    commands.append(this.begin("log1"))
    for command in commands:
        done = this.end(command)
        if done.code != 0:
            this.fail("unfinished", f"one of two at once ended with {done.code}\n{done.text}")
    this.check()


def files_elsewhere(this: Try) -> None:
    """Jobs whose $TMPDIR is on another file system, one of them killed."""
    clusters = this.ground.folder / "home" / ".config" / "dsv3-ablate" / "clusters"
    place = Path("/dev/shm") / f"faults-{os.getpid()}"
    place.mkdir(exist_ok=True)
    (clusters / "elsewhere.toml").write_text(CLUSTER + f'setup = ["export TMPDIR={place}"]\n')
    command = this.begin(cluster="elsewhere")
    if _met(this, command) and (processes := _processes(this)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(this.draw.choice(processes), signal.SIGKILL)
    _end(this, command)


SLURM_KINDS: dict[str, Callable[[Try], None]] = {
    "F1 SIGKILL of a process of a job": task_process_killed,
    "F1 a node dies with its jobs, and comes back empty": node_dies,
    "F2 SIGKILL of the command that submitted": submitting_command_killed,
    "F4 SIGUSR1, as before the time limit": signalled,
    "F4 `sweep cancel`": cancelled,
    "F4 Ctrl-C, then `sweep watch`": watched,
    "F4 preempted": preempted,
    "F5 a node that stood still comes back late": node_comes_back,
    "F10 a process of a job hangs (SIGSTOP)": task_hangs,
    "F13 the same command twice": twice,
    "F15 SIGKILL of a process, temporary files elsewhere": files_elsewhere,
}
