"""Tables of what components are worth in loss, and of how many seeds would tell."""

from __future__ import annotations

from ablate.attribution.indices import TITLES
from ablate.attribution.results import Number
from ablate.attribution.study.compare import TARGET_NATS, Comparison, StudyResult
from ablate.attribution.verdicts import NOT_RESOLVED, Effect
from ablate.quantities import NONE, number, short, signed, signed_between, whole
from ablate.report.names import confidence, label
from ablate.report.tables.table import Columns, Table, make, text

SHOWN = ("first", "last", "owen")  # of the indices


def effects(result: StudyResult) -> Table:
    """What each component is worth; further held-out sets have rows of their own."""
    columns: Columns = [text("Component"), text("Verdict"), "With − without, nats/token",
                        f"{confidence(result)} interval", "Seeds", "More seeds to resolve"]  # fmt: skip
    rows = []
    for c in result.comparisons:
        rows.append([label(c), *_effect(c.loss, c)])
        rows += [[f"{label(c)} (held-out set: {name})", *_effect(e, c)] for name, e in c.other_sets.items()]
    return make("Effects on the held-out loss", columns, rows)


def _effect(effect: Effect, c: Comparison) -> list[str]:
    verdict = effect.verdict if effect.reason is None else f"{effect.verdict} (no interval)"
    n = str(effect.n) if c.pairing_ok else f"{effect.n} runs, unpaired"
    interval = signed_between(effect.low, effect.high)
    return [verdict, signed(effect.estimate), interval, n, further_seeds(effect)]


def further_seeds(effect: Effect) -> str:
    """Seeds of each variant that would resolve an effect; 0 where it is resolved."""
    if effect.verdict != NOT_RESOLVED:
        return "0"
    return f"+{effect.seeds_to_resolve}" if effect.seeds_to_resolve else NONE


def attribution(result: StudyResult) -> Table:
    """How a designed study splits the distance between its ends; without rows for a comparison."""
    found = result.attribution
    columns: Columns = [
        text("Component"),
        text("Verdict"),
        *(TITLES[index].capitalize() for index in SHOWN),
        "More runs to resolve",
    ]
    rows = []
    for name, effect in found.effects.items() if found else ():
        numbers = [_attributed(effect.indices[index]) for index in SHOWN]
        rows.append([name, effect.verdict, *numbers, whole(effect.runs_to_resolve)])
    if found:
        rows.append(["total", "", "", "", _attributed(found.total), ""])
    return make("The total split among the components, nats per token, on minus off", columns, rows)


def interactions(result: StudyResult) -> Table:
    """Pairs whose joint effect is not the sum of theirs; those that a study leaves undefined are not listed."""
    found = result.attribution
    rows = [
        [" x ".join(pair.components), _attributed(pair.number), number(pair.adjusted_p, 3)]
        for pair in (found.interactions if found else ())
        if pair.number.estimate is not None
    ]
    return make("Interactions (Banzhaf index), nats per token", [text("Pair"), "Estimate", "Adjusted p"], rows)


def _attributed(value: Number) -> str:
    ends = "" if value.low is None or value.high is None else f" ({signed_between(value.low, value.high)})"
    return signed(value.estimate) + ends


def noise(result: StudyResult) -> Table:
    """How many seeds a study with this noise needs."""
    margin = short(result.plan.margin_nats)
    columns: Columns = [text("Component"), "Sd of the difference of a pair, nats", f"Seeds to resolve {TARGET_NATS}",
                        f"Seeds to show 0 within ±{margin}"]  # fmt: skip
    rows = [
        [label(c), number(c.loss.sd if c.pairing_ok else None), whole(c.target_seeds), whole(c.margin_seeds)]
        for c in result.comparisons
    ]
    note = "Seeds in all, of both variants, that decide with 80 % power if the true difference is the one named."
    return make("Seeds needed at this level of noise", columns, rows, note)
