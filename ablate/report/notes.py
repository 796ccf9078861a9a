"""What a report says beside its tables: which study it is, how its effects and speeds are read, what is unfinished."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ablate.attribution.study.cells import FACTORIAL
from ablate.attribution.study.compare import StudyResult
from ablate.documents import read_document
from ablate.quantities import between, budget, listed, number, percent, plural, scaled, short, signed, times
from ablate.report.cleaning import clean
from ablate.report.names import confidence, emulated, ladder_sizes, matched, why_no_interval
from ablate.report.tables.effects import NEEDED, headline
from ablate.runs.store import EQUALITY

MAX_NAMED = 6  # variants in one sentence


def scale(result: StudyResult) -> str:
    """Which study this is, in one line."""
    plan = result.plan
    size = scaled(result.variants[0].planned.cost.get("total_parameters"))
    if sizes := ladder_sizes(result):
        return (
            f"Presets {clean(listed(sizes))}, {plural(len(result.variants), 'variant')}, "
            f"{plural(len(plan.seeds), 'seed')}, equal {matched(result)} at each size"
        )
    return (
        f"Preset {clean(plan.preset)}, {size} parameters, {plural(len(result.variants), 'variant')}, "
        f"{plural(len(plan.seeds), 'seed')}, {budget(plan.budget, plan.match)} a run, equal {matched(result)}"
    )


def unfinished(result: StudyResult) -> Iterator[str]:
    """A warning if runs are still to be done."""
    waiting = [run for run in result.runs if run.status in ("missing", "failed")]
    if waiting:
        yield (
            f"this study is not finished: {len(waiting)} of {plural(len(result.runs), 'run')} still to be done; "
            "the same command goes on with what is left"
        )


def effect_notes(result: StudyResult) -> Iterator[str]:
    """How the effects are read, and what this study can see."""
    yield _rule(result)
    yield (
        f"{NEEDED}: further runs, of both variants of a comparison or of the whole design, that decide with 80 % power "
        "if the estimate is the truth and the correction asks its most; their time is that of one after another."
    )
    if _family(result) > 1:
        yield "Each interval holds by itself; with several effects the chance that one of them misses is larger."
    if any(len(c.changes) > 1 for c in result.comparisons):
        yield "Components named together were turned off together: their shares are not told apart here."
    if result.plan.design.name == "add-one-in":
        yield "Each component is added alone to the variant without any of them."
    yield from _refused(result)
    if result.noise is None:
        yield f"Noise: {clean(result.noise_reason)}."
    else:
        ends = between(*result.noise.ends(result.plan.interval_confidence))
        yield (
            f"Noise: runs of one variant differ from seed to seed with standard deviation {number(result.noise.sd)} "
            f"nats per token ({confidence(result)} interval {ends}; pooled, "
            f"{plural(result.noise.df, 'degree')} of freedom)."
        )
    yield from _within_seeds(result)


def _family(result: StudyResult) -> int:
    families = [c.loss.family for c in result.comparisons]
    families += [effect.family for effect in (result.attribution.effects.values() if result.attribution else ())]
    return max(families, default=1)


def _rule(result: StudyResult) -> str:
    """The rule that the verdicts of this report follow."""
    margin, family = short(result.plan.margin_nats), _family(result)
    holm = f" and that survives Holm's correction over the {family} effects that have an interval" if family > 1 else ""
    sides = "with the component minus the loss without it"
    if result.plan.design.name == FACTORIAL:
        sides = "at the level minus the loss at the reference level"
    return (
        f"The difference is the loss {sides}, so a negative one is a gain. "
        f"Verdicts on the loss: gain or harm where the {confidence(result)} interval lies wholly beyond ±{margin} nats"
        f"{holm}; no effect within the margin where the {percent(2 * result.plan.interval_confidence - 1)} interval "
        f"lies inside ±{margin}; where the first interval leaves out 0 but not the margin, the sign is said, "
        f"uncorrected: gain or harm, perhaps negligible; not resolved otherwise."
    )


def _refused(result: StudyResult) -> Iterator[str]:
    """Why effects stand without an interval."""
    for c in result.comparisons:
        if c.loss.reason:
            yield f"{clean(c.name)}: no interval, because {why_no_interval(c, result)}."
    if result.comparisons or not (found := result.attribution):
        return
    index = headline(found) or "owen"
    for name, effect in found.effects.items():
        if reason := effect.indices[index].reason:
            yield f"{clean(name)}: no interval, because {clean(reason)}."


def _within_seeds(result: StudyResult) -> Iterator[str]:
    """What sharing seeds did to a design whose runs of a seed are pairs or blocks."""
    found, noise = result.attribution, result.noise
    if found is None or result.comparisons or noise is None or not found.residual_sd or not noise.sd:
        return
    if found.design["seed_layout"] in ("complete", "blocked"):
        share = (found.residual_sd / noise.sd) ** 2
        yield (
            f"Within a seed a run strays by {number(found.residual_sd)} nats: the runs of a seed correlate at about "
            f"{signed(1 - share, 2)}, and independent seeds would take {times(1 / share)} the runs for the same "
            f"intervals (from {plural(noise.df, 'degree')} of freedom; below 1× sharing seeds cost runs)."
        )


def _few(named: list[str], result: StudyResult) -> str:
    """Variants by name, or how many they are where the table, which names each, is the better list."""
    if len(named) <= MAX_NAMED:
        return listed(named)
    return f"{len(named)} of {plural(len(result.variants), 'variant')}, which the table marks"


def speed_notes(result: StudyResult) -> Iterator[str]:
    """How speed and memory were measured, and first of all which of them were emulated."""
    named = [clean(v.name) for v in result.variants if emulated(v)]
    if named:
        yield (
            f"Emulated speed and memory: {_few(named, result)}. This machine lacks part of their arithmetic, which was "
            "computed exactly but not fast; the figures say nothing of hardware that has it, and are not set against "
            "measured ones."
        )
    yield (
        "Speed is the median optimizer step of each run, without evaluation and checkpoints; memory is the peak of the "
        "device, or of the process where there is none. FLOPs and KV bytes are exact closed forms."
    )


def equality_notes(folder: Path) -> Iterator[str]:
    """What a study on ranks showed before it ran: that they compute what one process does."""
    path = folder / EQUALITY
    if not path.exists():
        return
    found = read_document(path, "what the check of the ranks found", "give the study's command again")["cases"]
    yield (
        f"The ranks against one process, in float64 at the size of the preset nano, before the first run: "
        f"{sum(case['holds'] for case in found)} of {plural(len(found), 'variant')} equal."
    )
    yield from (clean(f"{case['sentence']}.") for case in found)
