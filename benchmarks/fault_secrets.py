"""Attacks that nobody makes: secrets that a user has in the environment, in addresses and in exceptions. Do they leak?

After a command every file that it left (study, cache, logs, job scripts, a dump of the database) is searched for them,
and while it runs the arguments of its processes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fault_ground import Try
from fault_scripts import stubs
from fault_storage import begin_search, database, search_arguments

from ablate.training.module import TrainingModule

SECRET = "hush-{}-0f1e2d3c4b5a6978"
VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MY_PASSWORD",
             "GITHUB_TOKEN", "COOKIE")  # fmt: skip


def secret(i: int) -> str:
    return SECRET.format(i)


def _planted() -> None:
    """In the environment, under the names that people use; W&B is kept from its network."""
    os.environ |= {name: secret(i) for i, name in enumerate(VARIABLES)} | {"WANDB_MODE": "offline"}


def _searched(this: Try, known: Sequence[str], *more: bytes) -> None:
    for path in sorted(this.place.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix != ".mine":
            content = path.read_bytes()
            for each in known:
                if each.encode() in content:
                    this.fail("wrong", f"{each} is in {path.relative_to(this.place)}")
    for content in more:
        for each in known:
            if each.encode() in content:
                this.fail("wrong", f"{each} is in a dump, or in the arguments of a process")


def in_environment(this: Try) -> None:
    """A study with its report while eight variables hold secrets; the arguments of its processes are looked at."""
    command, arguments = this.begin(prepare=_planted, cache=this.place / "cache"), bytearray()
    while command.state:
        for pid in [command.pid, *command.workers()]:
            with contextlib.suppress(OSError):
                arguments += Path(f"/proc/{pid}/cmdline").read_bytes()
        time.sleep(0.05)
    this.end(command)
    _searched(this, [secret(i) for i in range(len(VARIABLES))], bytes(arguments))
    this.cases = len(VARIABLES)


def in_a_storage(this: Try) -> None:
    """A search whose storage has a password in its address; the database is dumped too."""
    address = database(this)
    done = this.end(begin_search(this, _mine(this, address), "log"))
    if done.code != 0:
        this.fail("unfinished", done.text)
    _searched(this, ["secret-word"], _dumped(address))


def in_a_storage_that_fails(this: Try) -> None:
    address = f"postgresql://me:{secret(1)}@127.0.0.1:1/none?sslpassword={secret(2)}"
    done = this.end(begin_search(this, _mine(this, address), "log"))
    if done.code != 2:
        this.fail("unclear", f"exit code {done.code}\n{done.text}")
    _searched(this, [secret(1), secret(2)])


def _mine(this: Try, address: str) -> list[str]:
    """The arguments of a search; the study file is the user's own, and is not searched."""
    arguments = search_arguments(this, address)
    mine = Path(arguments[1]).with_suffix(".mine")
    os.rename(arguments[1], mine)
    (this.place.parent / f"{this.place.name}.toml").unlink(missing_ok=True)  # of a campaign that was stopped
    os.link(mine, this.place.parent / f"{this.place.name}.toml")
    return [arguments[0], str(this.place.parent / f"{this.place.name}.toml"), *arguments[2:]]


def _dumped(address: str) -> bytes:
    import psycopg

    found = bytearray()
    with psycopg.connect(address) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (name,) in names:
            found += repr(connection.execute(f'SELECT * FROM "{name}"').fetchall()).encode()
    return bytes(found)


def in_an_exception(this: Try) -> None:
    """A library raises with an address, a header and a variable's value in its words."""
    words = f"cannot reach postgresql://me:{secret(1)}@db/x with Authorization: Bearer {secret(2)}; key {secret(0)}"

    def prepare() -> None:
        _planted()

        def step(module: Any, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError(words)

        TrainingModule.training_step = step  # type: ignore[method-assign]

    done = this.end(this.begin(prepare=prepare))
    if done.code not in (1, 2) or not done.says("cannot reach"):
        this.fail("unclear", f"exit code {done.code}\n{done.text}")
    _searched(this, [secret(0), secret(1), secret(2)])


def in_a_teachers_address(this: Try) -> None:
    for query in (f"https://me:{secret(1)}@host/v1", f"https://host/v1?api_key={secret(1)}"):
        done = this.call("distill", "--teacher", query, "--out", str(this.out), "--data", str(this.ground.text))
        if done.code != 2:
            this.fail("unclear", f"exit code {done.code}\n{done.text}")
    _searched(this, [secret(1)])


def in_a_cluster_file(this: Try) -> None:
    """In each field that takes text: refused without being shown, or not taken for what it is and then not written."""
    home = this.place.parent / f"{this.place.name}-home"
    clusters = home / ".config" / "dsv3-ablate" / "clusters"
    clusters.mkdir(parents=True)
    lines = (
        f'setup = ["export WANDB_API_KEY={secret(1)}"]',
        f"setup = [\"export HF_TOKEN='{secret(1)}'\"]",
        f'container = ["apptainer", "exec", "--env", "WANDB_API_KEY={secret(1)}", "image.sif"]',
        f'container = ["docker", "run", "-e", "OPENAI_API_KEY={secret(1)}", "image"]',
        f'container = ["apptainer", "exec", "--docker-password={secret(1)}", "image.sif"]',
    )
    folder = stubs(this.place / "bin")

    def prepare() -> None:
        os.environ |= {"HOME": str(home), "PATH": f"{folder}:{os.environ['PATH']}"}

    study = this.ground.whole / "study.toml"
    for line in lines:
        (clusters / "c.toml").write_text(line + "\n")
        done = this.call("sweep", str(study), "--out", str(this.out), "--executor", "slurm", "--cluster", "c",
                         prepare=prepare)  # fmt: skip
        if done.code != 2:
            this.fail("unclear", f"{line.split('=')[0]} is taken (exit code {done.code})\n{done.text}")
    _searched(this, [secret(1)])
    this.cases = len(lines)


def in_a_job(this: Try) -> None:
    """What is handed to Slurm while the environment holds secrets: scripts, submissions, job files."""
    home = this.place.parent / f"{this.place.name}-home"
    clusters = home / ".config" / "dsv3-ablate" / "clusters"
    clusters.mkdir(parents=True)
    (clusters / "c.toml").write_text('partition = "main"\npoll_s = 0.1\n')
    folder = stubs(this.place / "bin")
    (folder / "squeue").write_text("#!/bin/sh\nexit 0\n")
    (folder / "squeue").chmod(0o755)

    def prepare() -> None:
        _planted()
        os.environ |= {"HOME": str(home), "PATH": f"{folder}:{os.environ['PATH']}"}

    study = this.ground.whole / "study.toml"
    done = this.call("sweep", str(study), "--out", str(this.out), "--executor", "slurm", "--cluster", "c",
                     prepare=prepare)  # fmt: skip
    if not list(this.out.glob("slurm/*.sh")):
        this.fail("unclear", f"no script was written\n{done.text}")
    _searched(this, [secret(i) for i in range(len(VARIABLES))])
    this.cases = len(VARIABLES)


def in_wandb(this: Try) -> None:
    """A study that logs to W&B without a network."""
    arguments = [*this.ground.arguments(this.out), "--wandb", "faults"]

    def prepare() -> None:
        _planted()
        os.environ["HOME"] = str(this.place)

    done = this.end(this.ground.start(arguments, log=this.place / "log", prepare=prepare), 300)
    if done.code != 0:
        this.fail("unfinished", done.text)
    _searched(this, [secret(i) for i in range(len(VARIABLES))])


WAYS = (in_environment, in_a_storage, in_a_storage_that_fails, in_an_exception, in_a_teachers_address,
        in_a_cluster_file, in_a_job, in_wandb)  # fmt: skip


def leaked(this: Try) -> None:
    """Each place in turn."""
    way = WAYS[this.index % len(WAYS)]
    way(this)
    this.notes = [f"{way.__name__}: {note}" for note in this.notes]


KINDS: dict[str, Callable[[Try], None]] = {"S4 secrets in eight places": leaked}
