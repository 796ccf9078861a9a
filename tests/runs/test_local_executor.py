"""Runs in processes of this machine: what they leave, who takes another, how they are ended; and measured speeds."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest

from ablate.errors import RunFailed
from ablate.runs import conduct
from ablate.runs.conduct import execute_all
from ablate.runs.events import Ended, Event, Killed, Progress
from ablate.runs.executors import local, worker
from ablate.runs.executors.local import LocalExecutor
from ablate.runs.executors.signals import hold, stopping
from ablate.runs.executors.torchrun import Layout, command
from ablate.runs.job import Job
from ablate.runs.job_file import job_file, read_job, write_job
from ablate.runs.progress import PROGRESS, standing
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.spec.decoding import encode
from ablate.spec.ranks import Ranks

MakeJob = Callable[..., Job]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "study")
    found.create()
    return found


class End:
    """One end of a pipe whose other end has said everything already: items that are received, and what was sent."""

    def __init__(self, *items: Any) -> None:
        self.items, self.sent = list(items), list[Any]()

    def fileno(self) -> int:
        return 2

    def poll(self, timeout: float) -> bool:
        return True

    def recv(self) -> Any:
        if not self.items:
            raise EOFError
        return self.items.pop(0)

    def send(self, item: Any) -> None:
        self.sent.append(item)


def test_a_worker_leaves_in_the_run_what_became_of_it(
    monkeypatch: pytest.MonkeyPatch, make_job: MakeJob, store: Store
) -> None:
    from ablate.runs import execute
    from ablate.training import callbacks

    job = make_job()
    path = write_job(job, store.run_folder(job.run_id))

    def left(outcome: Any) -> tuple[str, list[Any]]:
        def played(job: Job, store: Store, tell: Any, stop: Any, *, attempt: Path) -> Any:
            tell(1, 2.0, 3.0)
            said = standing(attempt)
            assert said is not None
            assert (said.phase, said.step, said.loss, said.tokens_per_s) == ("training", 1, 2.0, 3.0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(execute, "execute", played)
        end = End((str(path), "key"))
        worker.serve(end)
        newest = max(store.attempts_folder(job.run_id).iterdir())
        said = standing(newest)
        assert said is not None
        return said.phase, end.sent

    assert left(SimpleNamespace(status="diverged")) == ("ended", [True])
    assert left(callbacks.Interrupted()) == ("stopped", [True])
    assert left(ValueError("one line\nand another")) == ("failed", [True])
    (failure,) = store.failures()
    assert failure.reason == "ValueError: one line"
    assert "Traceback" in failure.traceback
    unable = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 EB. Error code 12"
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 EB"),
        RuntimeError(unable),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ):
        left(error)
        (failure,) = store.failures()
        assert failure.reason.startswith(worker.OUT_OF_MEMORY)


def test_only_a_worker_that_was_short_takes_another_run(
    monkeypatch: pytest.MonkeyPatch, make_job: MakeJob, store: Store
) -> None:
    import torch

    drawn = list[float]()
    monkeypatch.setattr(worker, "work", lambda *_: drawn.append(float(torch.rand(1))))
    end = End(("a", "k"), ("b", "k"))
    worker.serve(end)
    assert end.sent == [True, True]
    assert drawn[0] == drawn[1], "a run finds the generators as the run before it found them"
    monkeypatch.setattr(worker, "REUSED_S", 0.0)
    end = End(("a", "k"), ("b", "k"))
    worker.serve(end)
    assert (end.sent, len(end.items)) == ([], 1)


def test_progress_is_whole_or_absent(make_job: MakeJob, tmp_path: Path) -> None:
    assert standing(tmp_path) is None
    for text in ("", "{", "[]", '{"phase": "lying"}', '{"phase": "training", "further": 1}'):
        (tmp_path / PROGRESS).write_text(text)
        assert standing(tmp_path) is None


def test_a_job_file_gives_the_same_job_back_and_nothing_else(make_job: MakeJob, store: Store) -> None:
    job = make_job("mtp")
    path = write_job(job, store.run_folder(job.run_id))
    assert path == job_file(store.run_folder(job.run_id))
    assert read_job(path) == job
    text = path.read_text()
    for wrong in (text.replace('"seed": 0', '"seed": 1'), text[: len(text) // 2], "{}"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="cannot read what a run is given to do"):
            read_job(path)


def test_runs_here_end_with_records_in_processes_of_their_own(make_job: MakeJob, store: Store) -> None:
    jobs, events = [make_job(n_steps=3), make_job(n_steps=3, seed=1)], list[Event]()
    outcome = execute_all(jobs, store, LocalExecutor(store, 2), listener=events.append, key="here")
    assert set(outcome.status.values()) == {"finished"}
    records: list[RunRecord] = list(store)
    assert [record.attempts[0]["name"] for record in records] == ["0000-here-0"] * 2
    told = [standing(store.attempts_folder(job.run_id) / "0000-here-0") for job in jobs]
    assert [said.phase for said in told if said] == ["ended", "ended"]
    assert len({said.process for said in told if said} - {os.getpid()}) >= 1


def test_a_real_process_that_hangs_is_ended_and_its_run_finished(
    make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "SILENT_S", 2.0)
    monkeypatch.setattr(conduct, "SILENT_GAPS", 4)
    job, events = make_job(n_steps=400), list[Event]()

    def listener(event: Event) -> None:
        events.append(event)
        if isinstance(event, Killed):
            monkeypatch.setattr(conduct, "SILENT_S", 600.0)
        if isinstance(event, Progress) and event.loss and not any(isinstance(e, Killed) for e in events):
            for process in processes.workers(os.getpid()):
                os.kill(process, signal.SIGSTOP)

    outcome = execute_all([job], store, LocalExecutor(store, 1), listener=listener)
    assert outcome.status == {job.run_id: "finished"}
    reasons = [event.reason for event in events if isinstance(event, Killed)]
    assert "it made no progress for" in reasons[0]
    assert isinstance(events[-1], Ended)


def test_a_signal_to_all_processes_of_a_command_is_not_for_the_server_that_forks(
    make_job: MakeJob, store: Store
) -> None:
    job, events = make_job(n_steps=400), list[Event]()
    executor = LocalExecutor(store, 1)
    server = list[int]()

    def listener(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.loss and not server:
            (one,) = processes.workers(os.getpid())
            server.append(int(Path(f"/proc/{one}/stat").read_text().rpartition(") ")[2].split()[1]))
            for process in (one, *server, os.getpid()):
                os.kill(process, signal.SIGTERM)

    outcome = execute_all([job], store, executor, listener=listener)
    assert outcome.interrupted
    assert Path(f"/proc/{server[0]}").exists()
    assert list(store.attempts_folder(job.run_id).glob("*/step-*"))


def test_a_run_on_ranks_becomes_its_torchrun(make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Replaced(Exception):
        """The process is another program from here on."""

    def replaced(program: str, words: list[str]) -> None:
        raise Replaced(words)

    job = make_job(ranks=Ranks(pipeline=2, data=2))
    path = write_job(job, store.run_folder(job.run_id))
    monkeypatch.setattr(os, "execv", replaced)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "100")
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with pytest.raises(Replaced, match="--nproc-per-node=4"):
            worker.work(path, "key", lambda: False)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN, "Slurm's signal to all processes would end torchrun"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_ranks_are_started_by_torchrun(tmp_path: Path) -> None:
    job, attempt = tmp_path / "job.json", tmp_path / "attempt"
    here = command(Layout(ranks=4), job, attempt)
    assert here[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "--max-restarts=0"),
        *("-m", "ablate.runs.executors.worker", str(job), str(attempt)),
    ]
    far = command(Layout(ranks=16, nodes=2, endpoint="n1:29500", name="7-0"), job, attempt)
    for word in ("--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=n1:29500", "--rdzv-id=7-0"):
        assert word in far
    assert "--standalone" not in far
    for wrong in ({"ranks": 3, "nodes": 2, "endpoint": "n1:1", "name": "x"}, {"ranks": 0}, {"ranks": 2, "nodes": 2}):
        with pytest.raises(ValueError, match="ranks"):
            Layout(**wrong)


class Context:
    """Processes that only have a script: the n-th process of a job says the n-th item of its script."""

    def __init__(self, scripts: dict[str, list[Any]]) -> None:
        self.scripts, self.started = scripts, list[str]()
        self.alive = self.most_alive = 0

    def Pipe(self, duplex: bool) -> tuple[Any, Any]:
        self.end = End()
        return self.end, SimpleNamespace(close=lambda: None)

    def Process(self, target: Any, args: Any) -> Any:
        name, end = Path(args[0]).parent.name, self.end

        def start() -> None:
            self.started.append(name)
            self.alive += 1
            self.most_alive = max(self.alive, self.most_alive)
            end.items += self.scripts[name].pop(0)

        def join() -> None:
            self.alive -= 1

        return SimpleNamespace(start=start, join=join)


def test_speeds_are_measured_in_interleaved_rounds_under_the_load_of_the_study(
    monkeypatch: pytest.MonkeyPatch, make_job: MakeJob
) -> None:
    jobs = {"full": make_job(), "-mtp": make_job(seed=1)}
    a, b = (job.run_id for job in jobs.values())
    context = Context({a: [[0.9], [0.2], [0.3]], b: [[0.5], [0.4], [0.1]]})
    monkeypatch.setattr(local, "_context", lambda: context)
    found = local.measure_all(jobs, n_parallel=1, n_rounds=3, seconds=2.0)
    assert found == {"full": 0.3, "-mtp": 0.4}
    assert context.started == [a, b, b, a, a, b]
    assert context.most_alive == 1
    together = Context({name: [[0.1]] * 3 for name in (a, b)})
    monkeypatch.setattr(local, "_context", lambda: together)
    local.measure_all(jobs, n_parallel=3, n_rounds=1, seconds=0.0)
    assert together.started == [a, b, a]
    assert together.most_alive == 3


def test_the_first_steps_are_measured_or_refused(monkeypatch: pytest.MonkeyPatch, make_job: MakeJob) -> None:
    a, b = make_job(), make_job(seed=1)
    context = Context({a.run_id: [[0.25]], b.run_id: [[]]})
    monkeypatch.setattr(local, "_context", lambda: context)
    once = {"n_parallel": 1, "n_rounds": 1, "seconds": 0.0}
    assert local.measure_all({"full": a}, **once) == {"full": 0.25}
    with pytest.raises(RunFailed, match="the first steps of -mtp failed: its process was killed"):
        local.measure_all({"-mtp": b}, **once)


def test_a_worker_whose_parent_is_gone_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([1, 1, 2])
    monkeypatch.setattr(worker.os, "getppid", lambda: next(said, 2))
    waits = SimpleNamespace(poll=lambda timeout: False, fileno=lambda: 2)
    before = time.monotonic()
    worker.serve(waits)
    assert time.monotonic() - before < 5


def test_the_encoded_job_holds_no_environment(make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret")
    job = make_job()
    assert "planted" not in write_job(job, store.run_folder(job.run_id)).read_text()
    assert encode(job.run) == encode(read_job(job_file(store.run_folder(job.run_id))).run)


def test_a_signal_that_comes_while_a_process_starts_is_heeded() -> None:
    """Between being forked and having handlers a worker is asked to stop, once."""
    begun, end = os.pipe()
    if not (child := os.fork()):
        hold()
        os.write(end, b".")
        while not signal.sigpending():
            time.sleep(0.001)
        with stopping() as stop:
            os._exit(7 if stop.requested else 1)
    os.read(begun, 1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
