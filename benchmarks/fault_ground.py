"""One undisturbed study that a campaign of faults compares with, and a try: what is disturbed, and what came of it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from forked import Command, Writes, start

import ablate.presets
from ablate.files import WRITING, damage
from ablate.model.weights import TENSORS
from ablate.runs.plan import read_plan
from ablate.runs.record import Failure
from ablate.runs.store import Store

PATIENCE_S = 300.0  # the machine may be busy
SETTINGS = ("--preset", "nano", "--disable", "mtp", "--without", "fp8", "--seeds", "2", "--jobs", "2")
BUDGET = ("--match", "tokens", "--budget", "1024")  # eight steps


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended, or was ended for not ending (`code` None)."""

    code: int | None
    text: str

    def says(self, *words: object) -> bool:
        """Whether it said these words in one line (a terminal may have broken it)."""
        return all("".join(str(word).split()) in "".join(self.text.split()) for word in words)


@dataclass(slots=True)
class Ground:
    """What all tries of a campaign share: a corpus, a cache, the undisturbed study, and one that was stopped."""

    folder: Path
    seconds: float = 0.0  # of the undisturbed study
    n_writes: int = 0
    records: dict[str, Any] = field(default_factory=dict)
    budget: tuple[str, ...] = BUDGET
    patience_s: float = PATIENCE_S  # of a command
    services: dict[str, Any] = field(default_factory=dict)  # what kinds start once; `close` ends it

    def close(self) -> None:
        """End what was started for all tries."""
        if "stack" in self.services:
            self.services["stack"].close()
        self.services.clear()

    @property
    def whole(self) -> Path:
        return self.folder / "whole"

    @property
    def stopped(self) -> Path:
        return self.folder / "stopped"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    @property
    def preset(self) -> Path:
        return Path(ablate.presets.__file__).parent / "nano.toml"

    def arguments(self, out: Path) -> list[str]:
        return ["run", *SETTINGS, *self.budget, "--data", str(self.text), "--out", str(out)]

    def disturbed(self, out: Path) -> list[str]:
        """The arguments of the command that faults are injected into."""
        return self.arguments(out)

    def make(self) -> None:
        """Run the undisturbed study twice, the second time with the cache; and stop a third one half-way."""
        self.write_text()
        self.run(self.folder / "first")
        self.run(self.whole)
        if self.records != dict(essences(self.folder / "first")):
            raise RuntimeError("the undisturbed study is not repeated bit for bit")
        self.stop()

    def write_text(self) -> None:
        lines = (f"{i} times {i % 13} is {i * (i % 13)}, and {i * i % 101} is left" for i in range(3000))
        self.text.write_text("\n\n".join(lines))

    def run(self, out: Path) -> None:
        """The undisturbed study, which everything else is compared with."""
        begun, writes = time.monotonic(), Writes()
        command = self.start(self.arguments(out), prepare=writes.watch(lambda n, path: None))
        if command.wait(self.patience_s) != 0:
            raise RuntimeError(f"the undisturbed study does not end well:\n{command.text}")
        self.seconds, self.n_writes = time.monotonic() - begun, writes.n
        self.records = dict(essences(out))

    def stop(self) -> None:
        """A study with checkpoints of its first runs and a note of a failure."""
        stop = Writes()
        command = self.start(self.arguments(self.stopped), prepare=stop.watch(partial(end_at, 120)))
        command.wait(PATIENCE_S)
        command.kill()
        store = Store(self.stopped)
        identity = next(run for run in self.records if not (store.records / f"{run}.json").exists())
        store.note_failure(Failure(run_id=identity, variant={}, seed=0, reason="?", traceback="", time_s=0.0))

    def start(self, arguments: list[str], **options: Any) -> Command:
        return start(arguments, **{"log": self.folder / "log", "cache": self.cache} | options)


def end_at(last: int, n: int, path: str) -> None:
    """Kill the whole command at a write, as a power cut does."""
    if n == last:
        os.killpg(0, signal.SIGKILL)
        time.sleep(60)


def essences(out: Path) -> Iterator[tuple[str, Any]]:
    """Each record of a study without what may differ between two good runs. ValueError if one is torn."""
    for record in Store(out):
        curve = [{name: value for name, value in point.items() if not name.endswith("_s")} for point in record.curve]
        loss = record.metrics.get("nats_per_token")
        weights = (record.initial_parameters, record.final_parameters_hash)
        yield record.run_id, (record.status, record.order_hash, weights, curve, loss)


@dataclass(slots=True)
class Try:
    """One fault: where it happens, what chance decides, and what came of it."""

    ground: Ground
    place: Path
    draw: random.Random
    thorough: bool = True
    index: int = 0  # within its kind
    met: bool = True  # whether something was going on that the fault could hit
    cases: int = 1  # that it stands for
    found: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.place / "study"

    def fail(self, column: str, note: str) -> None:
        self.found[column] += 1
        self.notes.append(f"{column}: {note[-1500:]}")

    def begin(self, name: str = "log", **options: Any) -> Command:
        """The command of the study."""
        to = {"cluster": options.pop("cluster")} if "cluster" in options else {}
        return self.ground.start(self.ground.disturbed(self.out, **to), **{"log": self.place / name} | options)

    def end(self, command: Command, seconds: float | None = None) -> Ended:
        """Wait for a command. It must end in time, without a traceback, and not badly without a sentence."""
        seconds = seconds or self.ground.patience_s
        code = command.wait(seconds)
        if code is None:
            command.kill()
            self.fail("unfinished", f"it still ran after {seconds:.0f} s\n{command.text}")
        done = Ended(code, command.text)
        told = done.says("error:") or done.says("goes on from") or done.says("failed")
        if done.says("Traceback") or (code not in (0, None) and code > 0 and not told):
            self.fail("unclear", f"exit code {code}\n{done.text}")
        return done

    def call(self, *arguments: str, **options: Any) -> Ended:
        return self.end(self.ground.start(list(arguments), **{"log": self.place / "call.log"} | options))

    def expect(self, done: Ended, *words: object) -> None:
        """Bad input, with these words in what is said."""
        if done.code != 2 or not done.says("error:", *words):
            self.fail("unclear", f"exit code {done.code} without {words}\n{done.text}")

    def finish(self, **options: Any) -> Ended:
        """The same command once more, which must end well and leave what the undisturbed one left."""
        done = self.end(self.begin("finish.log", **options))
        if done.code != 0:
            self.fail("unfinished", f"the same command ended with {done.code}\n{done.text}")
        self.check()
        return done

    def check(self, without: Collection[str] = ()) -> None:
        """The study against the undisturbed one; `without`: runs of which something else is expected."""
        try:
            got = dict(essences(self.out))
            read_plan(Store(self.out).plan_file)
        except ValueError as error:
            self.fail("torn", str(error))
            return
        for run, expected in self.ground.records.items():
            if run in without:
                got.pop(run, None)
            elif run not in got:
                self.fail("lost", run)
            elif got.pop(run) != expected:
                self.fail("wrong", run)
            elif wrong := damage(self.out / "runs" / run / "weights", TENSORS):
                self.fail("torn", f"weights of {run}: {wrong}")
        for run in got:
            self.fail("duplicated", run)
        for name in ("study.toml", "tokenizer.json"):
            if (self.out / name).read_bytes() != (self.ground.whole / name).read_bytes():
                self.fail("torn", name)
        for path in (p for mark in (WRITING, ".write-", ".tmp") for p in self.out.rglob(f"{mark}*")):
            self.fail("torn", f"{path} was left")

    def before(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.out / "records").glob("*.json")}

    def compare(self, before: dict[str, bytes]) -> None:
        for name, content in before.items():
            path = self.out / "records" / name
            if not path.exists() or path.read_bytes() != content:
                self.fail("lost", f"{name} was committed and is gone or another")

    def sleep(self, share: float = 1.0) -> None:
        time.sleep(self.draw.uniform(0, share * self.ground.seconds))

    def stopped(self, command: Command) -> bool:
        """Wait until a command stands still (SIGSTOP); False if it has ended before."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and command.state not in ("T", ""):
            time.sleep(0.01)
        return command.state == "T"

    def attempts(self) -> dict[Path, bytes]:
        """Every file of the attempts, checkpoints left out: these go when their run has its record."""
        files = (path for path in self.out.glob("runs/*/attempts/*/*") if path.is_file())
        return {path: path.read_bytes() for path in files if path.name != "lock"}
