"""One task of an array job: it conducts its run on the node that it was given, as a study conducts all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ablate.parallel.lost import anybody_left
from ablate.runs.conduct import execute_all
from ablate.runs.events import Event, Progress
from ablate.runs.executors import torchrun
from ablate.runs.executors.local import LocalExecutor
from ablate.runs.executors.signals import stopping
from ablate.runs.executors.slurm import AGAIN
from ablate.runs.executors.submission import Submission, read_submission
from ablate.runs.job import Job
from ablate.runs.job_file import job_file, read_job
from ablate.runs.record import Failure
from ablate.runs.store import Store

PORTS, N_PORTS = 20_000, 20_000
SETTLE_S = 60.0  # at most, for the ranks of other nodes; where the file system has no locks nothing says when they end


def main(arguments: list[str]) -> int:
    """Exit code: 0 with a record, 1 with a failure, AGAIN if a signal stopped the run with a checkpoint."""
    path = Path(arguments[0])
    submission, store = read_submission(path), Store(path.parents[1])
    run = submission.runs[int(os.environ["SLURM_ARRAY_TASK_ID"])]
    try:
        job = read_job(job_file(store.run_folder(run)))
    except ValueError as error:
        _note(store, run, submission.key, str(error))
        return 1
    if int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1:
        return _one_of_several(job, store, submission)
    outcome = execute_all([job], store, LocalExecutor(store, 1), listener=_say, key=submission.key)
    if outcome.interrupted:
        return AGAIN
    return 1 if "failed" in outcome.status.values() else 0


def _say(event: Event) -> None:
    """Into the job's log."""
    if not isinstance(event, Progress):
        print(f"{time.strftime('%H:%M:%S')} {event}", flush=True)


def _note(store: Store, run: str, key: str, reason: str) -> None:
    print(reason, file=sys.stderr)
    failure = Failure(run_id=run, variant={}, seed=0, reason=reason, traceback="", time_s=time.time())
    store.note_failure(failure, store.new_attempt(run, f"{key}-0"))


def _one_of_several(job: Job, store: Store, submission: Submission) -> int:
    """This node's share of a run on several: torchrun, which passes SIGTERM on to its ranks."""
    import submitit

    there = submitit.JobEnvironment()
    name = f"{os.environ['SLURM_ARRAY_JOB_ID']}-{os.environ['SLURM_ARRAY_TASK_ID']}"
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    # All nodes must come to the same name without a word between them.
    attempt = store.attempts_folder(job.run_id) / f"{restart:04d}-{submission.key}-{name}"
    attempt.mkdir(parents=True, exist_ok=True)
    address = os.environ.get("MASTER_ADDR") or there.hostnames[0]
    port = PORTS + int(os.environ["SLURM_JOB_ID"]) % N_PORTS
    layout = torchrun.Layout(
        ranks=job.ranks, nodes=there.num_nodes, endpoint=f"{address}:{port}", name=f"{name}-{restart}"
    )
    command = torchrun.command(layout, job_file(store.run_folder(job.run_id)), attempt)
    # Where one task ends badly srun ends the others (SIGTERM, and SIGKILL some seconds later): each waits until no rank
    # writes any more, and leaves by its own exit code.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as it is after `stopping`
    with stopping() as stop:
        process, told = subprocess.Popen(command, preexec_fn=torchrun.prepare), False
        while process.poll() is None:
            if stop.requested and not told:
                process.terminate()
                told = True
            time.sleep(0.2)
    if store.status(job.run_id):
        return 0
    until = time.monotonic() + SETTLE_S
    while anybody_left(attempt) and time.monotonic() < until:
        time.sleep(0.2)
    return AGAIN if stop.requested else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
