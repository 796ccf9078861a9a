"""Studies from Python: `from ablate import Study, sweep`. A study is run as the command line runs it, and shown.

    from ablate import Study, sweep

    study = Study(question="How many experts?", preset="cpu", n_seeds=4,
                  factors={"moe.n_routed_experts": [8, 16, 32]})
    results = sweep(study)
    results.effects

`results` shows its report in a notebook; the folder `results.folder` is that of `dsv3-ablate sweep`, and the same call
goes on where it was stopped and never repeats a run.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import ablate.report as reports
from ablate.errors import RunFailed, nearest
from ablate.report.html import render as to_html
from ablate.report.markdown import render as to_markdown
from ablate.runs import study as studies
from ablate.runs.plan import Plan
from ablate.runs.study import read_study
from ablate.spec.decoding import decode
from ablate.sweep.conduct import conduct
from ablate.sweep.console import ConsoleDisplay
from ablate.sweep.run import Options

if TYPE_CHECKING:
    from pandas import DataFrame


class Study(studies.Study):
    """A study as in a study file: the same fields, in Python's own lists and dicts.

    `question` and `preset` are needed (or the factor `preset`); dsv3-ablate's README and sweeps/ describe the others.
    ValueError for a field that there is not, with the nearest name, and for a value that it cannot have.
    """

    __slots__ = ()

    def __init__(self, **fields: Any) -> None:
        names = [f.name for f in dataclasses.fields(studies.Study)]
        for name in fields:
            if name not in names:
                raise ValueError(f"{name} is no field of a study; {nearest(name, names)}")
        made = decode(studies.Study, fields, "")
        for name in names:
            object.__setattr__(self, name, getattr(made, name))


@dataclass(frozen=True, slots=True)
class Results:
    """A study that was run. In a notebook its last line shows the report; in a script read its attributes."""

    folder: Path
    content: reports.ReportContent

    @property
    def answer(self) -> tuple[str, ...]:
        """The sentences at the head of the report."""
        return self.content.answer

    @property
    def effects(self) -> DataFrame:
        """A row per effect: component, at, estimate, low, high (nats per token, with minus without), n, verdict.

        Of a design that compares no pairs, a row per component and index (`first`, `last`, `owen`) instead.
        """
        from pandas import DataFrame

        result = self.content.result
        if result.comparisons:
            return DataFrame(
                [
                    {"component": c.name.removesuffix(f" at {c.at}"), "at": c.at, "with": c.with_variant,
                     "without": c.without_variant, "estimate": c.loss.estimate, "low": c.loss.low,
                     "high": c.loss.high, "n": c.loss.n, "verdict": c.loss.verdict}
                    for c in result.comparisons
                ]
            )  # fmt: skip
        found = result.attribution.effects if result.attribution else {}
        return DataFrame(
            [
                {"component": name, "index": index, "estimate": number.estimate, "low": number.low,
                 "high": number.high, "n": effect.n, "verdict": effect.verdict if index == effect.verdict_from else ""}
                for name, effect in found.items()
                for index, number in effect.indices.items()
            ],
            columns=["component", "index", "estimate", "low", "high", "n", "verdict"],
        )  # fmt: skip

    @property
    def runs(self) -> DataFrame:
        """A row per planned run: variant, its levels, seed, status, and every metric that it recorded."""
        from pandas import DataFrame

        return DataFrame(
            [
                {"variant": run.variant, "seed": run.seed, "status": run.status, "run_id": run.run_id}
                | dict(v.planned.levels)
                | (dict(run.record.metrics) if run.record else {})
                for v in self.content.result.variants
                for run in v.runs
            ]
        )

    def _repr_html_(self) -> str:
        """The report in a frame of its own, so that its style is not the notebook's."""
        from html import escape

        page = escape(to_html(self.content))
        return f'<iframe srcdoc="{page}" style="width:100%;height:900px;border:0" sandbox></iframe>'

    def _repr_markdown_(self) -> str:
        return to_markdown(self.content)

    def __repr__(self) -> str:
        return f"Results of {self.folder}: {' '.join(self.answer)}"


def sweep(
    study: studies.Study | str | Path,
    *,
    out: str | Path | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
) -> Results | Plan:
    """Run what of a study has no record yet, write its report, and return both; with `dry_run` the plan alone.

    study: a `Study`, or the path of a study file. out: the folder of the results; default: a name that the same study
    finds again. jobs: runs at a time. Progress goes to stderr, a line for each run where that is no terminal.
    ValueError for bad input, before anything is spent; RunFailed if a run failed, with the folder whose records stay.
    """
    asked = study if isinstance(study, studies.Study) else read_study(Path(study))
    options = Options(out=None if out is None else Path(out), n_parallel=jobs, dry_run=dry_run)
    with _no_main():
        done = conduct(asked, options, ConsoleDisplay())
    if done.outcome is None:
        return done.plan
    if done.outcome.interrupted:
        raise KeyboardInterrupt(f"stopped; the same call goes on from {done.folder}")
    content = reports.build(done.folder)
    reports.write(content)
    failed = [status for status in done.outcome.status.values() if status == "failed"]
    if failed:
        raise RunFailed(f"{len(failed)} runs failed; {done.folder}/report.md says which and why")
    return Results(done.folder, content)


@contextmanager
def _no_main() -> Iterator[None]:
    """While processes are started: a fresh one would run the caller's script again, and so the study in it."""
    known = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = known


def report(folder: str | Path) -> Results:
    """The results in a study's folder, without running anything. ValueError if it holds none."""
    return Results(Path(folder), reports.build(Path(folder)))
