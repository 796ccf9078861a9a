"""Faults of processes: killed, signalled, stopped, slowed, started twice, or with a clock that jumps."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fault_ground import Try, end_at
from forked import Command, Writes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
HOUR_S = 3600.0


def killed_whole(this: Try) -> None:
    """SIGKILL of everything, one to three times in a row."""
    this.met = False
    for _ in range(this.draw.randint(1, 3)):
        before, command = this.before(), this.begin()
        this.sleep()
        this.met |= bool(command.state)
        command.kill()
        this.compare(before)
    before = this.before()
    this.finish()
    this.compare(before)


def killed_at_a_write(this: Try) -> None:
    """SIGKILL of everything, just before something becomes durable; sometimes with a cache that is not there yet."""
    n = this.index % this.ground.n_writes + 1  # every point in turn
    cache = this.draw.choice([this.ground.cache, this.place / "cache"])
    this.met = (
        this.begin(prepare=Writes().watch(partial(end_at, n)), cache=cache).wait(this.ground.patience_s)
        == -signal.SIGKILL
    )
    before = this.before()
    this.finish(cache=cache)
    this.compare(before)


def killed_with_files_elsewhere(this: Try) -> None:
    """The same with $TMPDIR on another file system, from which nothing can be renamed or linked."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if os.stat(elsewhere).st_dev == os.stat(this.place).st_dev:
            raise RuntimeError("/dev/shm is not another file system here")
        n, watch = this.draw.randint(1, this.ground.n_writes), Writes()

        def prepare() -> None:
            os.environ["TMPDIR"], tempfile.tempdir = elsewhere, None
            watch.watch(partial(end_at, n))()

        this.met = this.begin(prepare=prepare).wait(this.ground.patience_s) == -signal.SIGKILL
        before = this.before()
        this.finish()
        this.compare(before)


def killed_worker(this: Try) -> None:
    command = this.begin()
    this.sleep()
    this.met = bool(workers := command.workers())
    for worker in this.draw.sample(workers, min(1, len(workers))):
        _kill(worker, signal.SIGKILL)
    this.end(command)
    this.finish()


def killed_parent(this: Try) -> None:
    """SIGKILL of the parent alone; the same command comes while its workers may still be at it."""
    command = this.begin()
    this.sleep()
    this.met = bool(command.state)
    _kill(command.pid, signal.SIGKILL)
    command.wait(10)
    before = this.before()
    this.finish()
    this.compare(before)
    command.signal_group(signal.SIGKILL)


def signal_once(this: Try) -> None:
    _signalled(this, [this.draw.choice(SIGNALS)])


def signal_twice(this: Try) -> None:
    _signalled(this, [this.draw.choice([signal.SIGINT, signal.SIGTERM]), signal.SIGINT])


def _signalled(this: Try, numbers: list[int]) -> None:
    command = this.begin()
    this.sleep()
    this.met = bool(command.state)
    for number in numbers:
        command.signal_group(number)
        time.sleep(this.draw.uniform(0.01, 0.3))
    _stopped_and_finished(this, command)


def _stopped_and_finished(this: Try, command: Command) -> None:
    this.end(command, 90)
    before = this.before()
    this.finish()
    this.compare(before)


def signal_at_a_write(this: Try) -> None:
    """A signal to all processes in the middle of a write: of a checkpoint, a record, weights."""
    n, number = this.draw.randint(1, this.ground.n_writes), this.draw.choice(SIGNALS)
    hit = Writes()

    def act(at: int, path: str) -> None:
        if at == n:
            hit.shared[:1] = b"1"
            os.killpg(0, number)

    command = this.begin(prepare=Writes().watch(act))
    _stopped_and_finished(this, command)
    this.met = hit.n > 0


def at_once(this: Try) -> None:
    """Two to four identical commands; all must end well."""
    _all_end_well(this, [{} for _ in range(this.draw.randint(2, 4))])
    this.check()


def _all_end_well(this: Try, options: list[dict[str, Any]]) -> None:
    commands = []
    for i, each in enumerate(options):
        commands.append(this.begin(f"log{i}", **each))
        this.sleep(0.2)
    for command in commands:
        done = this.end(command)
        if done.code != 0:
            this.fail("unfinished", f"one of {len(commands)} at once ended with {done.code}\n{done.text}")


def hung_worker(this: Try) -> None:
    """SIGSTOP of a worker: the command must end it and go on."""
    command = this.begin()
    while not (workers := command.workers()) and command.wait(0.02) is None:
        pass
    this.sleep(0.5)
    this.met = bool(workers := command.workers())
    for worker in this.draw.sample(workers, min(1, len(workers))):
        _kill(worker, signal.SIGSTOP)
    this.end(command)
    this.finish()


def slow_worker(this: Try) -> None:
    """A worker that gets a tenth of its time (stopped for 90 of each 100 ms): it is slow, and not taken to hang."""
    command = this.begin()
    while not (workers := command.workers()) and command.wait(0.02) is None:
        pass
    this.met, ended = bool(workers), threading.Event()

    def slow() -> None:
        while not ended.is_set() and _kill(workers[0], signal.SIGSTOP):
            time.sleep(0.09)
            _kill(workers[0], signal.SIGCONT)
            time.sleep(0.01)

    slowing = threading.Thread(target=slow)
    if workers:
        slowing.start()
    done = this.end(command)
    ended.set()
    if workers:
        slowing.join()
    if done.code != 0 or done.says("made no progress"):
        this.fail("unfinished", f"a slow worker is not waited for (exit code {done.code})\n{done.text}")
    this.check()


def zombie_command(this: Try) -> None:
    """Everything stops at a write (SIGSTOP), the same command does the work, and then the first one comes back."""
    n = this.draw.randint(1, this.ground.n_writes)
    first = this.begin("first.log", prepare=Writes().watch(_stop_group_at(n)))
    if not this.stopped(first):
        this.met = False
        this.end(first)
        this.finish()
        return
    old = set(this.out.glob("runs/*/attempts/*"))
    _done_by_another(this)
    before, files = this.before(), this.attempts()
    first.signal_group(signal.SIGCONT)
    done = this.end(first)
    if done.code != 0:
        this.fail("unfinished", f"the command that came back ended with {done.code}\n{done.text}")
    _apart(this, before, files, old)


def _done_by_another(this: Try) -> None:
    """The same command ends well; what the one that stands still was writing is still there."""
    done = this.end(this.begin("second.log"))
    if done.code != 0:
        this.fail("unfinished", f"the same command ended with {done.code}\n{done.text}")


def _stop_group_at(last: int) -> Callable[[int, str], None]:
    def act(n: int, path: str) -> None:
        if n == last:
            os.killpg(0, signal.SIGSTOP)

    return act


def _apart(this: Try, before: dict[str, bytes], files: dict[Path, bytes], old: set[Path]) -> None:
    """Who came back has changed no record, and no file of an attempt that is not its own."""
    this.compare(before)
    this.check()
    for path, content in files.items():
        if path.parent not in old and (not path.exists() or path.read_bytes() != content):
            this.fail("wrong", f"{path} is another's, and was changed by who came back")


def zombie_worker(this: Try) -> None:
    """A worker stops at a write, its parent is killed, the same command does the work; then the worker comes back."""
    n, parent, place = this.draw.randint(1, 40), Writes(), this.place / "worker"

    def act(at: int, path: str) -> None:
        if os.getpid() != parent.n and at >= n and not place.exists():
            place.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)

    def prepare() -> None:
        parent.shared[:8] = os.getpid().to_bytes(8, "little")
        Writes().watch(act)()

    first = this.begin("first.log", prepare=prepare)
    while not place.exists() and first.state:
        time.sleep(0.01)
    time.sleep(0.05)
    _kill(first.pid, signal.SIGKILL)
    first.wait(10)
    this.met = place.exists()
    old = set(this.out.glob("runs/*/attempts/*"))
    _done_by_another(this)
    before, files = this.before(), this.attempts()
    first.signal_group(signal.SIGCONT)
    until = time.monotonic() + 30
    while time.monotonic() < until and _group_lives(first.pid):
        time.sleep(0.05)
    if _group_lives(first.pid):
        this.fail("unfinished", "the worker that came back does not end")
        first.signal_group(signal.SIGKILL)
    _apart(this, before, files, old)


def _group_lives(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(") ")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state not in "ZX":
            return True
    return False


def clock_jumps(this: Try) -> None:
    """The clock of one of two identical commands jumps by up to an hour at a write, or its time zone changes.

    Half of the tries are on a file system without locks, where the age of a file is all that tells the living.
    """
    n, shift = (
        this.draw.randint(1, this.ground.n_writes),
        this.draw.choice([-HOUR_S, HOUR_S, this.draw.uniform(-60, 60)]),
    )
    zone, locks = this.draw.choice(["Europe/Berlin", "America/New_York", "Asia/Kolkata"]), this.draw.random() < 0.5
    real = time.time

    def act(at: int, path: str) -> None:
        if at == n:
            os.environ["TZ"] = zone
            time.tzset()
            time.time = lambda: real() + shift

    def without_locks(descriptor: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def unlock() -> None:
        if not locks:
            fcntl.flock = without_locks

    def prepare() -> None:
        unlock()
        Writes().watch(act)()

    _all_end_well(this, [{"prepare": prepare}, {"prepare": unlock}])
    this.check()


def _kill(pid: int, number: int) -> bool:
    """False if there is no such process any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
