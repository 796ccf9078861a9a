"""Where a study stands and how it is ended, from a shell that knows nothing but the study's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ablate.cli import app
from ablate.files import sealed
from ablate.runs.attempts import at_work, commands, held
from ablate.runs.executors import submission
from ablate.runs.executors.submission import Submission, write_submission
from ablate.runs.plan import make_plan
from ablate.runs.progress import Standing, tell
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.spec.decoding import encode
from ablate.sweep import console, status
from ablate.sweep.variants import variants

COMMAND = """
import pathlib, sys, time
from ablate.runs.attempts import at_work
from ablate.runs.executors.signals import stopping
with at_work(pathlib.Path(sys.argv[1])), stopping() as stop:
    print("at work", flush=True)
    while not stop.requested:
        time.sleep(0.01)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A planned study of four runs: the first has its record, the second trains, nobody has begun the others."""
    study = Study(question="?", preset="nano", disable=("mtp",), n_seeds=2)
    named, design = variants(study, study.load_preset())
    plan, _ = make_plan(study, study.load_preset(), named, design, corpus_hash="c", corpus={})
    made = Store(tmp_path / "study")
    made.create()
    made.plan_file.write_text(sealed(encode(plan)))
    first, second = plan.variants[0].run_ids
    made.commit(RunRecord(run_id=first, status="finished", spec={}, variant={}))
    tell(made.new_attempt(second, "key-0"), Standing(phase="training", step=8, loss=2.5, tokens_per_s=1e3))
    return made


def runs(store: Store) -> list[str]:
    return [run.run_id for run in status.look(store.folder).open]


def test_a_study_is_looked_at_while_a_process_is_at_it(store: Store) -> None:
    found = status.look(store.folder)
    assert (found.count("finished"), found.count("missing"), found.n_runs) == (1, 3, 4)
    with held(next(store.attempts_folder(runs(store)[0]).iterdir())):
        found = status.look(store.folder)
    assert (found.count("finished"), found.count("running"), found.count("missing")) == (1, 1, 2)
    assert (found.open[0].step, found.open[0].loss) == (8, 2.5)
    assert found.left_s is not None


def test_watching_ends_when_nothing_waits_or_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{"RUNNING": 1, "PENDING": 2}, {"RUNNING": 2, "COMPLETED": 1}, {"COMPLETED": 3}])
    write_submission(store, Submission(name="dsv3-aa", key="key-0", cluster="c", runs=tuple(runs(store))))

    def queue(command: list[str]) -> str:
        states = [state for state, n in next(looks).items() for _ in range(n)]
        return "\n".join(f"dsv3-aa|{i}|7|{state}" for i, state in enumerate(states))

    monkeypatch.setattr(submission, "ask", queue)
    monkeypatch.setattr(console, "time", type("Clock", (), {"sleep": lambda s: None, "monotonic": lambda: 0.0}))
    said = CliRunner().invoke(app, ["sweep", "watch", str(store.folder)], catch_exceptions=False).output
    assert "1 running, 2 waiting" in said
    assert "2 running" in said.splitlines()[-2]
    assert "running" not in said.splitlines()[-1]


def test_cancelling_ends_what_is_queued_and_asks_commands_here_to_stop(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def slurm(command: list[str]) -> str:
        asked.append(command)
        return "dsv3-aa|0|7|RUNNING\ndsv3-aa|1|7|PENDING\ndsv3-aa|2|7|COMPLETED\ndsv3-bb|0|8|RUNNING\n"

    monkeypatch.setattr(submission, "ask", slurm)
    write_submission(store, Submission(name="dsv3-aa", key="key-0", cluster="c", runs=tuple(runs(store))))
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(store.folder)], stdout=subprocess.PIPE, start_new_session=True
    ) as command:
        assert command.stdout is not None
        command.stdout.readline()
        try:
            assert commands(store.folder) == [command.pid]
            assert status.cancel_study(store.folder) == (2, 1)
            assert command.wait(timeout=20) == 0
        finally:
            command.kill()
    assert asked[-1] == ["scancel", "7_0", "7_1"]
    assert commands(store.folder) == []


def test_a_killed_command_is_at_no_study_and_another_machines_is_not_this_ones(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", COMMAND, str(tmp_path)], stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        command.stdout.readline()
        command.kill()
    (tmp_path / "commands" / "elsewhere-1").touch()
    assert commands(tmp_path) == []
    assert [path.name for path in (tmp_path / "commands").iterdir()] == ["elsewhere-1"]
    with at_work(tmp_path):
        assert commands(tmp_path) == [os.getpid()]


def test_a_command_that_cannot_be_noted_works_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    worked = False
    with at_work(tmp_path / "study"):
        worked = True
    assert worked
    assert commands(tmp_path / "study") == []
