"""A rank that is gone: which it was is said in one sentence, and the run goes on from its checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest

from ablate.parallel import lost
from ablate.parallel.lost import anybody_left, missing, present
from ablate.runs import conduct
from ablate.runs.conduct import execute_all
from ablate.runs.events import Ended, Event, Killed, Progress
from ablate.runs.executors import worker
from ablate.runs.executors.local import LocalExecutor
from ablate.runs.job import Job
from ablate.runs.store import Store
from ablate.spec.ranks import Ranks

MakeJob = Callable[..., Job]
BROKEN = RuntimeError("[/gloo/transport/tcp/pair.cc:1] Connection closed by peer\nmore")
ENDS = """
import os, pathlib, sys
from ablate.parallel.lost import present
with present(pathlib.Path(sys.argv[1]), 1):
    os.kill(os.getpid(), 9)
"""
STAYS = """
import pathlib, sys, time
from ablate.parallel import lost
lost.SIGN_S = 0.05
with lost.present(pathlib.Path(sys.argv[1]), int(sys.argv[2])):
    print("here", flush=True)
    time.sleep(100)
"""
RANK = """
import os, time
from ablate.parallel.lost import end_with
end_with(os.getppid())
print(os.getpid(), flush=True)
time.sleep(100)
"""
AGENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {RANK!r}])"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "study")
    made.create()
    return made


def test_a_rank_is_missing_once_its_process_has_ended(tmp_path: Path) -> None:
    with present(tmp_path, 0), present(tmp_path, 2):
        subprocess.run([sys.executable, "-c", ENDS, str(tmp_path)], check=False)
        assert missing(tmp_path) == [1]
        assert anybody_left(tmp_path)
    assert missing(tmp_path) == [0, 1, 2]
    assert not anybody_left(tmp_path)


def test_a_rank_whose_process_stands_still_is_told_from_those_that_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "QUIET_S", 1.0)
    ranks = [
        subprocess.Popen([sys.executable, "-c", STAYS, str(tmp_path), str(rank)], stdout=subprocess.PIPE)
        for rank in range(3)
    ]
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == b"here\n"
        os.kill(ranks[1].pid, signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while not lost.still(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert lost.still(tmp_path) == [1]
        assert lost.missing(tmp_path) == []
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert lost.still(tmp_path) == [], "ended is not standing still"
    assert lost.missing(tmp_path) == [0, 1, 2]
    assert (lost.who([1], 2), lost.who([0, 3], 4)) == ("rank 1 of 2", "ranks 0, 3 of 4")


def test_a_broken_connection_is_another_ranks_failure_and_any_other_error_its_own(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "GRACE_S", 0.0)
    job = make_job(ranks=Ranks(pipeline=2))
    with present(tmp_path, 0):
        with present(tmp_path, 1):
            said = str(worker._of_this_rank(BROKEN, job, tmp_path))
            assert said.startswith(f"{worker.LOST}: one of 2 does not answer (")
            assert "more" not in said
        said = str(worker._of_this_rank(BROKEN, job, tmp_path))
    assert said == f"{worker.LOST}: the process of rank 1 of 2 has ended"
    with present(tmp_path, 0), present(tmp_path, 1):
        monkeypatch.setattr(worker, "still", lambda attempt: [1])
        said = str(worker._of_this_rank(BROKEN, job, tmp_path))
    assert said == f"{worker.LOST}: the process of rank 1 of 2 stands still"
    own = ValueError("no such thing")
    assert worker._of_this_rank(own, job, tmp_path) is own
    assert worker._of_this_rank(BROKEN, make_job(), tmp_path) is BROKEN, "one process has no other"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_rank_ends_with_its_agent_even_while_it_waits() -> None:
    with subprocess.Popen([sys.executable, "-c", AGENT], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        rank = int(agent.stdout.readline())
        agent.kill()
    deadline = time.monotonic() + 30
    while rank in processes.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rank not in processes.alive()


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_run_whose_rank_is_killed_or_hangs_goes_on_from_its_checkpoint(
    with_signal: signal.Signals, make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, events, hit = make_job("distill", n_steps=60, ranks=Ranks(data=2), micro_batch_size=2), list[Event](), []
    if with_signal == signal.SIGSTOP:
        monkeypatch.setattr(conduct, "SILENT_S", 20.0)

    def listener(event: Event) -> None:
        events.append(event)
        kept = list(store.attempts_folder(job.run_id).glob("*/step-*/manifest.json"))
        if isinstance(event, Progress) and kept and not hit:
            (agent,) = processes.workers(os.getpid())
            ranks = processes.children(agent)
            hit.append(max(ranks))
            os.kill(hit[0], with_signal)

    assert execute_all([job], store, LocalExecutor(store, 1), listener=listener).status == {job.run_id: "finished"}
    (reason,) = (event.reason for event in events if isinstance(event, Killed))
    if with_signal == signal.SIGKILL:
        assert reason == f"{worker.LOST}: the process of rank 1 of 2 has ended"
    else:
        assert reason.startswith("it made no progress for")
        assert reason.endswith("and was ended: the process of rank 1 of 2 stands still")
    assert isinstance(events[-1], Ended)
    assert hit[0] not in processes.alive()
    record = store.read(job.run_id)
    assert record is not None
    assert len(record.attempts) == 2
    assert record.metrics["step_s"] > 0
