"""What papers report of the same changes, beside what this study found, and why the two cannot be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ablate.attribution.study.compare import StudyResult
from ablate.attribution.verdicts import GAIN, HARM
from ablate.components.component import ON
from ablate.evidence.published import Finding, Source, findings
from ablate.quantities import NONE, scaled, short, signed, signed_between
from ablate.report.names import PERHAPS, arrow_of, confidence, known, verdict_said
from ablate.report.tables.effects import attributed_verdict
from ablate.report.tables.table import Columns, Table, make, text

# Published metrics of which lower is better and which measure the same thing as a held-out loss: metric -> its unit.
NATS = {"Pile loss": "nats", "validation loss": "nats", "loss": "nats", "Paloma loss": "nats", "perplexity": "nats"}
OTHERS = {"Pile BPB": "bits per byte", "relative loss": "of the loss"}
UNITS = NATS | OTHERS


@dataclass(frozen=True, kw_only=True, slots=True)
class Ours:
    """This study's effect of one component, in nats per token: on minus off."""

    component: str
    off: str
    estimate: float
    low: float | None
    high: float | None
    verdict: str


def beside(result: StudyResult) -> Table:
    """A row for each published loss of a component that this study has; without rows where there is none."""
    columns: Columns = [text("Component"), f"Ours, nats/token ({confidence(result)} interval)", text("Our verdict"),
                        "Theirs", text("Their scale"), "Their tokens", text("Sign"),
                        text("Why not comparable"), text("Source")]  # fmt: skip
    rows = []
    for ours in of_study(result):
        for source, finding in loss_findings(ours.component):
            rows.append(_row(ours, source, finding, result))
    size = scaled(result.variants[0].planned.cost.get("total_parameters"))
    tokens = scaled(result.variants[0].planned.n_tokens)
    note = (
        f"Ours: {size} parameters and {tokens} tokens a run. Theirs: one run an arm unless the source says otherwise, "
        "so theirs have no interval. A sign that agrees is no confirmation across such a distance, and one that does "
        "not is no refutation."
    )
    return make("Published losses of the same changes", columns, rows, note if rows else "")


def of_study(result: StudyResult) -> Iterator[Ours]:
    """The effects of single components of the registry, by the index that the verdict is on."""
    if result.attribution is not None:
        for name, effect in result.attribution.effects.items():
            found = effect.indices.get(effect.verdict_from or "")
            if known(name) and found is not None and found.estimate is not None:
                off = arrow_of(result, name).partition(" → ")[0]
                yield Ours(component=name, off=off, estimate=found.estimate, low=found.low, high=found.high,
                           verdict=attributed_verdict(effect, result))  # fmt: skip
        return
    for c in result.comparisons:
        chosen = [change for change in c.changes if not change.forced]
        alone = len(chosen) == 1 and chosen[0].with_level == ON and known(chosen[0].component) and not c.at
        if alone and c.loss.estimate is not None:
            yield Ours(component=chosen[0].component, off=chosen[0].without_level, estimate=c.loss.estimate,
                       low=c.loss.low, high=c.loss.high,
                       verdict=verdict_said(c.loss.verdict, c.loss.low, c.loss.high, c.loss.margin))  # fmt: skip


def loss_findings(component: str) -> list[tuple[Source, Finding]]:
    """What is published of a component's loss, with a size."""
    try:
        found = findings(component)
    except ValueError:  # a control, or a component of another package
        return []
    return [(s, f) for s, f in found if f.metric in UNITS and f.size is not None]


def _row(ours: Ours, source: Source, finding: Finding, result: StudyResult) -> list[str]:
    ends = "" if ours.low is None else f" ({signed_between(ours.low, ours.high)})"
    assert finding.size is not None
    error = "" if finding.standard_error is None else f" ± {short(finding.standard_error)}"
    return [
        arrow_of(result, ours.component),
        f"{signed(ours.estimate)}{ends}",
        ours.verdict,
        f"{signed(finding.size)}{error} {UNITS[finding.metric]}",
        finding.scale,
        scaled(finding.tokens) if finding.tokens else NONE,
        sign(ours, finding),
        ", ".join(_why(ours, finding)),
        f"{source.title}, {finding.at}",
    ]


def sign(ours: Ours, finding: Finding) -> str:
    """Whether the two have one sign, where both have one."""
    if ours.verdict.removesuffix(PERHAPS) not in (GAIN, HARM):
        return "ours is not resolved"
    interval = finding.interval
    if not finding.size or (interval is not None and interval[0] <= 0 <= interval[1]):
        return "theirs is not told from 0"
    return "same" if (finding.size > 0) == (ours.estimate > 0) else "opposite"


def _why(ours: Ours, finding: Finding) -> Iterator[str]:
    """Why their number is not ours; scale is always among it."""
    if (against := _against(ours, finding)) != ours.off:
        yield f"off is {against} there and {ours.off} here"
    yield "other scale and corpus"
    if finding.metric in OTHERS:
        yield "other unit"
    yield finding.claim


def published_nats(result: StudyResult) -> Mapping[str, tuple[float, ...]]:
    """Component -> published differences in nats against the same alternative as here, for a figure."""
    found = {}
    for ours in of_study(result):
        sizes = tuple(
            f.size for _, f in loss_findings(ours.component) if f.metric in NATS and f.size is not None
            and _against(ours, f) == ours.off
        )  # fmt: skip
        if sizes:
            found[ours.component] = sizes
    return found


def _against(ours: Ours, finding: Finding) -> str:
    component = known(ours.component)
    return finding.against or (component.default_alternative if component else "")
