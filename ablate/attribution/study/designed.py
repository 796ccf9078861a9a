"""A designed study's runs as an attribution: levels to cells of a lattice, seeds to clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ablate.attribution.estimation.estimates import Observations
from ablate.attribution.lattice import Lattice, lattice
from ablate.attribution.results import Attribution, Question
from ablate.attribution.summary import attribute_runs
from ablate.components.component import ON
from ablate.components.controls import CONTROLS
from ablate.components.registry import REGISTRY
from ablate.runs.plan import Design
from ablate.runs.record import RunRecord, pairing_fault

# Designs whose variants all run with the same seeds against full: each can be compared with it directly too.
AGAINST_REFERENCE = ("one", "leave-one-out")


def attribute_design(
    design: Design,
    levels: Sequence[Mapping[str, str]],
    records: Sequence[RunRecord],
    metric: str,
    question: Mapping[str, Any],
) -> tuple[Attribution | None, str]:
    """The attribution of a study's finished runs, or None and why. A comparison of two variants needs none.

    `levels`: of every planned variant. Runs of one seed are clusters if all of them may be paired.
    """
    if design.name == "one":
        return None, ""
    if not records:
        return None, "no run has finished"
    parts = design_lattice(levels)
    paired = _paired(records)
    runs = Observations(
        cells=tuple(parts.mask(n for n in parts.components if record.variant.get(n) == ON) for record in records),
        values=tuple(record.metrics[metric] for record in records),
        clusters=tuple(record.seed if paired else None for record in records),
    )
    try:
        return attribute_runs(parts, runs, Question(metric=metric, order=design.order, **question)), ""
    except ValueError as error:
        return None, str(error)


def design_lattice(levels: Sequence[Mapping[str, str]]) -> Lattice:
    """The lattice of the components that are on in some variant and off in another."""
    # A study that is older than a component does not know its level: it was off.
    known = (*REGISTRY.names, *(control.name for control in CONTROLS))
    names = [n for n in known if len({level.get(n) == ON for level in levels}) == 2]
    off = {n: next(level[n] for level in levels if level.get(n) != ON) for n in names}
    return lattice(names, REGISTRY.prerequisites(names, off))


def _paired(records: Sequence[RunRecord]) -> bool:
    first: dict[int, RunRecord] = {}
    return not any(pairing_fault(first.setdefault(record.seed, record), record) for record in records)
