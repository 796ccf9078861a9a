"""Studies with factors and planted losses: laid out by the program's own planner, records made in code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ablate.attribution.study.compare import StudyResult, compare
from ablate.runs.plan import Plan, PlannedVariant, make_plan
from ablate.runs.record import RunRecord
from ablate.runs.study import Study
from ablate.spec.decoding import encode
from ablate.sweep.variants import variants

Loss = Callable[[PlannedVariant, int], float]


def study(**fields: Any) -> Study:
    return Study(**({"question": "?", "n_seeds": 4, "without": ("distill",)} | fields))


def planned(asked: Study, corpora: Mapping[str, str] | None = None) -> tuple[Plan, dict[str, Any]]:
    """The plan and its runs; `corpora`: preset -> hash, of those that read their own."""
    base = asked.load_preset()
    named, design = variants(asked, base)
    other = {
        v.name: {"hash": corpora[v.spec.preset.name], "vocab_size": 1, "bytes_per_token": 2.0}
        for v in named
        if corpora and v.spec.preset.name in corpora
    }
    return make_plan(asked, base, named, design, corpus_hash="c0ffee", corpus={}, other_corpora=other)


def result(asked: Study, loss: Loss, lost: tuple[str, int] | None = None, **options: Any) -> StudyResult:
    """What a report would say of runs whose loss is `loss(variant, seed)`; `lost` is a run without a record."""
    plan, runs = planned(asked, **options)
    return compare(plan, records(plan, runs, loss, lost), [])


def records(plan: Plan, runs: Mapping[str, Any], loss: Loss, lost: tuple[str, int] | None = None) -> list[RunRecord]:
    return [
        _record(run_id, runs[run_id], v, loss(v, runs[run_id].seed))
        for v in plan.variants
        for run_id in v.run_ids
        if (v.name, runs[run_id].seed) != lost
    ]


def noise(sd: float = 0.002) -> Callable[[], float]:
    generator = np.random.default_rng(3)
    return lambda: float(generator.normal(0, sd))


def _record(run_id: str, run: Any, v: PlannedVariant, loss: float) -> RunRecord:
    metrics = {"nats_per_token": loss, "bits_per_byte": loss / 2, "tokens_per_s": 1000.0 + 10 * run.seed,
               "seconds": 5.0, "n_tokens": float(v.n_tokens), "max_violation": 0.5 + 0.01 * run.seed}  # fmt: skip
    return RunRecord(
        run_id=run_id,
        status="finished",
        spec=encode(run),
        variant=dict(v.levels),
        metrics=metrics,
        order_hash=f"order {run.seed} of {run.corpus_hash}",
        initial_parameters={"embedding.weight": f"{run.corpus_hash}:{run.seed}"},
        evidence={"loss": "measured", "speed": "measured"},
        environment={"device": "cpu"},
    )
