"""How to repeat a study, to quote its numbers, and to cite it: texts to copy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from ablate.attribution.study.compare import StudyResult
from ablate.quantities import number, plural, short, signed
from ablate.report.cleaning import clean
from ablate.report.names import matched
from ablate.report.waterfall import COST, Waterfall

REPOSITORY = "ADDRESS-OF-THE-REPOSITORY"  # the project has published none: whoever copies the block fills it in
RUN_ID = re.compile(r"[0-9a-f]{16}")
SPECIAL = re.compile(r"[\\{}$&#^_~%]")  # of LaTeX
END = "END-OF-STUDY"


def commands(result: StudyResult, study_file: str, n_recorded: int = 0) -> tuple[str, ...]:
    """Clone, check out what ran, install, write the study's file, run, report. `n_recorded`: steps of the ranks."""
    commits = _commits(result)
    lines = [f"git clone {REPOSITORY} dsv3-ablate && cd dsv3-ablate"]
    if len(commits) == 1 and re.fullmatch(r"[0-9a-f]{7,40}", commits[0]):
        lines.append(f"git checkout {commits[0]}")
    elif commits:
        lines.append("# the runs came from several commits; each record names its own")
    lines.append("python3 -m venv .venv && .venv/bin/pip install -q -e .")
    if study_file:
        end = END
        while end in study_file:
            end += "-"
        lines += [f"cat > study.toml <<'{end}'", *study_file.splitlines(), end]
    recorded = f" --timeline {n_recorded}" if n_recorded else ""
    lines.append(f".venv/bin/dsv3-ablate sweep study.toml --out results/again{recorded}")
    lines.append(".venv/bin/dsv3-ablate report results/again")
    return tuple(lines)


def _commits(result: StudyResult) -> list[str]:
    """The commits of the finished runs, each once."""
    found = (
        run.record.environment.get("commit", {})
        for v in result.variants
        for run in v.finished
        if run.record is not None
    )
    return list(dict.fromkeys(clean(c.get("hash", "")) for c in found if isinstance(c, dict) and c.get("hash")))


def citation(result: StudyResult) -> str:
    """A BibTeX entry of the study, with the hash of what was asked where there is one."""
    plan = result.plan
    asked = plan.asked
    name = asked.hash[:12] if asked is not None else (plan.variants[0].run_ids or ("study",))[0][:12]
    key = re.sub(r"[^0-9a-zA-Z]", "", name) or "study"
    commits = _commits(result)
    notes = [f"preset {_plain(plan.preset)}", f"equal {_plain(matched(result))}", plural(plan.n_runs, "run")]
    notes += [f"question {_plain(asked.hash)}"] if asked is not None else []
    notes += [f"commit {_plain(commits[0])}"] if len(commits) == 1 else []
    lines = [
        f"@misc{{dsv3-ablate-{key},",
        f"  title = {{{{{_plain(plan.question) or 'An ablation study'}}}}},",
        "  howpublished = {dsv3-ablate, report of a study},",
        *([f"  year = {{{datetime.fromtimestamp(asked.time_s, UTC).year}}},"] if asked and asked.time_s else []),
        f"  note = {{{'; '.join(notes)}}},",
        "}",
    ]
    return "\n".join(lines)


def _plain(text: object) -> str:
    """Text that LaTeX takes as it is."""
    return SPECIAL.sub(" ", clean(text)).strip()


def values(result: StudyResult, steps: Waterfall | None) -> Iterator[str]:
    """Each effect as value ± half of its interval, in one line."""
    sure = f"{short(100 * result.plan.interval_confidence)} %"
    for c in result.comparisons:
        if c.loss.estimate is not None:
            yield _value(clean(c.name), c.loss.estimate, c.loss.low, c.loss.high, sure, c.loss.n)
    if result.attribution is not None and not result.comparisons:
        for name, effect in result.attribution.effects.items():
            shown = effect.indices.get(effect.verdict_from or "")
            if shown is not None and shown.estimate is not None:
                index = f"{effect.verdict_from} "
                yield _value(clean(name), shown.estimate, shown.low, shown.high, f"{index}{sure}", effect.n)
    if steps is not None and steps.unit == COST:
        yield f"all together: {steps.said(steps.total)} {COST}"


def _value(name: str, estimate: float, low: float | None, high: float | None, what: str, n: int) -> str:
    half = "" if low is None or high is None else f" ± {number((high - low) / 2)}"
    return f"{name}: {signed(estimate)}{half} nats/token ({what} interval, n = {n})"


def links(result: StudyResult) -> dict[str, str]:
    """Run -> the path of its record beside the report."""
    return {
        run.run_id: f"records/{run.run_id}.json"
        for run in result.runs
        if run.record is not None and RUN_ID.fullmatch(run.run_id)
    }
