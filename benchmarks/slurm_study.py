"""One study twice: on this machine, and through a real Slurm with preemptions and a node that dies. Are they the same?

    python benchmarks/slurm_study.py --study sweeps/leave-one-out.toml --preset cpu --out reports/slurm

Starts Slurm on loopback (`loopback.py`), gives the study to it with `sweep --executor slurm`, preempts its runs twice
with jobs of a more urgent partition, kills one node with all that runs there, and starts the node again. Compares the
two studies' records: final weights, curves, data order and initial values must be equal bit for bit. Writes README.md
in `out`, and the hashes of all runs beside it.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fault_ground import essences
from loopback import Loopback

from ablate.files import replace_file, to_json
from ablate.runs.executors.submission import queued
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.runs.study import read_study, to_toml

ROOT = Path(__file__).parents[1]
CLUSTER = 'partition = "main"\ntime = "600"\ncpus_per_task = 1\npoll_s = 2.0\nsignal_s = 60\n'


def main() -> None:
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    study = replace(read_study(arguments.study), preset=arguments.preset)
    if arguments.seeds:
        study = replace(study, n_seeds=arguments.seeds)
    file = arguments.work / "study.toml"
    replace_file(file, to_toml(study))
    (arguments.work / "clusters").mkdir(exist_ok=True)
    (arguments.work / "clusters" / "loopback.toml").write_text(CLUSTER)
    begun = time.monotonic()
    version, *told = _through_slurm(arguments)
    slurm_s, begun = time.monotonic() - begun, time.monotonic()
    _sweep(arguments, "local", ["--jobs", str(arguments.jobs)]).wait()
    _write(arguments, version, told, slurm_s, time.monotonic() - begun)


def _sweep(arguments: Any, name: str, options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ablate", "sweep", "study.toml", "--out", name, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(arguments.work / f"{name}.log", "ab") as log:
        return subprocess.Popen(command, cwd=arguments.work, env=environment, stdout=log, stderr=log)


def _through_slurm(arguments: Any) -> list[str]:
    """What was done to the study while it ran."""
    store, told = Store(arguments.work / "slurm"), list[str]()
    with Loopback(base=arguments.base, nodes=arguments.nodes, cpus=arguments.cpus) as slurm:
        command = _sweep(arguments, "slurm", ["--executor", "slurm", "--cluster", "loopback"])
        faults = [_preempt, _kill_node, _preempt]
        shares = [0.15, 0.4, 0.65]  # of the runs that have a record when each comes
        while command.poll() is None:
            time.sleep(1)
            running = [task for task in (queued(store) or []) if task.runs] if store.plan_file.exists() else []
            due = faults and running and _done(store) >= shares[-len(faults)] * arguments.n_runs
            if due and _trains(store, running):
                told.append(f"with {_done(store)} records: {faults.pop(0)(arguments, store, slurm)}")
        if command.returncode != 0:
            raise SystemExit(f"the study ended with {command.returncode}; look into {arguments.work}/slurm.log")
        version = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return [version, *told]


def _done(store: Store) -> int:
    return len(list(store.records.glob("*.json")))


def _trains(store: Store, running: list[Any]) -> bool:
    """Whether some run is past its start, so that a fault meets training and not the loading of libraries."""
    from ablate.runs.attempts import newest
    from ablate.runs.progress import standing

    attempts = [newest(store.attempts_folder(task.run), task.key) for task in running]
    said = [standing(attempt) for attempt in attempts if attempt]
    return any(each and each.phase == "training" for each in said)


def _preempt(arguments: Any, store: Store, slurm: Loopback) -> str:
    """A job that wants every node at once: Slurm takes them from the runs, and puts these back into the queue."""
    before = {task.run for task in queued(store) or [] if task.runs}
    size = [f"--nodes={arguments.nodes}", "--exclusive", "--partition=urgent", "--output=/dev/null"]
    subprocess.run(["sbatch", "--parsable", *size, "--wrap", "sleep 5"], check=True, capture_output=True)
    until = time.monotonic() + 120
    while time.monotonic() < until and any(t.runs and t.run in before for t in queued(store) or []):
        time.sleep(0.5)
    return f"{len(before)} running jobs preempted (PreemptMode=REQUEUE)"


def _kill_node(arguments: Any, store: Store, slurm: Loopback) -> str:
    n_killed = slurm.kill_node(1)
    until = time.monotonic() + 180
    while time.monotonic() < until and "DOWN" not in _scontrol("show", "node", "n1").upper():
        time.sleep(1)
    slurm.start_node(1)
    return f"node n1 and {n_killed} processes of its jobs killed (SIGKILL), and the node started again"


def _scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", "-o", *words], capture_output=True, text=True, check=False).stdout


def _write(arguments: Any, version: str, told: list[str], slurm_s: float, local_s: float) -> None:
    places = {name: Store(arguments.work / name) for name in ("slurm", "local")}
    found = {name: dict(essences(store.folder)) for name, store in places.items()}
    records = {name: {r.run_id: r for r in store} for name, store in places.items()}
    differing = [run for run in found["local"] if found["local"][run] != found["slurm"].get(run)]
    surplus = found["slurm"].keys() - found["local"].keys()
    hashes = {run: {name: records[name][run].final_parameters_hash for name in places} for run in found["local"]}
    attempts = sum(len(record.attempts) for record in records["slurm"].values())
    record: RunRecord = next(iter(records["slurm"].values()))
    packages = record.environment["packages"]
    verdict = "equal bit for bit" if not differing and not surplus else f"DIFFERENT: {', '.join(differing)}"
    lines = [
        "# A study through Slurm, disturbed, against the same study on one machine",
        "",
        f"`python benchmarks/slurm_study.py --study {arguments.study} --preset {arguments.preset} "
        f"{f'--seeds {arguments.seeds} ' if arguments.seeds else ''}--nodes {arguments.nodes} "
        f"--cpus {arguments.cpus}` on {time.strftime('%d %B %Y', time.gmtime())}; "
        f"{record.environment['processor']}, {os.cpu_count()} cores, load {os.getloadavg()[2]:.1f} at the end; "
        f"{platform.system()}, Python {platform.python_version()}, torch {packages['torch']}, "
        f"{version}.",
        "",
        f"`{arguments.study}` at preset `{arguments.preset}`: {len(found['local'])} runs. Slurm had "
        f"{arguments.nodes} virtual nodes of {arguments.cpus} CPUs. Disturbed:",
        "",
        *(f"- {each}" for each in told),
        "",
        f"{len(found['slurm'])} records after {attempts} attempts and {slurm_s:.0f} s through Slurm, "
        f"{len(found['local'])} records after {local_s:.0f} s on the machine itself ({arguments.jobs} at a time).",
        "",
        f"Final weights, curves, data order and initial values of all runs: **{verdict}**. "
        f"Lost: {len(found['local'].keys() - found['slurm'].keys())}. Surplus: {len(surplus)}.",
        "",
        "The hashes of the final weights are in hashes.json.",
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    replace_file(arguments.out / "README.md", "\n".join(lines) + "\n")
    replace_file(arguments.out / "hashes.json", to_json(hashes))
    print("\n".join(lines))
    if differing or surplus or len(told) < 3:
        raise SystemExit(1)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("sweeps/leave-one-out.toml"))
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--seeds", type=int, default=0, help="of each variant; 0: what the study says")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="of each virtual node, so runs at a time on it")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time on the machine itself")
    parser.add_argument("--base", type=Path, default=Path("/var/tmp/dsv3-slurm-study"), help="of Slurm's own files")
    parser.add_argument("--work", type=Path, default=Path("results/slurm-study"), help="where the two studies are kept")
    parser.add_argument("--out", type=Path, default=Path("reports/slurm"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.n_runs = _n_runs(arguments)
    return arguments


def _n_runs(arguments: Any) -> int:
    from ablate.sweep.variants import variants

    study = replace(read_study(arguments.study), preset=arguments.preset)
    named, _ = variants(study, study.load_preset())
    return len(named) * (arguments.seeds or len(named[0].seeds))


if __name__ == "__main__":
    main()
