"""A search shared by several workers, any of which is killed at any time: is a trial lost, made twice, or changed?

    python benchmarks/search_faults.py --trials 40 --kills 10 --workers 8 --seconds 5 --out results/search-faults

Workers are processes that conduct the same study file in the same folder, with one storage (a PostgreSQL on loopback
that this starts, or --storage). Runs are played (`played_runs.py`) and take `--seconds` without computing, all else is
the program. SIGKILL hits a random worker after a random time, three of four times one that is at a trial; it is started
again. Afterwards are counted, against the plan: slots without a trial, trials
without a record (lost), slots or runs of the storage that occur twice (duplicated), trials whose file changed after it
was first seen, records that no trial names, trials of the storage that are still running or have another value.
At the end the storage is emptied, and the same command must fill it again. Writes README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from played_runs import SECONDS, Quiet, play

from ablate.attribution.study.search import read_search
from ablate.files import replace_file
from ablate.runs.attempts import commands
from ablate.runs.store import Store
from ablate.runs.study import read_study
from ablate.runs.trials import TrialFolder
from ablate.sweep.conduct import conduct
from ablate.sweep.run import Options

COUNTED = ("lost", "duplicated", "changed", "strangers", "storage wrong", "not rebuilt")
STUDY = """question = "Which rate suits each side?"
preset = "nano"
disable = ["mtp"]
without = ["distill"]
data = "{text}"
budget = 2e8
n_seeds = 2
[search]
trials = {trials}
workers = 1
pruner = "median"
storage = "{storage}"
[search.parameters]
"trainer.learning_rate" = {{ low = 1e-3, high = 5e-2, log = true }}
"""


class Plain:
    """What `play` sets attributes with."""

    @staticmethod
    def setattr(where: Any, name: str, value: Any) -> None:
        setattr(where, name, value)


def work(study: Path, out: Path, seconds: float) -> None:
    """One worker: the program with played runs."""
    play(Plain, seconds)
    display = Quiet()
    try:
        conduct(read_study(study), Options(out=out), display)
    finally:
        print("\n".join(display.said), flush=True)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL on loopback for as long as this lasts; its address. It refuses root, so root runs it as postgres."""
    binaries = [shutil.which("initdb") or "", *glob.glob("/usr/lib/postgresql/*/bin/initdb")]
    home = next((Path(found).resolve().parent for found in binaries if found), None)
    if home is None:
        sys.exit("there is no PostgreSQL on this machine (initdb); install it, or give --storage")
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres")
    data, port = folder / "data", random.SystemRandom().randint(20_000, 50_000)
    how: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"} | user
    subprocess.run([home / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"], **how)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    subprocess.run([home / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"], **how)
    try:
        subprocess.run([home / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "optuna"], **how)
        yield f"postgresql://postgres:secret-word@127.0.0.1:{port}/optuna"
    finally:
        subprocess.run([home / "pg_ctl", "-D", data, "-m", "fast", "-w", "stop"], **how)


def campaign(place: Path, storage: str, asked: Any, draw: random.Random) -> dict[str, int]:
    """One search with its kills; what went wrong, and what it took."""
    place.mkdir(parents=True)
    text, study, out = place / "text.txt", place / "study.toml", place / "out"
    text.write_text("\n\n".join(f"line {i} of {i * i} and {i % 7} others" for i in range(3000)))
    study.write_text(STUDY.format(text=text, trials=asked.trials // 2, storage=storage))
    environment = os.environ | {"XDG_CACHE_HOME": str(place.parent / "cache")}
    folder, seen, kills, after = TrialFolder(out / "search"), dict[str, bytes](), 0, 1

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--work", str(study), "--out", str(out), "--seconds", str(asked.seconds)]
        log = (place / "log").open("ab")
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    workers = [start() for _ in range(asked.workers)]
    while any(worker.poll() is None for worker in workers):
        time.sleep(draw.uniform(0.05, 2.0))
        seen = {path.name: path.read_bytes() for path in folder.trials.glob("*.trial.json")} | seen
        # A kill while workers still start hits nothing: each waits for two more trials or records than the last one.
        done = len(seen) + len(list(Store(out / "search").records.glob("*.json")))
        living = [i for i, worker in enumerate(workers) if worker.poll() is None]
        if done >= after and living and kills < asked.kills:
            at_it = set(commands(out))
            busy = [i for i in living if workers[i].pid in at_it]
            i = draw.choice(busy if busy and draw.random() < 0.75 else living)
            workers[i].send_signal(signal.SIGKILL)
            workers[i].wait()
            workers[i], kills, after = start(), kills + 1, done + 2
    found = check(folder, storage, seen, asked.trials)
    found["not rebuilt"] = int(not rebuilt(study, out, storage, environment, asked.trials))
    attempts = len(list((out / "search" / "runs").glob("*/attempts/*")))
    found |= {"kills": kills, "attempts": attempts, "records": len(list(Store(out / "search").records.glob("*.json")))}
    found["secret shown"] = sum(
        b"secret-word" in path.read_bytes() for path in [place / "log", *out.rglob("*")] if path.is_file()
    )
    return found


def check(folder: TrialFolder, storage: str, seen: dict[str, bytes], n_trials: int) -> dict[str, int]:
    result, store = read_search(folder), Store(folder.folder)
    slots = {slot for slot, _, _ in result.plan.slots()}
    named = {stage.run_id for one in result.trials for stage in one.trial.stages}
    there = stored(storage)
    by_slot: dict[str, list[Any]] = {}
    for trial in there:
        by_slot.setdefault(trial.user_attrs["slot"], []).append(trial)
    values = {one.trial.slot: one.values for one in result.trials}
    wrong = sum(
        not trial.state.is_finished() or (trial.state.name == "COMPLETE" and tuple(trial.values) != values[slot])
        for slot, trials in by_slot.items()
        for trial in trials
    )
    return {
        "lost": n_trials - sum(one.state != "open" for one in result.trials) + len(slots - by_slot.keys()),
        "duplicated": len(there) - len(by_slot) + len(result.trials) - len({one.trial.slot for one in result.trials}),
        "changed": sum((folder.trials / name).read_bytes() != text for name, text in seen.items()),
        "strangers": len({path.stem for path in store.records.glob("*.json")} - named),
        "storage wrong": wrong,
    }


def stored(storage: str) -> list[Any]:
    import optuna

    url = storage.replace("postgresql:", "postgresql+psycopg:", 1)
    engine = optuna.storages.RDBStorage(url)
    try:
        names = optuna.get_all_study_names(engine)
        return [t for name in names for t in optuna.load_study(study_name=name, storage=engine).get_trials()]
    finally:
        engine.engine.dispose()


def rebuilt(study: Path, out: Path, storage: str, environment: dict[str, str], n_trials: int) -> bool:
    """Whether a storage that lost everything is whole again after the same command."""
    import optuna

    before = {(t.user_attrs["slot"], t.state.name, tuple(t.values or ())) for t in stored(storage)}
    url = storage.replace("postgresql:", "postgresql+psycopg:", 1)
    engine = optuna.storages.RDBStorage(url)
    for name in optuna.get_all_study_names(engine):
        optuna.delete_study(study_name=name, storage=engine)
    engine.engine.dispose()
    command = [sys.executable, __file__, "--work", str(study), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    after = {(t.user_attrs["slot"], t.state.name, tuple(t.values or ())) for t in stored(storage)}
    said = f"{n_trials} trials filled in again from the records"
    return done.returncode == 0 and after == before and said in " ".join(done.stdout.decode().split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40, help="of both variants together")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--campaigns", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that a played run takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--storage", default="", help="of Optuna; a PostgreSQL on loopback by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work, asked.out, asked.seconds)
        return
    draw, rows, begin = random.Random(asked.seed), list[dict[str, int]](), time.monotonic()
    for number in range(asked.campaigns):
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            Path(name).chmod(0o755)
            storage = asked.storage or stack.enter_context(postgres(Path(name)))
            rows.append(campaign(asked.out / f"campaign-{asked.seed}-{number}", storage, asked, draw))
            print(rows[-1], flush=True)
    replace_file(asked.out / "README.md", report(rows, asked, time.monotonic() - begin))
    if any(row[name] for row in rows for name in (*COUNTED, "secret shown")):
        sys.exit(1)


def report(rows: list[dict[str, int]], asked: Any, seconds: float) -> str:
    import optuna

    heads = [*COUNTED, "secret shown", "kills", "attempts", "records"]
    lines = ["| search | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    lines += [f"| {i} | " + " | ".join(str(row[head]) for head in heads) + " |" for i, row in enumerate(rows)]
    command = (
        f"python benchmarks/search_faults.py --trials {asked.trials} --kills {asked.kills} --workers {asked.workers} "
        f"--seconds {asked.seconds:g} --campaigns {asked.campaigns} --seed {asked.seed} --out OUT"
    )
    kind = "the storage that was given" if asked.storage else "PostgreSQL on loopback"
    return (
        "# Workers of a search, killed\n\n"
        f"`{command}`, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Optuna {optuna.__version__}, {kind}, "
        f"{seconds:.0f} s. Runs are played; what is counted is said in `benchmarks/search_faults.py`. Attempts "
        "beyond the records are runs that a kill cut off, and that were made again.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
