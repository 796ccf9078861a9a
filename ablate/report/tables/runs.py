"""Tables of variants and their runs: losses, sizes and budgets, points of curves, every run and the lost ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ablate.attribution.study.compare import LOSS, SPEED, Run, StudyResult, VariantResult, registry_order
from ablate.quantities import NONE, between, number, percent, plural, scaled, short, whole
from ablate.report.cleaning import clean
from ablate.report.curves import Curve
from ablate.report.names import confidence
from ablate.report.tables.budget import share_of_budget
from ablate.report.tables.table import Columns, Table, make, text

CURVE_ROWS = 8  # points of a curve that the table shows


def variants(result: StudyResult) -> Table:
    """Loss of every variant, on the corpus's own held-out text and on further sets."""
    sets = result.held_out_sets
    columns: Columns = [text("Variant"), "Loss, nats/token", f"{confidence(result)} interval", "Bits/byte"]
    columns += [clean(f"{name}, nats/token") for name in sets] + ["Seeds", "Tokens", "Learning rate"]
    rows = []
    for v in result.variants:
        loss = v.metrics.get(LOSS)
        rows.append([
            v.name,
            _mean(v, LOSS),
            between(loss.low, loss.high) if loss else NONE,
            _mean(v, "bits_per_byte"),
            *(_mean(v, f"{name}_{LOSS}") for name in sets),
            _seeds(v),
            scaled(v.planned.n_tokens),
            short(v.planned.learning_rate),
        ])  # fmt: skip
    return make("Loss of every variant", columns, rows)


def _mean(v: VariantResult, name: str) -> str:
    return number(v.metrics[name].mean if name in v.metrics else None)


def _seeds(v: VariantResult) -> str:
    finished, planned = len(v.finished), len(v.runs)
    return str(planned) if finished == planned else f"{finished} of {planned}"


def sizes(result: StudyResult) -> Table:
    """What each variant is, and what it was given."""
    columns: Columns = [text("Variant"), "Parameters", "Activated", "Trained", "Steps", "Tokens a run", "FLOP a run",
                        "Learning rate", text("Levels")]  # fmt: skip
    rows = []
    for v in result.variants:
        levels = ", ".join(f"{name} {v.planned.levels[name]}" for name in sorted(v.planned.levels, key=registry_order))
        parameters = [scaled(v.planned.cost.get(f"{kind}_parameters")) for kind in ("total", "activated", "trained")]
        p = v.planned
        rows.append([v.name, *parameters, whole(p.n_steps), whole(p.n_tokens), scaled(p.flops, "FLOP"),
                     short(p.learning_rate), levels])  # fmt: skip
    return make("Sizes and budgets", columns, rows)


def curve_points(lines: Sequence[Curve]) -> Table:
    """A few points of each curve, the last always among them."""
    columns: Columns = [text("Variant"), "Tokens", "FLOP", "Loss, nats/token", "Range over seeds", "Seeds"]
    rows = []
    for line in lines:
        step = max(math.ceil(len(line.points) / CURVE_ROWS), 1)
        for point in line.points[::-1][::step][::-1]:
            rows.append([line.variant, scaled(point.n_tokens), scaled(point.flops, "FLOP"), number(point.mean),
                         between(point.low, point.high), str(point.n)])  # fmt: skip
    return make("Points of the loss curves", columns, rows)


def runs(result: StudyResult) -> Table:
    """Every planned run."""
    columns: Columns = [text("Variant"), "Seed", text("Status"), "Loss, nats/token", "Tokens/s", "Seconds", "Attempts",
                        text("Run")]  # fmt: skip
    rows = [_run(run) for run in result.runs]
    if result.plan.match == "seconds":
        columns.insert(-2, "Training over budget")
        for row, run in zip(rows, result.runs, strict=True):
            row.insert(-2, percent(share_of_budget(run, result), 3))
    return make("Every run", columns, rows)


def _run(run: Run) -> list[str]:
    metrics = run.record.metrics if run.record and run.status == "finished" else {}
    attempts = str(max(len(run.record.attempts), 1)) if run.record else NONE
    return [run.variant, str(run.seed), run.status, number(metrics.get(LOSS)), whole(metrics.get(SPEED)),
            number(metrics.get("seconds"), 1), attempts, run.run_id]  # fmt: skip


def lost_runs(result: StudyResult) -> Table:
    """Runs that are in no mean, with the reason of each."""
    lost = [run for run in result.runs if run.status != "finished"]
    rows = [[run.variant, str(run.seed), run.status, run.reason or "no reason was given", run.run_id] for run in lost]
    columns: Columns = [text("Variant"), "Seed", text("Status"), text("Why"), text("Run")]
    note = f"{plural(len(lost), 'run')} of {len(result.runs)}; none of them is in any mean"
    return make("Runs that are in no mean", columns, rows, note)
