"""How long the first command takes, part by part: a fresh process, from its start to the report.

    python benchmarks/first_answer.py [--json FILE] [arguments of `dsv3-ablate run`]

By default `run --disable mtp`, in a new folder. The parts follow each other and add up to the wall time: start of the
interpreter, the import of the command, text and plan, the runs (from the first that starts to the last that ends) and
the report. Within the runs, the records say what steps and evaluation took; runs go on side by side, so that these are
seconds of processes and not of the wall. A time is of the machine and of what else it does: the load is said too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The same command, with the time at which each part began written to a file: nothing else is changed.
PROGRAM = """
import sys, time
marks = {"interpreter": time.time()}
from ablate import cli
from ablate.commands import study
from ablate.sweep import run as sweep
marks["imported"] = time.time()
execute, report = sweep.execute_all, study._report
def execute_all(*args, **kwargs):
    marks.setdefault("runs", time.time())
    found = execute(*args, **kwargs)
    marks["ended"] = time.time()
    return found
def reported(*args, **kwargs):
    report(*args, **kwargs)
    marks["reported"] = time.time()
sweep.execute_all, study._report = execute_all, reported
mark, sys.argv = sys.argv[1], ["dsv3-ablate", *sys.argv[2:]]
try:
    cli.main()
finally:
    import json
    with open(mark, "w") as file:
        json.dump(marks, file)
"""
PARTS = (
    ("start of the interpreter", "start", "interpreter"),
    ("import of the command", "interpreter", "imported"),
    ("text and plan", "imported", "runs"),
    ("runs", "runs", "ended"),
    ("report", "ended", "reported"),
    ("end", "reported", "end"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "study"
        command = ["run", *(arguments or ["--disable", "mtp"]), "--out", str(out)]
        marks, status = timed(command, Path(folder) / "marks.json")
        if status:
            sys.exit(f"`dsv3-ablate {' '.join(command)}` ended with status {status}, so nothing is timed")
        figures = document(command[:-2], marks, out)
    print(rendered(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def timed(command: list[str], mark: Path) -> tuple[dict[str, float], int]:
    """Seconds since the epoch at which each part began, and the exit status."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.time()
    status = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(mark), *command], env=environment, check=False
    ).returncode
    end = time.time()
    return {"start": start, **json.loads(mark.read_text(encoding="utf-8")), "end": end}, status


def document(command: list[str], marks: Mapping[str, float], out: Path) -> dict[str, Any]:
    """The figures with the facts of the machine."""
    metrics = [json.loads(path.read_text(encoding="utf-8"))["metrics"] for path in (out / "records").glob("*.json")]
    return {
        "command": f"dsv3-ablate {' '.join(command)}",
        "wall_s": marks["end"] - marks["start"],
        "parts_s": {name: marks[end] - marks[begin] for name, begin, end in PARTS},
        "in_runs_s": {
            "training": sum(m.get("training_s", 0.0) for m in metrics),
            "evaluation": sum(m.get("evaluation_s", 0.0) for m in metrics),
            "whole": sum(m["seconds"] for m in metrics),
        },
        "n_runs": len(metrics),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "n_cores": os.cpu_count(),
            "load_1_min": os.getloadavg()[0],
            "python": platform.python_version(),
            "system": platform.platform(),
        },
    }


def rendered(figures: Mapping[str, Any]) -> str:
    lines = [figures["command"], f"{'whole':28} {figures['wall_s']:9.2f} s"]
    lines += [f"  {name:26} {seconds:9.2f} s" for name, seconds in figures["parts_s"].items()]
    lines += [f"of {figures['n_runs']} runs, seconds of their processes:"]
    lines += [f"  {name:26} {seconds:9.2f} s" for name, seconds in figures["in_runs_s"].items()]
    lines += [", ".join(f"{name} {value}" for name, value in figures["machine"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
