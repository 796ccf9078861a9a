"""What the running of runs costs beside the runs: thousands of planned ones with a trainer that only takes time.

    python benchmarks/scale.py --runs 2000 --seconds 0.05 --out results/scale

The trainer is a stub that computes for so many seconds and commits a record; everything else is what a study runs: plan
of jobs, workers with torch and Lightning loaded, attempts, progress, watchdog, display's events, durable records.
Tells how much longer it took than the work divided by the workers, the processor time of all that is not work, the
parent's peak memory, the time to the first run, and how long `sweep status` takes over `--records` records. The stub
waits and does not compute, so the processor time is what running the runs costs, however busy the machine is; the
seconds of a clock are the machine's as much. Writes README.md and scale.json.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablate.components.variants import Variant
from ablate.data.prepare import prepare
from ablate.files import commit_once, replace_file, sealed, to_json
from ablate.presets import preset
from ablate.runs.conduct import execute_all
from ablate.runs.events import Event, Started
from ablate.runs.executors import local
from ablate.runs.executors.local import LocalExecutor
from ablate.runs.job import Job
from ablate.runs.plan import make_plan
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.spec.decoding import encode, run_id
from ablate.spec.machine import this_machine
from ablate.sweep.status import look
from ablate.sweep.variants import variants

HERE = Path(__file__).parent


def main() -> None:
    arguments = _arguments()
    shutil.rmtree(arguments.work, ignore_errors=True)
    found = _orchestration(arguments) | _status(arguments)
    found |= {
        "load_before": arguments.load[0],
        "load_after": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    replace_file(arguments.out / "scale.json", to_json(found))
    replace_file(arguments.out / "README.md", _report(found, arguments))
    print(to_json(found), end="")


def _orchestration(arguments: Any) -> dict[str, float]:
    os.environ["SCALE_STUB_S"] = str(arguments.seconds)
    os.environ["PYTHONPATH"] = f"{HERE.parent}:{HERE}"
    local.PRELOADED.append("scale_stub")
    local.start_server()  # as a study does, before it plans
    jobs, store = _jobs(arguments), Store(arguments.work / "study")
    store.create()
    started: list[float] = []

    def listener(event: Event) -> None:
        if isinstance(event, Started) and not started:
            started.append(time.perf_counter())

    begun, cpu = time.perf_counter(), time.process_time()
    outcome = execute_all(jobs, store, LocalExecutor(store, arguments.jobs), listener=listener)
    passed, parent_cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    assert list(outcome.status.values()) == ["finished"] * len(jobs)
    workers = dict[float, float]()
    for record in store:
        process, seconds = record.metrics["process"], record.metrics["process_cpu_s"]
        workers[process] = max(seconds, workers.get(process, 0.0))
    worked = [record.metrics["seconds"] for record in store]
    least = sum(worked) / arguments.jobs
    begun_s = min(record.metrics["begun"] for record in store) - arguments.begun
    return {
        "runs": len(jobs),
        "work_s": sum(worked),
        "median_run_s": statistics.median(worked),
        "all_s": passed,
        "start_to_first_run_s": begun_s,
        "after_start_s": passed - (started[0] - begun),
        "added_share_of_work": passed / least - 1,
        "parent_cpu_s": parent_cpu_s,
        "workers_cpu_s": sum(workers.values()),
        "cpu_share_of_work": (parent_cpu_s + sum(workers.values())) / sum(worked),
        "parent_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _jobs(arguments: Any) -> list[Job]:
    base = preset("nano")
    variant = Variant.full(base)
    text = arguments.work / "text.txt"
    text.parent.mkdir(parents=True)
    text.write_text("\n\n".join(f"{i} times {i % 13} is {i * (i % 13)}" for i in range(3000)))
    corpus = prepare(str(text), vocab_size=base.model.vocab_size, cache=arguments.work / "cache")
    spec = variant.resolve(base).for_machine(this_machine())
    first = spec.run(corpus_hash=corpus.hash, seed=0, n_steps=32)
    runs = [replace(first, seed=seed) for seed in range(arguments.runs)]
    return [Job(run=run, run_id=run_id(run), variant=variant.levels, corpus=corpus) for run in runs]


def _status(arguments: Any) -> dict[str, float]:
    """Time of `sweep status` over a study whose runs all have records of a real run's size."""
    base = preset("nano")
    study = Study(question="?", preset="nano", disable=("mtp",), n_seeds=arguments.records // 2)
    named, design = variants(study, base)
    plan, runs = make_plan(study, base, named, design, corpus_hash="c", corpus={})
    store = Store(arguments.work / "many")
    store.create()
    commit_once(store.plan_file, sealed(encode(plan)))
    record = RunRecord(run_id="", status="finished", spec={}, variant={})
    padding = {f"layers.{i}.weight": f"64x64:{i:016x}" for i in range(60)}
    curve = tuple({"step": i, "nats_per_token": 3.1, "bits_per_byte": 1.2, "train_loss": 3.2} for i in range(20))
    for identity, run in runs.items():
        own = replace(record, run_id=identity, spec=encode(run), initial_parameters=padding, curve=curve)
        (store.records / f"{identity}.json").write_text(sealed(encode(own)))
    begun = time.perf_counter()
    status = look(store.folder)
    inside = time.perf_counter() - begun
    assert status.count("finished") == len(runs)
    begun, cpu = time.perf_counter(), _children_cpu_s()
    command = [sys.executable, "-m", "ablate", "sweep", "status", str(store.folder)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(HERE.parent)})
    passed, cpu = time.perf_counter() - begun, _children_cpu_s() - cpu
    return {"records": len(runs), "status_s": inside, "status_command_s": passed, "status_command_cpu_s": cpu}


def _children_cpu_s() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def _report(found: dict[str, Any], arguments: Any) -> str:
    def share(name: str) -> str:
        return f"{100 * found[name]:.1f} %"

    rows = [
        ("time beyond the work divided by the workers", share("added_share_of_work"), "< 5 %"),
        ("processor time of all but the work, over the work", share("cpu_share_of_work"), ""),
        ("peak memory of the parent", f"{found['parent_peak_mib']:.0f} MiB", "< 300 MiB"),
        ("start to the first run", f"{found['start_to_first_run_s']:.1f} s", "< 3 s"),
        (f"`sweep status` of {found['records']:,} records, the whole command", f"{found['status_command_s']:.2f} s",
         "< 2 s"),
        ("the same, of a processor", f"{found['status_command_cpu_s']:.2f} s", ""),
    ]  # fmt: skip
    lines = [
        "# What running thousands of runs costs beside the runs",
        "",
        f"`python benchmarks/scale.py --runs {arguments.runs} --seconds {arguments.seconds} --jobs {arguments.jobs} "
        f"--records {arguments.records}`, {time.strftime('%Y-%m-%d', time.gmtime())}, {found['cores']} cores, Python "
        f"{found['python']}; load of the machine {found['load_before']:.1f}, then {found['load_after']:.1f}: "
        "the seconds of a clock are its other work's as much. The trainer is a stub that waits.",
        "",
        "| | measured | asked for |",
        "|---|--:|--:|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"{found['runs']:,} runs of {1000 * found['median_run_s']:.0f} ms (median) took {found['all_s']:.1f} s; "
        f"processor time: {found['parent_cpu_s']:.1f} s of the parent, {found['workers_cpu_s']:.1f} s of the workers, "
        f"{1000 * (found['parent_cpu_s'] + found['workers_cpu_s']) / found['runs']:.1f} ms a run. All figures are in "
        "scale.json.",
    ]
    return "\n".join(lines) + "\n"


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.05, help="that a stub takes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--work", type=Path, default=Path("results/scale-work"))
    parser.add_argument("--out", type=Path, default=Path("results/scale"))
    arguments = parser.parse_args()
    arguments.load, arguments.begun = os.getloadavg(), time.time()
    return arguments


if __name__ == "__main__":
    main()
