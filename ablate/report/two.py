"""Two studies side by side: each effect in both, whether the two differ, and what else the studies differ in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.attribution.study.compare import StudyResult
from ablate.quantities import budget, listed, percent, plural, scaled, signed, signed_between
from ablate.report.cleaning import clean
from ablate.report.content import ReportContent
from ablate.report.names import matched
from ablate.report.tables.effects import attributed_verdict, headline
from ablate.report.tables.table import Columns, Table, make, text

DIFFER, OPEN = "they differ", "not told apart"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """One study's effect of one component, in nats per token; `index`: what it is, such as leave-one-out."""

    value: float
    low: float | None
    high: float | None
    verdict: str
    index: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Both:
    """A component in both studies; the difference is the second's effect minus the first's."""

    component: str
    first: Estimate
    second: Estimate

    @property
    def difference(self) -> float:
        return self.second.value - self.first.value

    @property
    def half_width(self) -> float | None:
        """Of the difference of two independent estimates: the root of the sum of the squared half-widths."""
        ends = (self.first.low, self.first.high, self.second.low, self.second.high)
        if any(end is None for end in ends):
            return None
        low, high, other_low, other_high = (float(end) for end in ends if end is not None)
        return float((((high - low) / 2) ** 2 + ((other_high - other_low) / 2) ** 2) ** 0.5)

    @property
    def verdict(self) -> str:
        half = self.half_width
        return DIFFER if half is not None and abs(self.difference) > half else OPEN


def effects_of(result: StudyResult) -> dict[str, Estimate]:
    """Component -> its effect: of comparisons, else by the index that the verdicts of a design are on."""
    if result.comparisons:
        return {
            c.name: Estimate(value=c.loss.estimate, low=c.loss.low, high=c.loss.high, verdict=c.loss.verdict,
                             index="with minus without")
            for c in result.comparisons
            if c.loss.estimate is not None
        }  # fmt: skip
    index = headline(result.attribution)
    if result.attribution is None or index is None:
        return {}
    found = {}
    for name, effect in result.attribution.effects.items():
        shown = effect.indices[index]
        if shown.estimate is not None:
            verdict = attributed_verdict(effect, result)
            found[name] = Estimate(value=shown.estimate, low=shown.low, high=shown.high, verdict=verdict, index=index)
    return found


def both(first: StudyResult, second: StudyResult) -> tuple[Both, ...]:
    """Components that both studies have an effect of. ValueError where there is none."""
    left, right = effects_of(first), effects_of(second)
    shared = [name for name in left if name in right]
    if not shared:
        raise ValueError(
            f"the two studies share no component with an effect: one has {listed(left) or 'none'}, the other "
            f"{listed(right) or 'none'}; give two studies of the same changes"
        )
    return tuple(Both(component=name, first=left[name], second=right[name]) for name in shared)


def table(found: Sequence[Both], names: tuple[str, str], confidence: float) -> Table:
    """A row a component."""
    columns: Columns = [text("Component"), *(f"{clean(name)}, nats/token" for name in names), "Second minus first",
                        f"{percent(confidence)} interval", text("Verdict")]  # fmt: skip
    rows = []
    for each in found:
        half = each.half_width
        ends = "–" if half is None else signed_between(each.difference - half, each.difference + half)
        rows.append(
            [each.component, _said(each.first), _said(each.second), signed(each.difference), ends, each.verdict]
        )
    note = (
        "The interval of a difference is that of two independent studies (root of the sum of squared half-widths); "
        "each holds by itself."
    )
    return make("Effects of both studies", columns, rows, note)


def _said(found: Estimate) -> str:
    ends = " (no interval)" if found.low is None else f" ({signed_between(found.low, found.high)})"
    return f"{signed(found.value)}{ends}, {found.verdict}"


def unlike(first: StudyResult, second: StudyResult) -> Iterator[str]:
    """What else the two studies differ in, a sentence each: a difference between effects may be that."""
    a, b = first.plan, second.plan
    pairs = {
        "preset": (a.preset, b.preset),
        "matched": (matched(first), matched(second)),
        "budget of a run": (budget(a.budget, a.match), budget(b.budget, b.match)),
        "parameters of the reference": tuple(
            scaled(r.variants[0].planned.cost.get("total_parameters")) for r in (first, second)
        ),
        "design": (a.design.name, b.design.name),
        "corpus": tuple(str(plan.corpus.get("hash", ""))[:12] for plan in (a, b)),
        "margin": (f"{a.margin_nats:g}", f"{b.margin_nats:g}"),
        "learning rate of the reference": tuple(f"{r.variants[0].planned.learning_rate:g}" for r in (first, second)),
        "what an effect is": tuple(
            listed(dict.fromkeys(e.index for e in effects_of(r).values())) for r in (first, second)
        ),
    }
    for what, (left, right) in pairs.items():
        if left != right:
            yield f"{what}: {clean(left) or 'none'} in the first, {clean(right) or 'none'} in the second"


def document(first: ReportContent, second: ReportContent) -> dict[str, Any]:
    """The comparison for programs."""
    found = both(first.result, second.result)
    return {
        "format": "dsv3-ablate comparison of studies",
        "studies": [{"folder": content.folder.name, "question": content.question} for content in (first, second)],
        "unlike": list(unlike(first.result, second.result)),
        "effects": [
            {
                "component": each.component,
                "first": {"estimate": each.first.value, "low": each.first.low, "high": each.first.high},
                "second": {"estimate": each.second.value, "low": each.second.low, "high": each.second.high},
                "difference": each.difference,
                "half_width": each.half_width,
                "verdict": each.verdict,
            }
            for each in found
        ],
    }


def sentences(first: ReportContent, second: ReportContent) -> tuple[str, ...]:
    """What is to be said around the table: how many differ, and what else may be why."""
    found = both(first.result, second.result)
    n = sum(each.verdict == DIFFER for each in found)
    differences = list(unlike(first.result, second.result))
    said = [f"{n} of {plural(len(found), 'effect')} {'differs' if n == 1 else 'differ'} between the two studies."]
    if differences:
        said.append(f"The studies also differ in other things, which may be why: {'; '.join(differences)}.")
    else:
        said.append("The studies differ in their seeds and runs alone, as far as their plans say.")
    return tuple(said)
