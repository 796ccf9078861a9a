"""Faults of what a study writes to beside its records: Optuna's storage and W&B, refused, cut off, locked, silent.

A search with played runs (`played_runs.py`) writes to a PostgreSQL on loopback through a proxy that fails, or to an
SQLite that another holds; a study logs to a W&B that does. Whatever happens there, the records are whole, and the
storage has every trial once after the same command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from fault_ground import Ground, Try
from forked import Command, spawn
from played_runs import play
from search_faults import STUDY, Plain, check, postgres

from ablate.runs.trials import TrialFolder

N_TRIALS = 8  # of both variants together
SECONDS = 0.05  # of a played run
COMMIT = b"COMMIT"


def _server(ground: Ground) -> str:
    """The address of the campaign's PostgreSQL, started once; it ends with the campaign."""
    if "postgres" not in ground.services:
        stack = ground.services["stack"] = contextlib.ExitStack()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        ground.services["postgres"] = stack.enter_context(postgres(folder))
    address: str = ground.services["postgres"]
    return address


def database(this: Try) -> str:
    """A database of this try's own."""
    import psycopg

    address = _server(this.ground)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {(name := f't{os.getpid()}_{this.place.name}'.replace('-', '_'))}")
    return address.rpartition("/")[0] + f"/{name}"


class Proxy:
    """What is between a client and a server; what it does to them, `act` decides at every connection and message."""

    def __init__(self, server: tuple[str, int], how: str, n: int, seconds: float) -> None:
        self.server, self.how, self.n, self.seconds = server, how, n, seconds
        self.commits, self.until = 0, 0.0

    async def run(self, port: int) -> None:
        serving = await asyncio.start_server(self._client, "127.0.0.1", port)
        async with serving:
            await serving.serve_forever()

    def _refuses(self) -> bool:
        return time.monotonic() < self.until

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses():
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection(*self.server)
        cut = asyncio.Event()
        ways = [self._asked(reader, back, cut), self._answered(there, writer, cut)]
        done, left = await asyncio.wait(map(asyncio.ensure_future, ways), return_when=asyncio.FIRST_COMPLETED)
        del done
        for task in left:
            task.cancel()
        for each in (writer, back):
            each.transport.abort() if cut.is_set() else each.close()

    async def _asked(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if COMMIT in data:
                self.commits += 1
                if self.commits == self.n:
                    if self.how == "refused":
                        self.until = time.monotonic() + self.seconds
                    cut.set()
            if cut.is_set() and self.how == "refused":
                return
            to.write(data)
            await to.drain()

    async def _answered(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, cut: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if cut.is_set():  # the server has done it, and nobody learns of it
                return
            to.write(data)
            await to.drain()


def _proxied(this: Try, address: str, how: str) -> tuple[str, Command]:
    """The address of a proxy that fails once, at the n-th COMMIT; and its process."""
    parts, n, seconds = urlsplit(address), this.draw.randint(1, 30), this.draw.uniform(1, 10)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def act() -> int:
        asyncio.run(Proxy(("127.0.0.1", parts.port or 0), how, n, seconds).run(port))
        return 0

    command = spawn(act, log=this.place / "proxy.log", cache=this.ground.cache)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.02)
    return address.replace(f":{parts.port}/", f":{port}/"), command


def search_arguments(this: Try, storage: str) -> list[str]:
    file = this.place / "search.toml"
    file.write_text(STUDY.format(text=this.ground.text, trials=N_TRIALS // 2, storage=storage))
    return ["sweep", str(file), "--out", str(this.out)]


def begin_search(this: Try, arguments: list[str], name: str) -> Command:
    return this.ground.start(arguments, log=this.place / name, prepare=lambda: play(Plain, SECONDS))


def _checked(this: Try, arguments: list[str], storage: str) -> None:
    """The same command once more, directly; then every trial is in the records and in the storage once."""
    folder = TrialFolder(this.out / "search")
    seen = {path.name: path.read_bytes() for path in folder.trials.glob("*.trial.json")}
    done = this.end(begin_search(this, arguments, "finish.log"))
    if done.code != 0:
        this.fail("unfinished", f"the same command ended with {done.code}\n{done.text}")
        return
    found = check(folder, storage, seen, N_TRIALS)
    for name, column in (("lost", "lost"), ("duplicated", "duplicated"), ("changed", "lost"), ("strangers", "wrong"),
                         ("storage wrong", "wrong")):  # fmt: skip
        if found[name]:
            this.fail(column, f"{found[name]} {name}\n{done.text}")


def postgres_refuses(this: Try) -> None:
    """Connections are cut at a COMMIT that the server never sees, and refused for one to ten seconds."""
    _through_proxy(this, "refused")


def postgres_answer_lost(this: Try) -> None:
    """The connection is cut after a COMMIT has reached the server and before its answer has come back."""
    _through_proxy(this, "answer")


def _through_proxy(this: Try, how: str) -> None:
    address = database(this)
    proxied, proxy = _proxied(this, address, how)
    done = this.end(begin_search(this, search_arguments(this, proxied), "log"))
    # A server that does not answer at the very start is told, and nothing has been spent.
    if done.code not in (0, 2) or (done.code == 2 and not done.says("does not answer")):
        this.fail("unfinished", f"the search ended with {done.code}\n{done.text}")
    if "secret-word" in done.text:
        this.fail("unclear", f"the password is shown\n{done.text}")
    proxy.kill()
    _checked(this, search_arguments(this, address), address)


def postgres_locked(this: Try) -> None:
    """Another session holds the tables for one to ten seconds."""
    import psycopg

    address = database(this)
    command = begin_search(this, search_arguments(this, address), "log")
    with psycopg.connect(address) as connection:
        while command.state:
            with contextlib.suppress(psycopg.Error):
                connection.execute("LOCK TABLE trials IN ACCESS EXCLUSIVE MODE")
                time.sleep(this.draw.uniform(1, 10))
                break
            connection.rollback()
            time.sleep(0.02)
        this.met = bool(command.state)
        connection.rollback()
    done = this.end(command)
    if done.code != 0:
        this.fail("unfinished", f"the search ended with {done.code}\n{done.text}")
    _checked(this, search_arguments(this, address), address)


def sqlite_locked(this: Try) -> None:
    """Another program holds the SQLite file, for less than the storage waits or for more."""
    file = this.out / "search" / "optuna.db"
    address, seconds = f"sqlite:///{file}", this.draw.choice([this.draw.uniform(1, 8), 12.0])
    command = begin_search(this, search_arguments(this, address), "log")
    while command.state and not file.exists():
        time.sleep(0.01)
    connection = sqlite3.connect(file, timeout=5, isolation_level=None)
    with contextlib.closing(connection), contextlib.suppress(sqlite3.OperationalError):
        connection.execute("BEGIN EXCLUSIVE")
        this.met = bool(command.state)
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    done = this.end(command)
    if done.code != 0:
        this.fail("unfinished", f"the search ended with {done.code}\n{done.text}")
    _checked(this, search_arguments(this, address), address)


def wandb_fails(this: Try) -> None:
    """A study that logs to a W&B which takes connections and answers with faults, with silence, or hangs up."""
    how = this.draw.choice(["faults", "silence", "hangs up"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = spawn(lambda: asyncio.run(_bad_server(how, port)), log=this.place / "server.log", cache=this.ground.cache)
    key = "0123456789" * 4

    def prepare() -> None:
        os.environ |= {"WANDB_API_KEY": key, "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_SILENT": "true"}
        os.environ["HOME"] = str(this.place)

    arguments = [*this.ground.arguments(this.out), "--wandb", "faults"]
    done = this.end(this.ground.start(arguments, log=this.place / "log", prepare=prepare), 240)
    server.kill()
    if done.code != 0:
        this.fail("unfinished", f"W&B with {how}: the study ended with {done.code}\n{done.text}")
    this.check()


async def _bad_server(how: str, port: int) -> int:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if how == "hangs up":
                writer.transport.abort()
                return
            await reader.readuntil(b"\r\n\r\n")
            if how == "silence":
                await asyncio.sleep(600)
            body = b"no"
            head = f"HTTP/1.1 500 No\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            writer.close()

    serving = await asyncio.start_server(answer, "127.0.0.1", port)
    async with serving:
        await serving.serve_forever()
    return 0


KINDS: dict[str, Callable[[Try], None]] = {
    "F11 Optuna's PostgreSQL cut off and refused for seconds": postgres_refuses,
    "F11 the answer to a COMMIT is lost": postgres_answer_lost,
    "F11 Optuna's tables locked": postgres_locked,
    "F11 Optuna's SQLite locked": sqlite_locked,
    "F11 W&B answers with faults, silence, or not at all": wandb_fails,
}
