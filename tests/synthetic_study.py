"""Studies of every design with planted losses: laid out by the program's own planner, records made in code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablate.attribution.study.compare import StudyResult, compare
from ablate.runs.plan import Plan, PlannedVariant, make_plan
from ablate.runs.record import RunRecord
from ablate.runs.study import Study
from ablate.spec.decoding import encode
from ablate.sweep.variants import variants

EFFECTS = {"mla": -0.010, "moe": -0.060, "aux-free": 0.0, "mtp": 0.020, "fp8": 0.001, "distill": -0.004}
SIZES = {"lattice": {"n_seeds": 1}, "optimal": {"n_runs": 32}}

Status = Callable[[PlannedVariant, int], str]


@dataclass(frozen=True)
class Planted:
    """A plan, and the records that its runs left."""

    plan: Plan
    records: list[RunRecord]

    @property
    def result(self) -> StudyResult:
        return compare(self.plan, self.records, [])


def planted(
    design: str,
    status: Status = lambda variant, seed: "finished",
    *,
    seed: int = 1,
    seed_sd: float = 0.02,
    run_sd: float = 0.005,
    **fields: Any,
) -> Planted:
    """A study of this design in which components have EFFECTS; `status` may also say "missing"."""
    study = Study(question="q?", preset="nano", design=design, **(SIZES.get(design, {"n_seeds": 4}) | fields))
    base = study.load_preset()
    plan, runs = make_plan(study, base, *variants(study, base), corpus_hash="c0ffee", corpus={})
    generator = np.random.default_rng(seed)
    levels = dict(zip(plan.seeds, generator.normal(0, seed_sd, len(plan.seeds)), strict=True))
    records = []
    for variant in plan.variants:
        truth = 3.0 + sum(size for name, size in EFFECTS.items() if variant.levels[name] == "on")
        for run_id in variant.run_ids:
            run = runs[run_id]
            ended, loss = status(variant, run.seed), truth + levels[run.seed] + generator.normal(0, run_sd)
            if ended != "missing":
                records.append(_record(run_id, run, variant, ended, loss))
    return Planted(plan, records)


def _record(run_id: str, run: Any, variant: PlannedVariant, ended: str, loss: float) -> RunRecord:
    finished = ended == "finished"
    metrics = {"nats_per_token": loss, "bits_per_byte": loss / 2.2, "tokens_per_s": 1000.0, "seconds": 5.0}
    return RunRecord(
        run_id=run_id,
        status="finished" if finished else "diverged",
        spec=encode(run),
        variant=dict(variant.levels),
        metrics=metrics if finished else {"diverged_step": 7.0, "last_finite_loss": 9.0},
        reason="" if finished else "the loss was not finite at step 7",
        order_hash=f"order {run.seed}",
        initial_parameters={"embedding.weight": f"320x32:{run.seed}"},
        evidence={"loss": "measured", "speed": "measured"},
        environment={"device": "cpu"},
    )
