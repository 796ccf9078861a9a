"""`dsv3-ablate attribute`: what each component is worth, from a table of runs made anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.attribution.estimation.estimates import Observations
from ablate.attribution.lattice import MAX_COMPONENTS, Lattice, lattice, star
from ablate.attribution.results import Attribution, Number, Question
from ablate.attribution.summary import HEADLINE, attribute_runs
from ablate.attribution.table.formats import read_sheet
from ablate.attribution.table.reading import Choices, Table, read_table
from ablate.errors import nearest

if TYPE_CHECKING:
    from pandas import DataFrame


def attribute(
    source: str | Path | DataFrame | Mapping[str, Sequence[object]],
    *,
    metric: str | None = None,
    lower_is_better: bool | None = None,
    components: Sequence[str] = (),
    on: Sequence[str] = (),
    where: Sequence[str] = (),
    seed: str | None = None,
    last: bool = False,
    study: str | None = None,
    requires: Sequence[str] = (),
    blocks: Sequence[str] = (),
    margin: float = 0.0,
    confidence: float = 0.95,
    log: bool = False,
    order: int | None = None,
) -> Attribution:
    """Attribution of a table of runs: one column per component (on/off, 1/0, true/false ...), a metric, perhaps seeds.

    source: a file (separated text, JSON, Parquet, Optuna's storage, also compressed), "-" for standard input, a pandas
    DataFrame, or a mapping from column names to columns. lower_is_better: None takes it from the source or from whole
    words of the metric's name. components, on, where, seed, last: see `Choices`. study: of an Optuna storage with
    several. requires: "A=B" for "A requires B" ("A=B,C" for both). blocks: "A,B" for components that belong together.
    Effects are on minus off. Raises ValueError, in one sentence, for a table that cannot be read this way.
    """
    choices = Choices(
        metric=metric, seed=seed, components=tuple(components), on=tuple(on), where=tuple(where), last=last, log=log
    )
    table = read_table(read_sheet(source, study), choices)
    lower = table.lower_is_better if lower_is_better is None else lower_is_better
    if lower is None:
        raise ValueError(
            f"the name {table.metric!r} does not say whether lower or higher is better; give --lower-is-better or "
            f"--higher-is-better"
        )
    question = Question(
        metric=table.metric, lower_is_better=lower, margin=margin, confidence=confidence, log=log, order=order
    )
    known = (*table.components, *table.constant)
    parts = _arms(table)
    if parts is None or requires or blocks:
        needs = _prerequisites(table, parse_requires(requires, known))
        groups = [tuple(name for name in block if name in table.components) for block in parse_blocks(blocks, known)]
        parts = lattice(table.components, needs, [group for group in groups if group])
    headlines = (table.arms,) if table.arms else HEADLINE
    found = attribute_runs(parts, _observations(table, parts), question, headlines=headlines)
    if table.arms and not parts.star:
        found = _without_impossible(found, table.arms)
    return _with_confounding(replace(found, warnings=(*table.warnings, *found.warnings)), table)


def _arms(table: Table) -> Lattice | None:
    """The arms of a table that goes one at a time, where they are too many for a lattice or exclude each other."""
    many = len(table.components) > MAX_COMPONENTS
    if not (many or table.arms):
        return None
    on = {sum(row[name] for name in table.components) for row in table.levels}
    whole = len(table.components)
    if on <= {0, 1} and on != {1}:
        return star(table.components, "first")
    if on <= {whole - 1, whole} and on != {whole - 1}:
        return star(table.components, "last")
    if many:
        raise ValueError(
            f"{whole} components vary ({', '.join(table.components[:4])} ...) and not one at a time; at most "
            f"{MAX_COMPONENTS} can be combined, so name those that matter with --component"
        )
    return None


def _without_impossible(found: Attribution, defined: str) -> Attribution:
    """Without numbers that need a run with several values of one factor."""
    none = Number(estimate=None, reason="a run has one value of a factor, so no run has all components at once")
    effects = {
        name: replace(
            effect, indices={index: number if index == defined else none for index, number in effect.indices.items()}
        )
        for name, effect in found.effects.items()
    }
    return replace(found, effects=effects, total=none)


def _with_confounding(found: Attribution, table: Table) -> Attribution:
    """The verdict on a component that changes together with an unused column is that, and nothing else."""
    effects = {
        name: replace(effect, verdict=f"confounded with {table.confounded[name]}", runs_to_resolve=None)
        if name in table.confounded
        else effect
        for name, effect in found.effects.items()
    }
    return replace(found, effects=effects, order_spectrum=None if table.covariates.size else found.order_spectrum)


def parse_requires(options: Sequence[str], known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{"A": ("B",)} from ["A=B"]. ValueError names an option that cannot be read."""
    out: dict[str, tuple[str, ...]] = {}
    for option in options:
        name, equals, wanted = (part.strip() for part in option.partition("="))
        needs = [part.strip() for part in wanted.split(",")]
        if not equals or not name or not all(needs):
            raise ValueError(f"the prerequisite {option!r} cannot be read; write A=B where component A requires B")
        for part in (name, *needs):
            _check_known(part, known, f"the prerequisite {option!r}")
        out[name] = (*out.get(name, ()), *needs)
    return out


def parse_blocks(options: Sequence[str], known: Sequence[str]) -> list[tuple[str, ...]]:
    """[("A", "B")] from ["A,B"]. ValueError names an option that cannot be read."""
    out = []
    for option in options:
        names = tuple(part.strip() for part in option.split(","))
        if not all(names):
            raise ValueError(f"the block {option!r} cannot be read; write A,B for components that belong together")
        for name in names:
            _check_known(name, known, f"the block {option!r}")
        out.append(names)
    return out


def _check_known(name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        raise ValueError(f"{where} names {name!r}, which is not a component of this table; {nearest(name, known)}")


def _prerequisites(table: Table, requires: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Prerequisites among the components that vary; those on columns that never change are checked and dropped."""
    if not requires:
        return {}
    # On all columns first: a circle or an unmet prerequisite may run through one that never changes.
    everything = (*table.components, *table.constant)
    full = lattice(everything, requires)
    for row, place in zip(table.levels, table.places, strict=True):
        cell = full.mask(name for name in everything if row[name])
        if cell not in full.cells:
            raise ValueError(f"{place}: {full.infeasible_reason(cell)}; correct the row or the prerequisite")
    closed = {name: full.names(need) for name, need in zip(everything, full.needs, strict=True)}
    return {
        name: tuple(other for other in closed[name] if other in table.components)
        for name in table.components
        if closed[name]
    }


def _observations(table: Table, parts: Lattice) -> Observations:
    off_is_set = parts.star == "last"
    return Observations(
        cells=tuple(parts.mask(name for name in parts.components if row[name] != off_is_set) for row in table.levels),
        values=table.values,
        clusters=table.seeds,
        resolution=table.resolution,
        covariates=tuple(map(tuple, table.covariates.tolist())) if table.covariates.size else (),
    )
