"""How large and how slow the report of many runs is, from records that the product's own writer committed.

    python benchmarks/report_size.py [--runs 500 1000] [--designs lattice leave-one-out factors] [--work DIR]

Losses are drawn, curves have 20 points with every figure that a run of the whole recipe has, and branches are there.
`factors` gives each run a variant of its own. Prints the size of the page, the seconds of the processor and of the
clock that `dsv3-ablate report` takes from its start to its end, and its peak memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ablate.files import replace_file, to_json
from ablate.runs.plan import PlannedVariant, make_plan
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.spec.decoding import encode
from ablate.spec.run import RunSpec
from ablate.sweep.variants import variants

ROOT = Path(__file__).parents[1]
EFFECTS = {"mla": -0.010, "moe": -0.060, "mtp": 0.020, "fp8": 0.001, "distill": -0.004}
N_POINTS = 20
RATES = 50  # levels of the factor


def main() -> None:
    arguments = _arguments()
    for design in arguments.designs:
        for n in arguments.runs:
            with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
                print(to_json({"design": design} | measure(write(Path(folder) / "study", design, n))), end="")


def write(folder: Path, design: str, n_runs: int) -> Path:
    """A study of at least `n_runs` runs, all of them finished, as a folder."""
    study = Study(question="What are 500 runs worth?", preset="nano", **_layout(design, n_runs))
    base = study.load_preset()
    plan, runs = make_plan(study, base, *variants(study, base), corpus_hash="c0ffee", corpus={"source": "drawn"})
    store, generator = Store(folder), np.random.default_rng(1)
    store.create()
    replace_file(store.plan_file, to_json(encode(plan)))
    for variant in plan.variants:
        for run_id in variant.run_ids:
            store.commit(record(run_id, runs[run_id], variant, generator))
    return folder


def _layout(design: str, n_runs: int) -> dict[str, Any]:
    if design == "lattice":
        return {"design": "lattice", "n_seeds": -(-n_runs // 48)}
    if design == "factors":
        rates = [round(1e-3 * 1.05**i, 7) for i in range(RATES)]
        return {"factors": {"trainer.learning_rate": rates}, "n_seeds": n_runs // RATES}
    return {"design": design, "n_seeds": n_runs // 7 + 1}


def record(run_id: str, run: RunSpec, variant: PlannedVariant, generator: np.random.Generator) -> RunRecord:
    """A finished run with every figure that one of the whole recipe has."""
    loss = 3 + sum(size for name, size in EFFECTS.items() if variant.levels.get(name) == "on")
    loss += float(generator.normal(0, 0.01))
    points = tuple(_point(run, loss, k, generator) for k in range(1, N_POINTS + 1))
    branches = tuple(_point(run, loss, k, generator) for k in (N_POINTS // 4, N_POINTS // 2))
    speed = {"step_s": 0.1, "tokens_per_s": float(generator.normal(1000, 20)), "peak_memory_bytes": 5e8,
             "evaluation_s": 2.0, "training_s": 30.0, "seconds": 40.0}  # fmt: skip
    return RunRecord(
        run_id=run_id,
        status="finished",
        spec=encode(run),
        variant=dict(variant.levels),
        metrics=points[-1] | speed,
        curve=points,
        branches=branches,
        judged={"held_out": {"windows": 320, "documents": 30}},
        order_hash=f"order {run.seed}",
        initial_parameters={f"layers.{i}.weight": f"320x32:{run.seed}" for i in range(40)},
        backends={"attention": "library", "linear": "compiled", "device": "cpu"},
        evidence={"loss": "measured", "speed": "measured", "memory": "measured"},
        environment={"device": "cpu", "packages": {"torch": "2.13.0", "dsv3-ablate": "0.1.0"}},
        attempts=({"name": "0000-aaaaaaaa"},),
    )


def _point(run: RunSpec, loss: float, k: int, generator: np.random.Generator) -> dict[str, float]:
    def near(size: float) -> float:
        return float(size * generator.uniform(0.9, 1.1))

    now, step = loss + 3 / k - 3 / N_POINTS, max(1, round(run.n_steps * k / N_POINTS))
    texts = {f"{prefix}{name}": near(size) for prefix in ("", "distill_") for name, size in TEXT.items()}
    fp8 = {f"fp8_{kind}_{what}": near(1e-4) for kind in ("activation", "weight", "gradient")
           for what in ("underflow_share", "amax")}  # fmt: skip
    plain = {"step": step, "n_tokens": step * run.trainer.tokens_per_step, "learning_rate": 1e-3,
             "train_loss": now - 0.05, "nats_per_token": now, "bits_per_byte": now / 2.2}  # fmt: skip
    return texts | fp8 | plain


TEXT = {"nats_per_token": 3.3, "bits_per_byte": 1.6, "draft_acceptance": 0.6, "max_violation": 0.3,
        "load_entropy": 0.99, "dead_experts": 0.0}  # fmt: skip


def measure(folder: Path) -> dict[str, Any]:
    """What `dsv3-ablate report` of the folder takes, in a process of its own."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, str(ROOT / "cli.py"), "report", str(folder)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "runs": len(list((folder / "records").iterdir())),
        "html_mb": round((folder / "report.html").stat().st_size / 1e6, 3),
        "md_mb": round((folder / "report.md").stat().st_size / 1e6, 3),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "wall_s": round(wall, 2),
        "peak_mib": round(after.ru_maxrss / 1024),  # of the largest child so far
        "load": round(os.getloadavg()[0], 1),
    }


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[500, 1000])
    parser.add_argument("--designs", nargs="+", default=["lattice", "leave-one-out", "factors"])
    parser.add_argument(
        "--work", type=Path, help="Where the studies are written; default: the place of temporary files."
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
