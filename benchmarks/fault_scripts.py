"""Attacks by names: fields of a cluster file and paths that would run something in a job script."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_ground import Ground, Try
from fault_ranks import a_job

from ablate.runs.executors.cluster_file import FORMS, Cluster
from ablate.runs.executors.slurm import SlurmExecutor
from ablate.runs.store import Store
from ablate.spec.decoding import decode

A_TRY = 100  # names of one try
NASTY = (
    "$(touch CANARY)", "`touch CANARY`", ";touch CANARY", "|touch CANARY", "&&touch CANARY", "& touch CANARY &",
    "\ntouch CANARY\n", "\rtouch CANARY", "\n#SBATCH --wrap=touch\n", "\u2028touch CANARY", "'", '"', "\\", "$IFS",
    "${PATH}", "*", "?", "~", "!", "#", "(", ")", "<", ">", ">CANARY", "a b", "\t", "\0", "%j", "%A", "é", "..", "-x",
    "--wrap=touch CANARY", "'; touch CANARY; '", '"; touch CANARY; "', "$'\\ntouch CANARY'", "x" * 70, "{a,b}", "\x7f",
)  # fmt: skip
LISTS = ("modules", "container", "setup")
FIELDS = (*FORMS, "container", "gpu", "path", "python")


def stubs(folder: Path) -> Path:
    """`sbatch` that runs the script it is given, and what the script calls, none of which does anything."""
    folder.mkdir()
    run = (
        '#!/bin/sh\nfor last; do :; done\nSLURM_ARRAY_JOB_ID=1 SLURM_ARRAY_TASK_ID=0 timeout 20 bash "$last"\necho 1\n'
    )
    for name, text in (("sbatch", run), *((n, "#!/bin/sh\nexit 0\n") for n in ("srun", "scontrol", "module"))):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def fuzzed(draw: random.Random, canary: Path) -> str:
    """One to three pieces, some of them harmless."""
    pieces = [draw.choice([*NASTY, "a", "gpu", "4:00:00", ""]) for _ in range(draw.randint(1, 3))]
    return "".join(pieces).replace("CANARY", str(canary))


def submitted(this: Try) -> None:
    """Names through the whole writer to a stub of sbatch that runs the script: refused, or nothing of theirs is run."""
    canary, bin_folder = this.place / "canary", stubs(this.place / "bin")
    job, n_written = _job(this.ground), 0
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{bin_folder}:/usr/bin:/bin"
    try:
        for i in range(A_TRY):
            field, value = this.draw.choice(FIELDS), fuzzed(this.draw, canary)
            n_written += _submit(this, i, field, value, job)
            if canary.exists():
                this.fail("wrong", f"{field} = {value!r} was run")
                canary.unlink()
    finally:
        os.environ["PATH"] = before
    this.cases = A_TRY
    this.met = n_written > 0


def _job(ground: Ground) -> Any:
    if "job" not in ground.services:
        ground.services["job"] = a_job(ground, 1, 8)
    return ground.services["job"]


def _submit(this: Try, i: int, field: str, value: str, job: Any) -> bool:
    """Whether a script was written. A refusal is a ValueError in a sentence; whatever else is raised is a fault."""
    folder = this.place / f"study-{i}"
    try:
        if field == "path":
            folder = this.place / f"{i}-{value.replace('/', '_')}"
        given: dict[str, Any] = {} if field == "path" else {field: [value] if field in LISTS else value}
        if field == "gpu":
            given["capability"] = "9.0"
        cluster = decode(Cluster, given, "the cluster file")
        store = Store(folder)
        store.create()
        SlurmExecutor(store, cluster, "c").submit([job], "k-0")
    except ValueError as error:
        if "\n" in str(error).strip():
            this.fail("unclear", f"{field} = {value!r}: {error}")
        return False
    except OSError as error:
        this.fail("unclear", f"{field} = {value!r}: {error!r}") if "too long" not in str(error) else None
        return False
    scripts = list((folder / "slurm").glob("*.sh"))
    checked = subprocess.run(["bash", "-n", str(scripts[0])], capture_output=True, check=False)
    if checked.returncode or len(scripts) != 1:
        this.fail("wrong", f"{field} = {value!r}: bash cannot read the script: {checked.stderr!r}")
    return True


KINDS: dict[str, Callable[[Try], None]] = {"S3 names in a job script (a hundred a try)": submitted}
