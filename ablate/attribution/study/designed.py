"""A designed study: the distance between its ends split among its components, from every run that it planned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ablate.attribution.estimation.estimates import Observations
from ablate.attribution.estimation.functionals import DEFAULT_ORDER
from ablate.attribution.lattice import Lattice, lattice
from ablate.attribution.results import Attribution, Question
from ablate.attribution.study.cells import FACTORIAL
from ablate.attribution.summary import attribute_runs
from ablate.attribution.verdicts import Effect
from ablate.components.component import ON
from ablate.components.controls import CONTROLS
from ablate.components.registry import REGISTRY
from ablate.quantities import listed, plural
from ablate.runs.factors import PRESET, FactorFacts
from ablate.runs.plan import Plan, PlannedVariant
from ablate.runs.record import RunRecord, RunStatus

# Designs whose variants all run with the same seeds against full: each can be compared with it directly too.
AGAINST_REFERENCE = ("one", "leave-one-out", FACTORIAL)
# Designs without a total to split, and why.
UNSPLIT = {
    "one": "",
    "screening": "a screening finds learning rates, and compares nothing",
    "search": "what a search found differs in settings too; each is set against the reference under Search",
}
MAX_NAMED = 4  # runs in one sentence
ASSUMED = "interactions of more than"  # of the sentences that say what a model leaves out
LAYOUTS = {
    "complete": "each seed gives every effect once",
    "blocked": "seeds are blocks whose own level a model takes out",
    "independent": "no two runs are pairs",
    "mixed": "only runs that share all their seeds are pairs",
}


class Named(Protocol):
    """A variant with a name, a level for every component, and the factors at their second level; planned or not yet."""

    @property
    def name(self) -> str: ...

    @property
    def levels(self) -> Mapping[str, str]: ...

    @property
    def upper(self) -> tuple[str, ...]: ...


def attribute_design(
    plan: Plan,
    statuses: Mapping[str, RunStatus],
    records: Mapping[str, RunRecord],
    metric: str,
    unpaired: Collection[str],
    compared: Mapping[str, Effect],
) -> tuple[Attribution | None, str]:
    """The attribution of a study's finished runs, or None and why. A comparison of two variants needs none.

    statuses and records: by run id, the records of finished runs. unpaired: ids of the runs that are no pairs of those
    with their seed; they count as independent ones. compared: component -> its effect by comparison with the
    reference. An effect that is defined on a variant that diverged has no interval; nor has one that lacks any run
    where every variant was to run with every seed.
    """
    if plan.design.name in UNSPLIT and not (plan.design.name == "one" and plan.factors):
        return None, UNSPLIT[plan.design.name]
    if not records:
        return None, "no run has finished"
    if why := _not_two_levels(plan):
        return None, why
    parts = design_lattice(plan.variants, plan.factors)
    cells = {v.name: cell_of(parts, v) for v in plan.variants}
    runs = [(v, records[i]) for v in plan.variants for i in v.run_ids if i in records]
    observed = Observations(
        cells=tuple(cells[v.name] for v, _ in runs),
        values=tuple(record.metrics[metric] for _, record in runs),
        clusters=tuple(None if record.run_id in unpaired else record.seed for _, record in runs),
    )
    refused = {cells[v.name]: said for v in plan.variants if (said := _refusal(v, plan, statuses))}
    question = Question(
        metric=metric, order=plan.design.order, margin=plan.margin_nats, confidence=plan.interval_confidence
    )
    known = {name: effect for name, effect in compared.items() if name in parts.components}
    try:
        found = attribute_runs(parts, observed, question, refused=refused, compared=known)
    except ValueError as error:
        return None, str(error)
    return replace(found, warnings=(*_lost(plan, statuses, found), *found.warnings)), ""


def _not_two_levels(plan: Plan) -> str:
    """Why the total is not split: a factor of more levels has a response, and no share."""
    if many := [f.name for f in plan.factors if len(f.levels) > 2]:
        return f"{listed(many)} has more than two levels, so its effect is a response and not a share of a total"
    if apart := [f.name for f in plan.factors if f.name == PRESET]:
        return f"the losses of the sizes of {apart[0]} are not those of one text in the same tokens"
    return ""


def design_lattice(variants: Sequence[Named], factors: Sequence[FactorFacts] = ()) -> Lattice:
    """The lattice of the components that are on in some variant and off in another, with the variants' names.

    A factor of two levels is one more of them, on at its second level; what it sets goes with it.
    """
    levels = [v.levels for v in variants]
    # A study that is older than a component does not know its level: it was off.
    known = (*REGISTRY.names, *(control.name for control in CONTROLS))
    moved = {name for f in factors for name in f.components}
    names = [n for n in known if n not in moved and len({level.get(n) == ON for level in levels}) == 2]
    off = {n: next(level[n] for level in levels if level.get(n) != ON) for n in names}
    prerequisites = REGISTRY.prerequisites(names, off)
    names += [f.name for f in factors if len({f.name in v.upper for v in variants}) == 2]
    parts = lattice(names, prerequisites)
    named = {cell_of(parts, v): v.name for v in variants}
    return replace(parts, labels=tuple((cell, named.get(cell) or _name(parts, cell)) for cell in parts.cells))


def _name(parts: Lattice, cell: int) -> str:
    """What the tables would call a variant that is not among the study's."""
    on, off = parts.names(cell), parts.names(parts.full & ~cell)
    if not on or not off:
        return "full" if on else "none"
    return " ".join(f"+{name}" for name in on) if len(on) < len(off) else " ".join(f"-{name}" for name in off)


def cell_of(parts: Lattice, variant: Named) -> int:
    """The cell of the lattice that a variant is."""
    return parts.mask(n for n in parts.components if variant.levels.get(n) == ON or n in variant.upper)


def _refusal(variant: PlannedVariant, plan: Plan, statuses: Mapping[str, RunStatus]) -> str:
    """The variant and what became of its runs, where that leaves no interval to what is defined on it; else ""."""
    kinds = ("diverged", "failed", "missing") if _is_complete(plan) else ("diverged",)
    counts = {kind: sum(statuses[i] == kind for i in variant.run_ids) for kind in kinds}
    said = listed(f"{n} {kind}" for kind, n in counts.items() if n)
    return f"{variant.name} ({said} of {plural(len(variant.run_ids), 'run')})" if said else ""


def _is_complete(plan: Plan) -> bool:
    """Whether every variant was to run with every seed."""
    return all(set(v.seeds) == set(plan.seeds) for v in plan.variants)


def _lost(plan: Plan, statuses: Mapping[str, RunStatus], found: Attribution) -> list[str]:
    """Which planned runs left no loss, and what the results rest on without them."""
    lost = [
        f"{v.name} seed {seed} {statuses[i]}"
        for v in plan.variants
        for seed, i in zip(v.seeds, v.run_ids, strict=True)
        if statuses[i] != "finished"
    ]
    if not lost:
        return []
    more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
    modelled = any(ASSUMED in warning for warning in found.warnings)
    order = found.design["order"] or (DEFAULT_ORDER if modelled else None)
    rests = f"that {ASSUMED} {order} components are zero" if order else "nothing of interactions"
    refused = "What needs one of them has no interval. " if _is_complete(plan) else ""
    if not refused and "diverged" in statuses.values():
        refused = "What is defined on a variant that diverged has no interval. "
    return [
        f"{len(lost)} of {plan.n_runs} planned runs left no loss ({', '.join(lost[:MAX_NAMED])}{more}). {refused}"
        f"Without these runs the other numbers assume {rests}, and {LAYOUTS[found.design['seed_layout']]}"
    ]
