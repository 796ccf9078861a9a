"""The report as one JSON document: `report --format json`, `run --json`, and the data inside the HTML file.

Keys: `format`, `format_version`; `question`, `answer` (sentences), `complete`; `study` (preset, design, match, budget,
seeds, margin_nats, confidence, corpus); `variants` (name, levels, cost, learning_rate, n_steps, n_tokens, flops,
evidence, backends, `runs` by seed, `metrics` by name with mean, interval, median, range and the value of each seed);
`effects` (with minus without: `loss` and `held_out_sets` in nats per token, `speed` as a ratio, `pairing_ok`,
`pairing_gain`, `differences` by seed, seeds that planning needs; `family` is how many effects Holm's correction of a
verdict is over); `gains` (per comparison, natural logarithms of the cost without over the cost with at `target_loss`:
`tokens`, `flops` and `seconds` with interval or bound, `log_flops_per_token`, `log_flops_per_s`, evidence of each
channel, `matched`: nats at equal tokens, FLOPs, seconds); `attribution` (of a designed study, as of `attribute --json`,
or null); `watched` (figures beside the loss over the training, means over runs with their span), `expert_loads` (tokens
of each router's experts over their mean at the end, the busiest first); `asked` (what was stated before the first run,
with hash and time), `primary_metric`, `factors`, `responses` (to factors: levels with mean and difference, trend),
`cells` (effects at each combination of levels), `ladders` (effects over sizes with their trend); `tuning` (rates,
screening, effects at the shared and own rates) and `search` (trials, best, Pareto front, winners on fresh seeds), each
null where there was none; `timelines` (of each variant whose ranks were recorded: seconds by kind and stage, bubble
measured, in closed form and simulated); `pairing_breaks`; `noise`; `warnings`; `lost_runs`; `limits`; `held_equal`,
`provenance`; `repeat`; `waterfall` (shares of a design in ln of cost or in nats); `citation` (BibTeX). A number that
there is not is null.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ablate.attribution.gain.compute_gain import Gain
from ablate.attribution.study.by_cell import CellEffect
from ablate.attribution.study.compare import TARGET_NATS, Comparison, Metric, Run, VariantResult
from ablate.attribution.study.gains import ComponentGain, SplitCost
from ablate.attribution.study.ladder import Ladder
from ablate.report.content import ReportContent
from ablate.report.settings import effect, search_document, tuning_document
from ablate.report.tables import looks, timeline
from ablate.report.tables.speed import ratios

FORMAT, FORMAT_VERSION = "dsv3-ablate report", 1


def to_json(content: ReportContent) -> dict[str, Any]:
    """The report as plain data, with numbers as they are and not as they are printed."""
    result, plan = content.result, content.result.plan
    study_keys = ("preset", "preset_title", "match", "budget", "margin_nats")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "question": content.question,
        "answer": list(content.answer),
        "complete": content.complete,
        "study": {key: getattr(plan, key) for key in study_keys}
        | {"seeds": list(plan.seeds), "corpus": dict(plan.corpus)}
        | {"design": plan.design.name, "confidence": plan.interval_confidence},
        "variants": [_variant(v) for v in result.variants],
        "effects": [_comparison(c) for c in result.comparisons],
        "split_cost": _split_cost(content.compute.cost, plan.interval_confidence) if content.compute.cost else None,
        "gains": [_gain(gain) for gain in content.compute.gains],
        "asked": None if plan.asked is None else dataclasses.asdict(plan.asked),
        "primary_metric": plan.primary_metric,
        "factors": [dataclasses.asdict(factor) for factor in plan.factors],
        "responses": [dataclasses.asdict(found) for found in result.responses],
        "cells": {"unit": result.cells.unit, "effects": [_cell(effect) for effect in result.cells.effects]},
        "ladders": [_ladder(found) for found in content.ladders],
        "attribution": None if result.attribution is None else result.attribution.to_json(),
        "watched": [dataclasses.asdict(found) for found in content.watched],
        "expert_loads": [dataclasses.asdict(found) for found in content.loads],
        "pairing_breaks": [dataclasses.asdict(broken) for broken in result.pairing_breaks],
        "waterfall": None if content.waterfall is None else dataclasses.asdict(content.waterfall),
        "noise": None if result.noise is None else {"sd_nats": result.noise.sd, "df": result.noise.df},
        "tuning": tuning_document(content.tuning),
        "search": search_document(content.search, result),
        "history": looks.document(content.history),
        "timelines": timeline.document(content.timelines),
        "warnings": list(content.warnings),
        "lost_runs": [_run(run) | {"variant": run.variant} for run in result.runs if run.status != "finished"],
        "limits": list(content.limits),
        "held_equal": {fact.label: fact.value for fact in content.held_equal},
        "provenance": {fact.label: fact.value for fact in content.provenance},
        "repeat": list(content.repeat),
        "citation": content.citation,
    }


def _variant(v: VariantResult) -> dict[str, Any]:
    return {
        "name": v.name,
        "levels": dict(v.planned.levels),
        "cost": dict(v.planned.cost),
        "learning_rate": v.planned.learning_rate,
        "n_steps": v.planned.n_steps,
        "n_tokens": v.planned.n_tokens,
        "flops": v.planned.flops,
        "evidence": {group: list(kinds) for group, kinds in v.evidence.items()},
        "backends": {slot: list(kinds) for slot, kinds in v.backends.items()},
        "runs": [_run(run) for run in v.runs],
        "metrics": {name: _metric(metric) for name, metric in v.metrics.items()},
    }


def _run(run: Run) -> dict[str, Any]:
    return {"seed": run.seed, "run_id": run.run_id, "status": run.status, "reason": run.reason}


def _metric(metric: Metric) -> dict[str, Any]:
    # asdict would copy every value first, of thousands of figures.
    plain = {each.name: getattr(metric, each.name) for each in dataclasses.fields(metric)}
    return plain | {"n": metric.n, "values": {str(seed): value for seed, value in metric.values.items()}}


def _cell(effect: CellEffect) -> dict[str, Any]:
    levels = dict(effect.cell.levels)
    return {"component": effect.component, "levels": levels, "flops": effect.flops, "verdict": effect.verdict,
            "n": effect.n, **effect.number.to_json()}  # fmt: skip


def _ladder(found: Ladder) -> dict[str, Any]:
    """Without the covariance of its line, whose interval is there."""
    trend = found.trend
    line = None
    if trend is not None:
        line = {"slope_per_decade": trend.slope, "slope_interval": list(trend.slope_interval), "tau": trend.tau}
    return {
        "component": found.component,
        "unit": found.unit,
        "sizes": [dataclasses.asdict(size) for size in found.sizes],
        "trend": line,
        "prediction": None if found.prediction is None else dataclasses.asdict(found.prediction),
        "reason": found.reason,
    }


def _comparison(c: Comparison) -> dict[str, Any]:
    return {
        "name": c.name,
        "variant": c.variant,
        "with": c.with_variant,
        "without": c.without_variant,
        "changes": [
            {
                "component": change.component,
                "with": change.with_level,
                "without": change.without_level,
                "forced": change.forced,
            }
            for change in c.changes
        ],
        "loss": effect(c.loss),
        "held_out_sets": {name: effect(found) for name, found in c.other_sets.items()},
        "speed": _speed(c),
        "pairing_ok": c.pairing_ok,
        "pairing_reason": c.pairing_reason,
        "pairing_gain": None if c.pairing_gain is None else dataclasses.asdict(c.pairing_gain),
        "differences": {str(seed): value for seed, value in c.differences.items()},
        "target_nats": TARGET_NATS,
        "seeds_for_target": c.target_seeds,
        "seeds_for_margin": c.margin_seeds,
        "pair_sd_interval": None if c.pair_sd_ends is None else list(c.pair_sd_ends),
        "most_seeds_for_target": c.most_target_seeds,
        "most_seeds_for_margin": c.most_margin_seeds,
    }


def _split_cost(cost: SplitCost, confidence: float) -> dict[str, Any]:
    table = cost.table
    ends = table.intervals(confidence).tolist()
    return {
        "target_loss": cost.target.loss,
        "components": list(table.components),
        "channels": ["tokens", "flops_per_token", "flops_per_s"][: table.gains.shape[1]],
        "evidence_of_flops_per_s": cost.evidence,
        "log_gains": table.gains.tolist(),
        "intervals": ends,
        "total": table.total,
    }


def _gain(gain: ComponentGain) -> dict[str, Any]:
    return {
        "name": gain.comparison.name,
        "target_loss": gain.target.loss,
        "tokens": _log_cost(gain.tokens),
        "log_flops_per_token": gain.log_flops_per_token,
        "log_flops_per_s": gain.log_flops_per_s,
        "flops": _log_cost(gain.flops),
        "seconds": None if gain.seconds is None else _log_cost(gain.seconds),
        "evidence": gain.evidence,
        "matched": {match: effect(found) for match, found in gain.matched.items()},
    }


def _log_cost(gain: Gain) -> dict[str, Any]:
    """Ends that are not finite are null: one of them, where there is a bound only."""
    ends = {key: value if math.isfinite(value) else None for key, value in (("low", gain.low), ("high", gain.high))}
    return {"estimate": gain.estimate, **ends, "bound": gain.bound, "n": gain.n}


def _speed(c: Comparison) -> dict[str, Any]:
    """Tokens per second with the component over those without it, as a ratio."""
    found = c.speed
    ratio, low, high = ratios(found)
    return {
        "ratio": ratio,
        "low": low,
        "high": high,
        "n": found.n if found else 0,
        "verdict": found.verdict if found else None,
        "evidence": list(c.speed_evidence),
        "reason": c.speed_reason or (found.reason if found else None),
    }
