"""The tables of a report, cells already as text: HTML, Markdown and terminal show the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ablate.attribution.indices import TITLES
from ablate.attribution.results import Number
from ablate.attribution.study.compare import (
    LOSS,
    SPEED,
    TARGET_NATS,
    Comparison,
    Metric,
    Run,
    StudyResult,
    VariantResult,
    registry_order,
)
from ablate.attribution.verdicts import NOT_RESOLVED, Effect
from ablate.report.curves import Curve
from ablate.report.format import (
    NONE,
    between,
    clean,
    listed,
    memory,
    number,
    plural,
    scaled,
    short,
    signed,
    signed_between,
    times,
    whole,
)

CURVE_ROWS = 8  # points of a curve that the table shows
SHOWN_ELSEWHERE = {LOSS, "bits_per_byte", SPEED, "step_s", "peak_memory_bytes", "draft_acceptance", "max_violation",
                   "load_entropy", "dead_experts"}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    label: str
    numeric: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of texts. One without rows is not shown, but for the one that says "none"."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


Columns: TypeAlias = list[Column | str]  # a text is a column of numbers


def _table(title: str, columns: Columns, rows: Iterable[Sequence[str]], note: str = "") -> Table:
    heads = tuple(c if isinstance(c, Column) else Column(label=c) for c in columns)
    lines = tuple(tuple(clean(cell) for cell in row) for row in rows)
    assert all(len(row) == len(heads) for row in lines)
    return Table(title=title, columns=heads, rows=lines, note=note)


def text(label: str) -> Column:
    return Column(label=label, numeric=False)


def confidence(result: StudyResult) -> str:
    return f"{100 * result.plan.confidence:.4g} %"


def variants(result: StudyResult) -> Table:
    """Loss of every variant."""
    sets = result.held_out_sets
    columns: Columns = [text("Variant"), "Loss, nats/token", f"{confidence(result)} interval", "Bits/byte"]
    columns += [clean(f"{name}, nats/token") for name in sets] + ["Seeds", "Tokens", "Learning rate"]
    rows = []
    for v in result.variants:
        loss = v.metrics.get(LOSS)
        rows.append([
            v.name,
            number(loss.mean if loss else None),
            between(loss.low, loss.high) if loss else NONE,
            number(v.metrics["bits_per_byte"].mean if "bits_per_byte" in v.metrics else None),
            *(_mean(v, f"{name}_{LOSS}", number) for name in sets),
            _seeds(v),
            scaled(v.n_tokens),
            short(v.learning_rate),
        ])  # fmt: skip
    return _table("Loss of every variant", columns, rows)


def _seeds(v: VariantResult) -> str:
    finished, planned = len(v.finished), len(v.runs)
    return str(planned) if finished == planned else f"{finished} of {planned}"


def _mean(v: VariantResult, name: str, say: Callable[[float | None], str]) -> str:
    return say(v.metrics[name].mean if name in v.metrics else None)


def label(comparison: Comparison) -> str:
    """mla, instead of gqa."""
    chosen = [c for c in comparison.changes if not c.forced]
    if chosen and all(c.with_level == "on" for c in chosen):
        found = f"{comparison.name}, instead of {' + '.join(c.without_level for c in chosen)}"
    else:
        pairs = [f"{c.component}: {c.with_level} instead of {c.without_level}" for c in chosen]
        found = ", ".join(pairs) or comparison.name
    forced = [c.component for c in comparison.changes if c.forced]
    return f"{found} (and with it {listed(forced)})" if forced else found


def further_seeds(effect: Effect) -> str:
    if effect.verdict != NOT_RESOLVED:
        return "0"
    return f"+{effect.seeds_to_resolve}" if effect.seeds_to_resolve else NONE


def effects(result: StudyResult) -> Table:
    """What each component is worth in loss; further held-out sets have rows of their own."""
    columns: Columns = [text("Component"), text("Verdict"), "With − without, nats/token",
                        f"{confidence(result)} interval", "Seeds", "More seeds to resolve"]  # fmt: skip
    rows = []
    for c in result.comparisons:
        rows.append([label(c), *_effect(c.loss, c)])
        rows += [[f"{label(c)} (on held-out set {name})", *_effect(e, c)] for name, e in c.other_sets.items()]
    return _table("Effects on the held-out loss", columns, rows)


def _effect(effect: Effect, c: Comparison) -> list[str]:
    verdict = effect.verdict if effect.reason is None else f"{effect.verdict} (no interval)"
    n = str(effect.n) if c.pairing_ok else f"{effect.n} runs, unpaired"
    interval = signed_between(effect.low, effect.high)
    return [verdict, signed(effect.estimate), interval, n, further_seeds(effect)]


SHOWN = ("first", "last", "owen")


def attribution(result: StudyResult) -> Table:
    """How a designed study splits the distance between its ends; empty for a comparison."""
    found = result.attribution
    columns: Columns = [text("Component"), text("Verdict"), *(TITLES[index] for index in SHOWN), "More runs to resolve"]
    if found is None:
        return _table("The total split among the components", columns, ())
    rows = []
    for name, effect in found.effects.items():
        more = NONE if effect.runs_to_resolve is None else str(effect.runs_to_resolve)
        numbers = [_attributed(effect.indices[index]) for index in SHOWN]
        rows.append([name, effect.verdict, *numbers, more])
    rows.append(["total", "", "", "", _attributed(found.total), ""])
    return _table("The total split among the components, nats per token, on minus off", columns, rows)


def interactions(result: StudyResult) -> Table:
    """Pairs whose joint effect is not the sum of theirs; those that a study leaves undefined are not listed."""
    found = result.attribution
    pairs = [] if found is None else [pair for pair in found.interactions if pair.number.estimate is not None]
    rows = [
        [
            " x ".join(pair.components),
            _attributed(pair.number),
            NONE if pair.adjusted_p is None else f"{pair.adjusted_p:.3f}",
        ]
        for pair in pairs
    ]
    return _table("Interactions (Banzhaf index), nats per token", [text("Pair"), "Estimate", "Adjusted p"], rows)


def _attributed(number: Number) -> str:
    if number.estimate is None:
        return NONE
    if number.low is None or number.high is None:
        return signed(number.estimate)
    return f"{signed(number.estimate)} ({signed_between(number.low, number.high)})"


def noise(result: StudyResult) -> Table:
    """How many seeds this study's noise asks for."""
    margin = short(result.plan.margin_nats)
    columns: Columns = [text("Component"), "Sd of the difference of a pair, nats", f"Seeds to resolve {TARGET_NATS}",
                        f"Seeds to show 0 within ±{margin}"]  # fmt: skip
    rows = [
        [label(c), number(c.loss.sd if c.pairing_ok else None), seeds(c.target_seeds), seeds(c.margin_seeds)]
        for c in result.comparisons
    ]
    note = "Seeds in all, of both variants, that decide with 80 % power if the true difference is the one named."
    return _table("How many seeds the noise asks for", columns, rows, note)


def seeds(n: int | None) -> str:
    return NONE if n is None else whole(n)


def speed(result: StudyResult) -> Table:
    """Speed, memory and arithmetic."""
    columns: Columns = [text("Variant"), "Tokens/s, median", "Range over seeds", "ms/step", text("Evidence"),
               "Training FLOP/token", "Peak memory", "KV cache/token"]  # fmt: skip
    rows = []
    for v in result.variants:
        tokens = v.metrics.get(SPEED)
        rows.append([
            v.name,
            whole(tokens.median if tokens else None),
            between(tokens.minimum, tokens.maximum, 0) if tokens else NONE,
            number(1000 * v.metrics["step_s"].median, 1) if "step_s" in v.metrics else NONE,
            evidence(v, "speed"),
            scaled(v.cost.get("training_flops_per_token"), "FLOP"),
            peak_memory(v),
            kv_bytes(v),
        ])  # fmt: skip
    return _table("Speed, memory and arithmetic", columns, rows)


def evidence(v: VariantResult, group: str) -> str:
    return " and ".join(v.evidence.get(group, ())) or NONE


def peak_memory(v: VariantResult) -> str:
    return memory(v.metrics["peak_memory_bytes"].median) if "peak_memory_bytes" in v.metrics else NONE


def kv_bytes(v: VariantResult) -> str:
    found = v.cost.get("kv_cache_bytes_per_token")
    return NONE if found is None else f"{whole(found)} B"


def ratio(effect: Effect | None) -> tuple[str, str]:
    """Speed with over without, and its interval."""
    if effect is None or effect.estimate is None:
        return NONE, NONE
    low, high = (None if end is None else math.exp(end) for end in (effect.low, effect.high))
    return times(math.exp(effect.estimate)), between(low, high, 3)


def speed_verdict(effect: Effect | None) -> str:
    names = {"gain": "faster", "harm": "slower", "no effect within the margin": "equal within 2 %"}
    return NONE if effect is None else names.get(effect.verdict, effect.verdict)


def speed_ratios(result: StudyResult) -> Table:
    """Speed with over without; why there is none stands in the note."""
    columns: Columns = [text("Component"), text("Verdict"), "Tokens/s, with over without",
                        f"{confidence(result)} interval", text("Evidence")]  # fmt: skip
    rows = [
        [label(c), speed_verdict(c.speed), *ratio(c.speed), " and ".join(c.speed_evidence) or NONE]
        for c in result.comparisons
    ]
    why = "; ".join(f"{c.name}: {c.speed_reason}" for c in result.comparisons if c.speed_reason)
    return _table("Speed with over speed without", columns, rows, clean(why))


def sizes(result: StudyResult) -> Table:
    """What each variant is, and what it was given."""
    columns: Columns = [text("Variant"), "Parameters", "Activated", "Trained", "Steps", "Tokens a run", "FLOP a run",
               "Learning rate", text("Levels")]  # fmt: skip
    rows = []
    for v in result.variants:
        levels = ", ".join(f"{name} {level}" for name, level in sorted(v.levels.items(), key=level_order))
        parameters = [scaled(v.cost.get(f"{kind}_parameters")) for kind in ("total", "activated", "trained")]
        steps = whole(v.n_steps)
        rows.append([v.name, *parameters, steps, whole(v.n_tokens), scaled(v.flops, "FLOP"),
                     short(v.learning_rate), levels])  # fmt: skip
    return _table("Sizes and budgets", columns, rows)


def level_order(item: tuple[str, str]) -> tuple[int, str]:
    return registry_order(item[0])


def routing(result: StudyResult) -> Table:
    """Drafting and expert loads, of the variants that have them."""
    names = {"draft_acceptance": ("Drafts accepted", lambda x: number(x, 3)),
             "max_violation": ("Largest load over mean − 1", lambda x: number(x, 3)),
             "load_entropy": ("Load entropy (1 is even)", lambda x: number(x, 4)),
             "dead_experts": ("Dead experts", lambda x: number(x, 1))}  # fmt: skip
    shown = [name for name in names if any(name in v.metrics for v in result.variants)]
    rows = [
        [v.name, *(_with_interval(v.metrics.get(name), names[name][1]) for name in shown)]
        for v in result.variants
        if any(name in v.metrics for name in shown)
    ]
    columns: Columns = [text("Variant"), *(names[name][0] for name in shown)]
    note = f"mean over seeds ± half of the {confidence(result)} interval, on the held-out windows at the end of the run"
    return _table("Drafting and expert loads", columns, rows, note)


def _with_interval(metric: Metric | None, say: Callable[[float], str]) -> str:
    if metric is None:
        return NONE
    return say(metric.mean) if metric.high is None else f"{say(metric.mean)} ± {say(metric.high - metric.mean)}"


def other_metrics(result: StudyResult) -> Table:
    """Whatever else the records hold, a row for each figure."""
    shown = SHOWN_ELSEWHERE | {f"{name}_{LOSS}" for name in result.held_out_sets}
    names = sorted({name for v in result.variants for name in v.metrics} - shown)
    columns: Columns = [text("Figure"), *(clean(v.name) for v in result.variants)]
    rows = [
        [name, *(_with_interval(v.metrics.get(name), lambda x: f"{x:.4g}") for v in result.variants)] for name in names
    ]
    note = f"mean over seeds ± half of the {confidence(result)} interval" if rows else ""
    return _table("Everything else that was recorded", columns, rows, note)


def curve_points(lines: Sequence[Curve]) -> Table:
    """A few points of each curve, the last always."""
    columns: Columns = [text("Variant"), "Tokens", "FLOP", "Loss, nats/token", "Range over seeds", "Seeds"]
    rows = []
    for line in lines:
        step = max(math.ceil(len(line.points) / CURVE_ROWS), 1)
        for point in line.points[::-1][::step][::-1]:
            rows.append([line.variant, scaled(point.n_tokens), scaled(point.flops, "FLOP"), number(point.mean),
                         between(point.low, point.high), str(point.n)])  # fmt: skip
    return _table("Points of the loss curves", columns, rows)


def runs(result: StudyResult) -> Table:
    """Every planned run."""
    columns: Columns = [text("Variant"), "Seed", text("Status"), "Loss, nats/token", "Tokens/s", "Seconds", "Attempts",
               text("Run")]  # fmt: skip
    return _table("Every run", columns, [_run(run) for run in result.runs])


def _run(run: Run) -> list[str]:
    metrics = run.record.metrics if run.record and run.status == "finished" else {}
    attempts = str(max(len(run.record.attempts), 1)) if run.record else NONE
    return [run.variant, str(run.seed), run.status, number(metrics.get(LOSS)), whole(metrics.get(SPEED)),
            number(metrics.get("seconds"), 1), attempts, run.run_id]  # fmt: skip


def lost_runs(result: StudyResult) -> Table:
    """Runs that are in no mean, with why."""
    lost = [run for run in result.runs if run.status != "finished"]
    rows = [[run.variant, str(run.seed), run.status, run.reason or "no reason was given", run.run_id] for run in lost]
    columns: Columns = [text("Variant"), "Seed", text("Status"), text("Why"), text("Run")]
    note = f"{plural(len(lost), 'run')} of {len(result.runs)}; none of them is in any mean" if lost else "none"
    return _table("Runs that are in no mean", columns, rows, note)
