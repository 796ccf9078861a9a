"""What a report calls the parts of a study: components, comparisons, the quantity that was matched."""

from __future__ import annotations

from ablate.attribution.study.cells import FACTORIAL
from ablate.attribution.study.compare import Change, Comparison, StudyResult, VariantResult
from ablate.attribution.verdicts import GAIN, HARM, NOT_RESOLVED
from ablate.components.component import ON, Component
from ablate.components.registry import component as registered
from ablate.quantities import listed, percent, plural
from ablate.report.cleaning import clean
from ablate.runs.factors import PRESET

MATCHED = {"flops": "training FLOPs", "tokens": "training tokens", "seconds": "training time"}
MOST_SEEDS = 6  # that a sentence names
PERHAPS = ", perhaps negligible"  # behind gain or harm: the sign is known, and the size may lie within the margin


def known(component: str) -> Component | None:
    """The component of that name, or None: a study's files may name some that this program does not have."""
    try:
        return registered(component)
    except ValueError:
        return None


def title(component: str) -> str:
    """The component's title with its name, or the name alone where this program does not know it."""
    found = known(component)
    return f"{found.title} ({component})" if found else clean(component)


def subject(comparison: Comparison) -> str:
    """What the two sides differ in, for a sentence, and what went with it because it requires it."""
    found = listed(_subject(change) for change in comparison.changes if not change.forced)
    forced = listed(clean(name) for name in _forced(comparison))
    return f"{found} with {forced}, which requires it," if forced else found or clean(comparison.name)


def _subject(change: Change) -> str:
    if change.with_level == ON:
        return title(change.component)
    return clean(f"{change.component} at {change.with_level} instead of {change.without_level}")


def _forced(comparison: Comparison) -> list[str]:
    """What went along because it requires what was turned off; what a factor sets is the factor itself."""
    of_factor = all(known(change.component) is None for change in comparison.changes if not change.forced)
    return [] if of_factor else [change.component for change in comparison.changes if change.forced]


def ladder_sizes(result: StudyResult) -> tuple[str, ...]:
    """The presets of a ladder of sizes; none where all variants have one."""
    return next((f.levels for f in result.plan.factors if f.name == PRESET), ())


def named(comparison: Comparison) -> str:
    """The name of a comparison for a list, and what went along: "moe with aux-free"."""
    forced = _forced(comparison)
    return clean(f"{comparison.name} with {listed(forced)}" if forced else comparison.name)


def unit(result: StudyResult) -> str:
    """What a row of effects is: a component, or a level of a factor where factors alone make the study."""
    return "Level" if result.plan.design.name == FACTORIAL else "Component"


def label(comparison: Comparison) -> str:
    """The same for a row of a table: "mla, instead of gqa"."""
    chosen = [c for c in comparison.changes if not c.forced]
    at = f", at {comparison.at}" if comparison.at else ""
    if chosen and all(c.with_level == ON for c in chosen):
        instead = " + ".join(c.without_level for c in chosen)
        found = f"{comparison.name.removesuffix(f' at {comparison.at}')}, instead of {instead}{at}"
    else:
        pairs = [f"{c.component}: {c.with_level} instead of {c.without_level}" for c in chosen]
        found = ", ".join(pairs) + at if pairs else comparison.name
    forced = _forced(comparison)
    return f"{found} (and with it {listed(forced)})" if forced else found


def arrow(comparison: Comparison) -> str:
    """What becomes what, for a figure: "gqa → mla"."""
    chosen = [c for c in comparison.changes if not c.forced]
    if not chosen:
        return clean(comparison.name)
    at = f", at {comparison.at}" if comparison.at else ""
    before, after = (" + ".join(sides) for sides in zip(*((c.without_level, c.name) for c in chosen), strict=True))
    return clean(f"{before} → {after}{at}")


def arrow_of(result: StudyResult, component: str) -> str:
    """The same for a component of a design, whose off is its level in the variants without it."""
    levels = (v.planned.levels.get(component, ON) for v in result.variants)
    off = next((level for level in levels if level != ON), "")
    return clean(f"{off} → {component}" if off else component)


def verdict_said(verdict: str, low: float | None, high: float | None, margin: float) -> str:
    """A verdict on a loss in words: one whose interval leaves out zero but not the margin has a sign after all."""
    if verdict != NOT_RESOLVED or low is None or high is None or low <= 0 <= high:
        return verdict
    near = low if low > 0 else -high
    return f"{HARM if low > 0 else GAIN}{PERHAPS}" if near <= margin else verdict


def why_no_interval(comparison: Comparison, result: StudyResult) -> str:
    """The runs that a comparison lacks, by name; where none is lacking, the reason that the estimate gives."""
    lost: dict[tuple[str, str], list[str]] = {}
    for run in result.runs:
        if run.variant in (comparison.with_variant, comparison.without_variant) and run.status != "finished":
            lost.setdefault((run.variant, run.status), []).append(str(run.seed))
    return listed(_lost(clean(name), status, seeds) for (name, status), seeds in lost.items()) or clean(
        comparison.loss.reason
    )


def _lost(variant: str, status: str, seeds: list[str]) -> str:
    """The runs of one variant that ended alike: by their seeds, or how many where they are many."""
    one = len(seeds) == 1
    named = plural(len(seeds), "seed") if len(seeds) > MOST_SEEDS else f"seed{'' if one else 's'} {listed(seeds)}"
    ended = ("is missing" if one else "are missing") if status == "missing" else status
    return f"{named} of {variant} {ended}"


def matched(result: StudyResult) -> str:
    """What the runs of a study have in equal amount."""
    return MATCHED.get(result.plan.match, clean(result.plan.match))


def confidence(result: StudyResult) -> str:
    """The confidence of a study's intervals, as "95 %"."""
    return percent(result.plan.interval_confidence)


def emulated(variant: VariantResult) -> bool:
    """Whether a run of the variant emulated part of its arithmetic, so that its speed is not that of the method."""
    return "emulated" in variant.evidence.get("speed", ())
