"""`dsv3-ablate attribute`: what each component is worth, from a table of runs made anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ablate.attribution.estimation.estimates import Observations
from ablate.attribution.lattice import Lattice, lattice
from ablate.attribution.results import Attribution, Question
from ablate.attribution.summary import attribute_runs
from ablate.attribution.table.reading import Table, columns_of, guess_direction, read_csv, read_table


def attribute(
    source: str | Path | Any,
    *,
    metric: str | None = None,
    lower_is_better: bool | None = None,
    requires: Sequence[str] = (),
    blocks: Sequence[str] = (),
    margin: float = 0.0,
    confidence: float = 0.95,
    log: bool = False,
    order: int | None = None,
) -> Attribution:
    """Attribution of a table of runs: one column per component (on/off, 1/0, true/false), a metric, optionally `seed`.

    source: the path of a CSV file, a pandas DataFrame, or a mapping from column names to columns. requires: "A=B" for
    "A requires B" ("A=B,C" for both). blocks: "A,B" for components that belong together. lower_is_better: None tells it
    from the metric's name, with a warning where the name says nothing. Effects are on minus off. Raises ValueError, in
    one sentence, for a table that cannot be read this way; lines in it count as in a CSV file whose header is line 1.
    """
    columns, lines = read_csv(source) if isinstance(source, str | Path) else columns_of(source)
    table = read_table(columns, lines, metric=metric, log=log)
    warnings = list(table.warnings)
    lower = guess_direction(table.metric) if lower_is_better is None else lower_is_better
    if lower is None:
        lower = True
        warnings.append(f"lower {table.metric} is taken as better; say --higher-is-better if it is not")
    question = Question(
        metric=table.metric, lower_is_better=lower, margin=margin, confidence=confidence, log=log, order=order
    )
    known = (*table.components, *table.constant)
    needs = _prerequisites(table, parse_requires(requires, known))
    groups = [tuple(name for name in block if name in table.components) for block in parse_blocks(blocks, known)]
    parts = lattice(table.components, needs, [group for group in groups if group])
    found = attribute_runs(parts, _observations(table, parts), question)
    return replace(found, warnings=(*warnings, *found.warnings))


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
    if name in known:
        return
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the components are {', '.join(known)}"
    raise ValueError(f"{where} names {name!r}, which is not a component of this table; {hint}")


def _prerequisites(table: Table, requires: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Prerequisites among the components that vary; those on columns that never change are checked and dropped."""
    # On all columns first: a circle or an unmet prerequisite may run through one that never changes.
    everything = (*table.components, *table.constant)
    full = lattice(everything, requires)
    for row, line in zip(table.levels, table.lines, strict=True):
        cell = full.mask(name for name in everything if row[name])
        if cell not in full.cells:
            raise ValueError(f"line {line}: {full.infeasible_reason(cell)}; correct the row or the prerequisite")
    closed = {name: full.names(need) for name, need in zip(everything, full.needs, strict=True)}
    return {
        name: tuple(other for other in closed[name] if other in table.components)
        for name in table.components
        if closed[name]
    }


def _observations(table: Table, parts: Lattice) -> Observations:
    return Observations(
        cells=tuple(parts.mask(name for name in parts.components if row[name]) for row in table.levels),
        values=table.values,
        clusters=table.seeds,
    )
