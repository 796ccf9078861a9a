"""Tables of what was measured beside loss and speed: accepted drafts, expert loads, and whatever else was recorded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ablate.attribution.study.compare import LOSS, SPEED, Metric, StudyResult
from ablate.quantities import NONE, number, short
from ablate.report.cleaning import clean
from ablate.report.names import confidence
from ablate.report.tables.table import Columns, Table, make, text

# Metric -> its heading and decimals.
ROUTING = {
    "draft_acceptance": ("Drafts accepted", 3),
    "max_violation": ("Largest load over mean − 1", 3),
    "load_entropy": ("Load entropy (1 is even)", 4),
    "dead_experts": ("Dead experts", 1),
}
SHOWN_ELSEWHERE = {LOSS, "bits_per_byte", SPEED, "step_s", "peak_memory_bytes", *ROUTING}


def routing(result: StudyResult) -> Table:
    """Accepted drafts and expert loads, of the variants that have them."""
    shown = [name for name in ROUTING if any(name in v.metrics for v in result.variants)]
    rows = [
        [v.name, *(_with_half_width(v.metrics.get(n), partial(number, decimals=ROUTING[n][1])) for n in shown)]
        for v in result.variants
        if any(name in v.metrics for name in shown)
    ]
    columns: Columns = [text("Variant"), *(ROUTING[name][0] for name in shown)]
    note = f"mean over seeds ± half of the {confidence(result)} interval, on the held-out windows at the end of the run"
    return make("Drafting and expert loads", columns, rows, note)


def other_metrics(result: StudyResult) -> Table:
    """Whatever else the records hold, in a row for each metric."""
    shown = SHOWN_ELSEWHERE | {f"{name}_{LOSS}" for name in result.held_out_sets}
    names = sorted({name for v in result.variants for name in v.metrics} - shown)
    columns: Columns = [text("Figure"), *(clean(v.name) for v in result.variants)]
    rows = [[name, *(_with_half_width(v.metrics.get(name), short) for v in result.variants)] for name in names]
    note = f"mean over seeds ± half of the {confidence(result)} interval" if rows else ""
    return make("Everything else that was recorded", columns, rows, note)


def _with_half_width(metric: Metric | None, say: Callable[[float], str]) -> str:
    """The mean over seeds ± half of its interval, both printed by `say`."""
    if metric is None:
        return NONE
    return say(metric.mean) if metric.high is None else f"{say(metric.mean)} ± {say(metric.high - metric.mean)}"
