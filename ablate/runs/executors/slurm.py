"""Runs as array jobs of a Slurm cluster, which go on whatever becomes of the process that submitted them.

submitit makes the text of the job script from parameters that it knows and quotes. Its pickled jobs and results, its
signal handlers (which checkpoint inside the handler and pass over SIGTERM) and its watcher (which needs accounting) are
not used: a job is one path to a JSON file, and its script puts it back into the queue.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.runs.executors.cluster_file import Cluster
from ablate.runs.executors.protocol import CANCELLED, Seen
from ablate.runs.executors.submission import PREFIX, Submission, Task, end, queued, write_submission
from ablate.runs.job import Job
from ablate.runs.job_file import write_job
from ablate.runs.store import Store

TASK = "ablate.runs.executors.task"
AGAIN = 75  # exit code of a task that wrote its checkpoint and is to go on: EX_TEMPFAIL
SUBMIT_S = 120

# The whole of what a script does beside starting its task. An array's task is named by array and index: the bare number
# of the last one is the whole array's. Who was cancelled is no longer RUNNING, and stays away.
BEFORE = ["trap : TERM USR1"]
AFTER = [
    "status=$?",
    'this="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
    f'if [ "$status" = {AGAIN} ] && scontrol -o show job "$this" | grep -q "JobState=RUNNING"; then',
    '  scontrol requeue "$this"',
    "fi",
    'exit "$status"',
]


class SlurmExecutor:
    """Array jobs on a cluster; `n_parallel`: runs of one array at a time, None for as many as the cluster gives."""

    outlives = True

    def __init__(self, store: Store, cluster: Cluster, name: str, n_parallel: int | None = None) -> None:
        self.store, self.cluster, self.name, self.n_parallel = store, cluster, name, n_parallel
        self.keys: dict[str, str] = {}  # of the runs that were submitted and have not been told gone
        self.tasks: dict[str, Task] = {}
        self.looked: float | None = None

    def submit(self, jobs: Sequence[Job], key: str) -> None:
        for together in _arrays(jobs, self.cluster.max_array):
            for job in together:
                write_job(job, self.store.run_folder(job.run_id))
            submission = Submission(
                name=f"{PREFIX}{uuid.uuid4().hex[:12]}",
                key=key,
                cluster=self.name,
                runs=tuple(job.run_id for job in together),
            )
            path = write_submission(self.store, submission)
            text = script(self.cluster, path, together, self.n_parallel)
            _submit(path.with_suffix(".sh"), text)
            self.keys |= dict.fromkeys(submission.runs, key)
        self.looked = None

    def adopt(self, jobs: Sequence[Job]) -> Mapping[str, str]:
        asked = {job.run_id for job in jobs}
        tasks = queued(self.store)
        if tasks is None:
            raise ValueError("Slurm does not answer, so what is in its queue already is not known; try again later")
        found = {task.run: task.key for task in tasks if task.active and task.run in asked}
        self.keys |= found
        return found

    def poll(self, timeout_s: float) -> Seen:
        rest_s = 0.0 if self.looked is None else self.looked + self.cluster.poll_s - time.monotonic()
        if rest_s > 0:
            time.sleep(min(timeout_s, rest_s))
            return Seen(running=self._running())
        tasks, self.looked = queued(self.store), time.monotonic()
        if tasks is None:
            return Seen(running=self._running())
        # A run that was submitted again may be there twice: what is active counts, then what came last.
        self.tasks = {task.run: task for task in sorted(tasks, key=lambda task: task.active)}
        gone = {run: self._end(run) for run in self.keys if not self._is_active(run)}
        for run in gone:
            del self.keys[run]
        return Seen(running=self._running(), gone=gone)

    def _is_active(self, run: str) -> bool:
        return run in self.tasks and self.tasks[run].active

    def _running(self) -> set[str]:
        return {run for run in self.keys if run in self.tasks and self.tasks[run].runs}

    def _end(self, run: str) -> str:
        if run not in self.tasks:
            return "its Slurm job is no longer in the queue"
        task = self.tasks[run]
        if task.state == "CANCELLED":
            return f"{CANCELLED}: Slurm job {task.job}"
        return "" if task.state == "COMPLETED" else f"its Slurm job {task.job} ended as {task.state}"

    def cancel(self, run_ids: Collection[str], *, at_once: bool) -> None:
        end([task for task in queued(self.store) or [] if task.run in run_ids])

    def close(self) -> None:
        """Nothing: what was submitted is the cluster's."""


def _arrays(jobs: Sequence[Job], most: int) -> Iterator[list[Job]]:
    """Jobs that fit one array: as many as it may have, all of the same ranks and threads."""
    shapes: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        shapes.setdefault((job.ranks, job.n_threads), []).append(job)
    for alike in shapes.values():
        yield from (alike[i : i + most] for i in range(0, len(alike), most))


def script(cluster: Cluster, submission: Path, jobs: Sequence[Job], n_parallel: int | None = None) -> str:
    """The job script of an array of runs alike; ValueError if a path cannot stand in one, or bash cannot read it."""
    place = str(submission.absolute())
    if "%" in place or not place.isprintable():
        raise ValueError(
            f"{place!r} has a % or a control character, which Slurm reads as its own; choose another --out"
        )
    writer = _writer(submission.parent)
    writer.update_parameters(**_parameters(cluster, submission.stem, jobs[0], n_parallel))
    writer.parameters["map_count"] = len(jobs)
    python = cluster.python or sys.executable
    command = [*cluster.container, python, "-u", "-m", TASK, place]
    text: str = writer._make_submission_file_text(shlex.join(command), submission.stem)
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    if checked.returncode:
        raise ValueError(
            f"bash cannot read the job script: {checked.stderr.strip()}; look at setup in the cluster file"
        )
    return text


def _writer(place: Path) -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise ValueError("--executor slurm needs submitit: pip install 'dsv3-ablate[slurm]'") from None

    class Writer(submitit.SlurmExecutor):
        """Only what makes a script; nothing is submitted through it, so no srun is needed to make one."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    return Writer(place)


def _parameters(cluster: Cluster, name: str, job: Job, n_parallel: int | None) -> dict[str, Any]:
    """What submitit calls the fields of an array."""
    nodes = cluster.nodes(job.ranks)
    each = job.ranks // nodes
    asked = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "mem": cluster.memory,
        "gpus_per_node": min(each, cluster.gpus_per_node),
        "array_parallelism": n_parallel or 100_000,
    }
    cpus = cluster.cpus_per_task or job.n_threads * each
    return {key: value for key, value in asked.items() if value} | {
        "time": cluster.time or None,  # submitit's own default is five minutes
        "job_name": name,
        "wckey": "dsv3-ablate",
        "nodes": nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "setup": [*BEFORE, *(f"module load {shlex.quote(module)}" for module in cluster.modules), *cluster.setup],
        "teardown": AFTER,
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"],  # srun 22.05 and later does not inherit it
        "stderr_to_stdout": True,
        "additional_parameters": {"signal": f"USR1@{cluster.signal_s}", "requeue": True},
    }


def _submit(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    try:
        subprocess.run(
            ["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=True, timeout=SUBMIT_S
        )
    except FileNotFoundError:
        raise ValueError(
            "sbatch is not on this machine; give the command on one of the cluster's login nodes"
        ) from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())
        raise ValueError(f"Slurm refuses the job: {said}; look at the cluster file, the script is {path}") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"sbatch does not answer for {SUBMIT_S} seconds; try again later") from None
