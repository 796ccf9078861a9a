"""What was asked before the first run, whether it is still that, and the answer in the metric that was stated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ablate.attribution.study.compare import StudyResult
from ablate.attribution.study.primary import PrimaryResult
from ablate.attribution.verdicts import Effect
from ablate.quantities import NONE, listed, number, percent, short, signed, signed_between, times
from ablate.report.cleaning import clean
from ablate.report.facts import Fact
from ablate.report.names import confidence, label
from ablate.report.tables.table import Columns, Table, make, text
from ablate.runs.asked import differences
from ablate.runs.plan import resolved
from ablate.runs.primary import PRIMARY
from ablate.runs.study import read_study

RECORDED = {"question", "budget", "seeds", "variants"}  # of a document: told by other lines of the report


def asked(result: StudyResult, study_file: Path) -> tuple[Fact, ...]:
    """Question, hypothesis, metric and margin as they were stated, when, and whether the study still says so."""
    plan, found = result.plan, result.plan.asked
    metric = PRIMARY[plan.primary_metric]
    margin = plan.margin_nats if plan.primary_margin is None else plan.primary_margin
    better = "lower" if metric.lower_is_better else "higher"
    size = percent(margin) if metric.scale == "ratio" else f"{short(margin)} {metric.unit}".strip()
    lines = [
        ("Hypothesis", clean(plan.hypothesis) or "none was stated"),
        ("Primary metric", f"{metric.title} ({better} is better)"),
        ("Margin", f"differences up to {size} count as negligible"),
    ]
    if found is None:
        return tuple(Fact(label=name, value=value) for name, value in [*lines, ("Stated", "by a version that kept no "
                     "record of what was asked before the first run")])  # fmt: skip
    when = NONE if found.time_s is None else datetime.fromtimestamp(found.time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines.append(("Stated", f"{when}, with the plan and before the first run; hash {found.hash}"))
    lines.append(("Since then", _since(result, study_file)))
    return tuple(Fact(label=name, value=clean(value)) for name, value in lines)


def _since(result: StudyResult, study_file: Path) -> str:
    found = result.plan.asked
    assert found is not None
    if not found.intact:
        return "what was asked has been altered in plan.json: it no longer has its hash"
    try:
        study = read_study(study_file)
    except ValueError as error:
        return f"not known: the study file cannot be read ({error})"
    changed = differences(found, study, resolved(result.plan))
    if not changed:
        return "unchanged: question, design, seeds, variants, margin and budget are those that were asked"
    return f"the study file now says otherwise: {listed(_difference(name, result, study) for name in changed)}"


def _difference(name: str, result: StudyResult, study: object) -> str:
    assert result.plan.asked is not None
    before = result.plan.asked.document.get(name)
    if name in RECORDED or before is None:
        return name
    return f"{name} (it was {before!r}, and is {getattr(study, name, None)!r})"


def primary_table(found: PrimaryResult, result: StudyResult) -> Table:
    """Each comparison in the primary metric; the loss has its table already, and so has what no pair is compared in."""
    metric = found.metric
    ratio = metric.scale == "ratio"
    columns: Columns = [text("Component"), text("Verdict"), "With over without" if ratio else "With − without",
                        f"{confidence(result)} interval", text("Why there is none")]  # fmt: skip
    shown = found.effects if metric.key != "nats_per_token" else ()
    rows = [[label(c), effect.verdict, *_numbers(effect, ratio=ratio), effect.reason or ""] for c, effect in shown]
    family = max((effect.family for _, effect in shown), default=1)
    note = "The metric that the study stated before its first run"
    note += f"; verdicts at its own margin, after Holm's correction over {family} effects." if family > 1 else "."
    return make(f"Primary metric: {metric.title}", columns, rows, note if rows else "")


def _numbers(effect: Effect, *, ratio: bool) -> tuple[str, str]:
    if effect.estimate is None:
        return NONE, NONE
    if not ratio:
        return signed(effect.estimate), signed_between(effect.low, effect.high)
    ends = [math.exp(end) for end in (effect.low, effect.high) if end is not None]
    interval = f"{number(ends[0], 3)} to {number(ends[1], 3)}" if len(ends) == 2 else NONE
    return times(math.exp(effect.estimate)), interval


def primary_sentence(found: PrimaryResult, result: StudyResult, why: str) -> Iterator[str]:
    """The answer in the primary metric, for the head of the report; nothing where the loss is that metric.

    `why`: why the runs give no cost in compute, which a design that compares no pairs may be asked for.
    """
    if found.metric.key == "nats_per_token":
        return
    if not found.effects:
        if why:
            yield f"The primary metric that was stated, {found.metric.title}, is not given by these runs: {clean(why)}."
        return
    ratio = found.metric.scale == "ratio"
    said = []
    for c, effect in found.effects:
        value, interval = _numbers(effect, ratio=ratio)
        known = f"{value} ({interval}), {effect.verdict}" if effect.low is not None else f"none, {effect.reason}"
        said.append(f"{clean(c.name)} {known}")
    word = "with over without" if ratio else "with minus without"
    yield (
        f"Stated beforehand as the primary metric, {found.metric.title}, {word} ({confidence(result)} intervals): "
        f"{'; '.join(said)}."
    )
