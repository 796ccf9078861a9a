"""Tables of what components are worth in loss, and of how many runs would tell."""

from __future__ import annotations

from ablate.attribution.indices import TITLES
from ablate.attribution.results import Attribution, ComponentEffect, Number
from ablate.attribution.study.compare import TARGET_NATS, Comparison, StudyResult
from ablate.attribution.study.pairing import PairingGain
from ablate.attribution.verdicts import NOT_RESOLVED, Effect
from ablate.quantities import (
    NONE,
    between,
    duration,
    number,
    plural,
    short,
    signed,
    signed_between,
    significant,
    whole,
)
from ablate.report.names import confidence, label, unit, verdict_said
from ablate.report.tables.table import Column, Columns, Table, make, text

SHOWN = ("first", "last", "owen")  # of the indices
NEEDED = "More runs to resolve"
TITLE = "Effects on the held-out loss"
# Layout of a design's seeds -> what its intervals count; where some runs are pairs and others not, they differ.
UNITS = {"complete": "seed", "blocked": "block", "independent": "run"}


def effects(result: StudyResult) -> Table:
    """What each component is worth on the held-out text: one table whatever the design, the verdict's number first."""
    if result.comparisons:
        families = [c.loss.family for c in result.comparisons]
        rows = [[label(c), *_effect(c.loss, c)] for c in result.comparisons]
        return make(TITLE, _columns(result, verdict_column(max(families, default=1))), rows)
    if result.attribution is not None:
        return _of_design(result.attribution, result)
    return _of_cells(result)


def _columns(result: StudyResult, verdict: Column, more: Columns | None = None, unit_: str = "") -> Columns:
    """The heads of every table of effects; `more`: those of further indices."""
    heads: Columns = [
        text(unit(result)),
        verdict,
        f"With − without, {unit_ or 'nats/token'}",
        f"{confidence(result)} interval",
    ]
    return [*heads, "n", NEEDED, *(more or [])]


def _of_design(found: Attribution, result: StudyResult) -> Table:
    """The index that the verdicts are on, and beside it the other two of SHOWN; the total at the end."""
    known, index = list(found.effects.values()), headline(found) or "owen"
    others = [other for other in SHOWN if other != index]
    verdict = verdict_column(max((e.family for e in known), default=1), headline(found))
    rows = []
    for name, effect in found.effects.items():
        said = attributed_verdict(effect, result) if effect.verdict_from else f"{effect.verdict} (no interval)"
        shown, of = effect.indices[index], UNITS.get(found.design["seed_layout"])
        n = plural(effect.n, of) if of else str(effect.n)
        further = [_attributed(effect.indices[other]) for other in others]
        rows.append([name, said, signed(shown.estimate), signed_between(shown.low, shown.high), n,
                     further_runs(effect, design_run_s(result)), *further])  # fmt: skip
    total = found.total
    rows.append(["all together", "", signed(total.estimate), signed_between(total.low, total.high), "", "", "", ""])
    return make(TITLE, _columns(result, verdict, [TITLES[other].capitalize() for other in others]), rows)


def _of_cells(result: StudyResult) -> Table:
    """Each component at each combination of levels that a design is crossed with."""
    found = result.cells
    order = list(dict.fromkeys(e.component for e in found.effects))
    rows = [
        [f"{e.component}, at {e.cell.label}", e.verdict, signed(e.number.estimate),
         signed_between(e.number.low, e.number.high), str(e.n), NONE]
        for e in sorted(found.effects, key=lambda e: order.index(e.component))
    ]  # fmt: skip
    note = "Each by itself, from the runs of its own cell."
    if found.unit == "bits per byte":
        note += (
            " The cells read their text in different tokens, so nats per token are not the same thing in them; "
            "verdicts are on nats."
        )
    return make(TITLE, _columns(result, text("Verdict"), unit_=found.unit), rows, note if rows else "")


def other_sets(result: StudyResult) -> Table:
    """The same on each further held-out set; without rows where there is none."""
    families = [e.family for c in result.comparisons for e in c.other_sets.values()]
    columns = _columns(result, verdict_column(max(families, default=1)))
    columns.insert(1, text("Held-out set"))
    rows = [[label(c), name, *_effect(e, c)] for c in result.comparisons for name, e in c.other_sets.items()]
    return make("Effects on further held-out sets", columns, rows)


def verdict_column(family: int, index: str | None = None) -> Column:
    """The head of a column of verdicts: which index they are on, and what they are corrected over."""
    said = [TITLES[index]] if index else []
    said += [f"Holm over {family} effects"] if family > 1 else []
    return text(f"Verdict ({'; '.join(said)})" if said else "Verdict")


def _effect(effect: Effect, c: Comparison) -> list[str]:
    said = verdict_said(effect.verdict, effect.low, effect.high, effect.margin)
    verdict = said if effect.reason is None else f"{effect.verdict} (no interval)"
    n = plural(effect.n, "seed") if c.pairing_ok else f"{plural(effect.n, 'run')}, unpaired"
    interval = signed_between(effect.low, effect.high)
    return [verdict, signed(effect.estimate), interval, n, further_runs(effect, pair_run_s(c))]


def pair_run_s(c: Comparison) -> float | None:
    """Seconds of one more run of a comparison, mean over its two variants."""
    return None if c.pair_s is None else c.pair_s / 2


def design_run_s(result: StudyResult) -> float | None:
    """Seconds of one more run of a study, mean over its variants."""
    known = [v.run_s for v in result.variants if v.run_s is not None]
    return sum(known) / len(known) if known else None


def further_runs(effect: Effect | ComponentEffect, run_s: float | None) -> str:
    """Runs that would resolve an effect, and the time that they take one after another; 0 where it is resolved."""
    if effect.verdict != NOT_RESOLVED:
        return "0"
    return f"+{runs_and_time(effect.runs_to_resolve, run_s)}" if effect.runs_to_resolve else NONE


def runs_and_time(n_runs: int | None, run_s: float | None) -> str:
    """A number of runs with the time that they take one after another."""
    if n_runs is None:
        return NONE
    return whole(n_runs) if run_s is None else f"{whole(n_runs)} ({duration(n_runs * run_s)})"


def attributed_verdict(effect: ComponentEffect, result: StudyResult) -> str:
    """The verdict on a component of a design, in words."""
    shown = effect.indices[effect.verdict_from] if effect.verdict_from else Number(estimate=None)
    return verdict_said(effect.verdict, shown.low, shown.high, result.plan.margin_nats)


def headline(found: Attribution | None) -> str | None:
    """The index that the verdicts of an attribution are on; None where there is none."""
    return next((e.verdict_from for e in found.effects.values() if e.verdict_from), None) if found else None


def ranks(result: StudyResult) -> Table:
    """Which component is worth more than the next one."""
    found = result.attribution
    index = headline(found)
    rows = [
        [rank.better, rank.worse, "yes" if rank.resolved else "no", signed(rank.number.estimate),
         signed_between(rank.number.low, rank.number.high), _p(rank.adjusted_p)]
        for rank in (found.ranks if found else ())
    ]  # fmt: skip
    columns: Columns = [text("Component"), text("Worth more than"), text("Resolved (Holm)"), "Difference, nats/token",
                        f"{confidence(result)} interval", "Adjusted p"]  # fmt: skip
    note = (
        f"Neighbours in order of worth, by the {TITLES[index]}; without a yes their order may be chance."
        if index
        else ""
    )
    return make("Which component is worth more than the next", columns, rows, note if rows else "")


def interactions(result: StudyResult) -> Table:
    """Pairs whose joint effect is not the sum of theirs; those that a study leaves undefined are not listed."""
    found = result.attribution
    rows = [
        [" x ".join(pair.components), _attributed(pair.number), _p(pair.adjusted_p)]
        for pair in (found.interactions if found else ())
        if pair.number.estimate is not None
    ]
    columns: Columns = [text("Pair"), "Estimate", "Adjusted p (Benjamini-Hochberg)"]
    return make("Interactions (Banzhaf index), nats per token", columns, rows)


def _p(value: float | None) -> str:
    return "below 0.001" if value is not None and value < 0.001 else number(value, 3)


def _attributed(value: Number) -> str:
    ends = " (no interval)" if value.estimate is not None else ""
    if value.low is not None and value.high is not None:
        ends = f" ({signed_between(value.low, value.high)})"
    return signed(value.estimate) + ends


def noise(result: StudyResult) -> Table:
    """What sharing seeds did, and how many runs a study with this noise needs."""
    margin = short(result.plan.margin_nats)
    columns: Columns = [text("Component"), "Sd of the difference of a pair, nats", "Correlation of pairs",
                        "Pairing saves", f"Runs to resolve {TARGET_NATS}",
                        f"Runs to show 0 within ±{margin}"]  # fmt: skip
    rows = [
        [
            label(c),
            _sd(c),
            signed(c.pairing_gain.correlation, 2) if c.pairing_gain else NONE,
            _saved(c.pairing_gain),
            _planned(c.target_seeds, c.most_target_seeds, c),
            _planned(c.margin_seeds, c.most_margin_seeds, c),
        ]
        for c in result.comparisons
    ]
    note = (
        f"The sd stands with its own {confidence(result)} interval, and the runs up to its upper end: from few seeds "
        "the noise itself is hardly known. Runs in all, of both variants, that decide with 80 % power if the true "
        "difference is the one named, for one "
        "effect by itself, with their time one after another. Pairing saves: how many times the runs independent seeds "
        "would take for the same interval; below 1× sharing seeds cost runs."
    )
    return make("Runs needed at this level of noise", columns, rows, note)


def _sd(c: Comparison) -> str:
    sd = c.loss.sd if c.pairing_ok else None
    return number(sd) + (f" ({between(*c.pair_sd_ends)})" if sd is not None and c.pair_sd_ends else "")


def _planned(n: int | None, most: int | None, c: Comparison) -> str:
    """Runs that would decide, with their time, and how many if the noise is as large as it may be."""
    said = runs_and_time(2 * n if n else None, pair_run_s(c))
    return said if n is None else f"{said}, up to {whole(2 * most) if most else 'no number'}"


def _saved(gain: PairingGain | None) -> str:
    return f"{significant(gain.runs_ratio)}× ({gain.n} pairs)" if gain else NONE
