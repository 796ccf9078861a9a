"""From runs to one attribution: totals, effects by every index, verdicts, interactions, sensitivity, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil
from types import MappingProxyType
from typing import Any

import numpy as np

from ablate.attribution.design.designs import add_cells, drop_cells
from ablate.attribution.estimation.estimates import Estimate, Estimates, Observations, estimate
from ablate.attribution.indices import index_weights, interaction_weights, total_weights, undefined_reason
from ablate.attribution.lattice import Floats, Lattice, order_spectrum
from ablate.attribution.results import Attribution, ComponentEffect, Interaction, Number, Question, Rank
from ablate.attribution.verdicts import (
    NOT_RESOLVED,
    Effect,
    beyond_margin_p,
    has_no_spread,
    holm,
    holm_verdicts,
    interval,
    max_t_critical,
    no_spread_warning,
    units_to_resolve,
)

SHOWN = ("first", "last", "owen", "shapley")
SENSITIVITY = ("banzhaf", "permission", "faigle-kern")
MAX_RUNS = 100_000  # a larger number of further runs is no advice
MAX_NAMED = 3  # variants in one sentence
NOTHING: Mapping[Any, Any] = MappingProxyType({})
HEADLINE = ("owen", "last")  # verdicts are on the first of these, unless more components have the other


def attribute_runs(
    lattice: Lattice,
    runs: Observations,
    question: Question,
    *,
    headlines: Sequence[str] = HEADLINE,
    refused: Mapping[int, str] = NOTHING,
    compared: Mapping[str, Effect] = NOTHING,
) -> Attribution:
    """Attribution of the metric among the components of the lattice; verdicts are on one of the `headlines`.

    Values of `runs` are the metric (its log already taken where `question.log`). What the runs cannot give is None with
    a reason. `refused`: cell -> what became of its runs, such as "-mla (1 diverged of 4 runs)"; what is defined on such
    a cell has no interval. `compared`: component -> its leave-one-out effect where pairs of runs gave it, which then
    stands here too.
    ValueError where the runs fit no design at all (it names the variants to add), or for an infeasible variant.
    """
    check_design(lattice, {*runs.cells, *refused}, question.order)
    functionals = _functionals(lattice)
    estimated = estimate(lattice, runs, functionals, order=question.order)
    found = _refuse(lattice, estimated, functionals, set(runs.cells), refused)
    lines = found.lines
    headline = _headline(lattice, lines, headlines)
    effects = _effects(lattice, found, headline, question)
    effects |= {name: _as_compared(effects[name], effect) for name, effect in compared.items()}
    return Attribution(
        question=question, total=_total(lattice, lines, question), effects=effects,
        interactions=_interactions(lattice, lines, question), ranks=_ranks(lattice, found, headline, question),
        order_spectrum=_spectrum(lattice, runs), residual_sd=found.residual_sd, residual_df=found.residual_df,
        design=describe_design(lattice, runs, found),
        warnings=(*found.warnings, *_not_after_holm(effects, question), *_refusals(lines, estimated.lines),
                  *_without_spread(lattice, lines, runs)),
    )  # fmt: skip


def _effects(
    lattice: Lattice, found: Estimates, headline: str | None, question: Question
) -> dict[str, ComponentEffect]:
    """Every component by every index, with the verdict on the headline one."""
    lines = found.lines
    index = headline or next(i for i in (*HEADLINE, "first") if f"{i}:{lattice.components[0]}" in lines)
    verdicts, n_tests = _verdicts(lattice, found, headline, question)
    joint = _simultaneous(lattice, found, headline, question)
    return {
        name: ComponentEffect(
            indices={i: _index_number(lattice, lines, i, name, question) for i in (*SHOWN, *SENSITIVITY)},
            simultaneous=joint.get(name), n=line.n, verdict=verdicts[name], family=n_tests,
            verdict_from=headline if _known(line) else None, method=line.method,
            runs_to_resolve=_further_runs(line, verdicts[name], question, len(lattice.components)),
        )
        for name in lattice.components
        if (line := lines[f"{index}:{name}"])
    }  # fmt: skip


def _refuse(
    lattice: Lattice, found: Estimates, functionals: Mapping[str, Floats], present: set[int], refused: Mapping[int, str]
) -> Estimates:
    """Without the standard error of what is defined on a refused cell, and without its value where no run is left."""
    lines = dict(found.lines)
    for name, row in functionals.items():
        hit = [cell for cell in refused if abs(row[lattice.index(cell)[0]]) > 1e-12]
        if hit:
            more = f" and {len(hit) - MAX_NAMED} more" if len(hit) > MAX_NAMED else ""
            said = ", ".join(refused[cell] for cell in hit[:MAX_NAMED])
            value = lines[name].value if present.issuperset(hit) else None
            lines[name] = Estimate(name=name, value=value, n=lines[name].n, reason=f"it is defined on {said}{more}")
    return replace(found, lines=lines)


def _as_compared(effect: ComponentEffect, pairs: Effect) -> ComponentEffect:
    """The effect with the numbers and the verdict of its comparison, which is the same quantity."""
    last = Number(estimate=pairs.estimate, low=pairs.low, high=pairs.high, reason=pairs.reason)
    return replace(
        effect, indices={**effect.indices, "last": last}, n=pairs.n, verdict=pairs.verdict, family=pairs.family,
        verdict_from=None if pairs.low is None else "last", method=pairs.method,
        runs_to_resolve=pairs.runs_to_resolve,
        simultaneous=effect.simultaneous if effect.method == pairs.method else None,
    )  # fmt: skip


def _without_spread(lattice: Lattice, lines: Mapping[str, Estimate], runs: Observations) -> list[str]:
    """A sentence on components whose numbers stand in an interval of no width."""
    size = max(abs(value) for value in runs.values)
    flat = {
        name.partition(":")[2]
        for name, line in lines.items()
        if line.standard_error is not None and has_no_spread(line.standard_error, size)
    }
    named = [component for component in lattice.components if component in flat]
    return [no_spread_warning(named)] if named else []


def _refusals(lines: Mapping[str, Estimate], estimated: Mapping[str, Estimate]) -> list[str]:
    """Why estimates stand without an interval, each reason once; what is refused for its cells says so where it is."""
    open_lines = [line for name, line in lines.items() if line is estimated[name]]
    return list(dict.fromkeys(line.reason for line in open_lines if line.value is not None and line.reason))


def _headline(lattice: Lattice, lines: Mapping[str, Estimate], headlines: Sequence[str]) -> str | None:
    """The index that verdicts are on: that of `headlines` which most components have, add-one-in where none has one."""
    counts = {i: sum(_known(lines.get(f"{i}:{c}")) for c in lattice.components) for i in (*headlines, "first")}
    index = max(headlines, key=lambda i: counts[i])
    index = index if counts[index] else "first"
    return index if counts[index] else None


def check_design(lattice: Lattice, cells: set[int], order: int | None = None) -> None:
    """ValueError where the variants present are neither a one-at-a-time design nor enough for a model of the order.

    The sentence names the fewest variants that would complete the table.
    """
    lattice.index(sorted(cells))
    wanted = [set(lattice.cells), set(drop_cells(lattice)), set(add_cells(lattice))]
    if any(cells >= design for design in wanted):
        return
    runs = Observations(cells=tuple(sorted(cells)), values=(0.0,) * len(cells), clusters=(None,) * len(cells))
    owen = dict(zip(lattice.components, index_weights(lattice, "owen"), strict=True))
    if all(line.value is not None for line in estimate(lattice, runs, owen, order=order).lines.values()):
        return
    lacking = sorted(sorted((design - cells for design in wanted), key=lambda missing: len(missing))[0])
    known = dict(lattice.labels)
    named = ", ".join(known.get(cell) or _levels(lattice, cell) for cell in lacking[:4])
    more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
    raise ValueError(
        f"the {len(cells)} variants of this table do not determine the effects of {', '.join(lattice.components)}; "
        f"add runs of {named}{more}, or take a component out of the table"
    )


def _levels(lattice: Lattice, cell: int) -> str:
    return " ".join(f"{name}={'on' if cell >> i & 1 else 'off'}" for i, name in enumerate(lattice.components))


def _functionals(lattice: Lattice) -> dict[str, Floats]:
    out: dict[str, Floats] = {} if lattice.star else {"total": total_weights(lattice)}
    for index in (*SHOWN, *SENSITIVITY):
        if undefined_reason(lattice, index) is None:
            rows = index_weights(lattice, index)
            out |= {f"{index}:{name}": row for name, row in zip(lattice.components, rows, strict=True)}
    pairs = interaction_weights(lattice)
    return out | {f"pair:{a}:{b}": weights for (a, b), weights in pairs.items() if weights is not None}


def _known(line: Estimate | None) -> bool:
    return line is not None and line.standard_error is not None


def _number(line: Estimate, question: Question) -> Number:
    if line.value is None or line.standard_error is None or line.df is None:
        return Number(estimate=line.value, reason=line.reason)
    low, high = interval(line.value, line.standard_error, line.df, question.confidence)
    return Number(estimate=line.value, low=low, high=high)


def _total(lattice: Lattice, lines: Mapping[str, Estimate], question: Question) -> Number:
    if lattice.star:
        return Number(estimate=None, reason="no run has all components at once, so there is no total")
    return _number(lines["total"], question)


def _index_number(lattice: Lattice, lines: Mapping[str, Estimate], index: str, name: str, question: Question) -> Number:
    reason = undefined_reason(lattice, index)
    return Number(estimate=None, reason=reason) if reason else _number(lines[f"{index}:{name}"], question)


def _verdicts(
    lattice: Lattice, found: Estimates, headline: str | None, question: Question
) -> tuple[dict[str, str], int]:
    """Verdict per component, corrected over all that have an interval, and how many those are."""
    known = {
        c: found.lines[f"{headline}:{c}"] for c in lattice.components if _known(found.lines.get(f"{headline}:{c}"))
    }
    out = holm_verdicts(
        {c: (line.value or 0.0, line.standard_error or 0.0, line.df or 1.0) for c, line in known.items()},
        margin=question.margin,
        confidence=question.confidence,
        lower_is_better=question.lower_is_better,
    )
    return dict.fromkeys(lattice.components, NOT_RESOLVED) | out, max(len(out), 1)


def _not_after_holm(effects: Mapping[str, ComponentEffect], question: Question) -> list[str]:
    """A sentence for each effect that only the correction keeps from a verdict."""
    out = []
    for name, effect in effects.items():
        shown = effect.indices[effect.verdict_from] if effect.verdict_from else Number(estimate=None)
        if effect.verdict != NOT_RESOLVED or shown.low is None or shown.high is None:
            continue
        if shown.low > question.margin or shown.high < -question.margin:
            out.append(
                f"{name}: its own interval lies beyond the margin, but not after Holm's correction over "
                f"{effect.family} components"
            )
    return out


def _ranks(lattice: Lattice, found: Estimates, headline: str | None, question: Question) -> tuple[Rank, ...]:
    """Neighbours in order of worth; one is worth more if the interval of the difference says so after Holm."""
    sign = 1 if question.lower_is_better else -1
    known = {c: line for c in lattice.components if (line := found.lines.get(f"{headline}:{c}")) and _known(line)}
    worth = {c: line.value or 0.0 for c, line in known.items()}
    pairs = list(pairwise(sorted(worth, key=lambda c: sign * worth[c])))
    lines = [found.difference(f"{headline}:{a}", f"{headline}:{b}") for a, b in pairs]
    adjusted = iter(holm([_zero_p(line) for line in lines if _known(line)]))
    p_values = [next(adjusted) if _known(line) else None for line in lines]
    return tuple(
        Rank(
            better=a, worse=b, number=_number(line, question), adjusted_p=p,
            resolved=p is not None and p <= 1 - question.confidence,
        )
        for (a, b), line, p in zip(pairs, lines, p_values, strict=True)
    )  # fmt: skip


def _simultaneous(lattice: Lattice, found: Estimates, headline: str | None, question: Question) -> dict[str, Number]:
    """Intervals of the headline index that hold together (max-t), where these effects have a joint noise model."""
    names = list(found.lines)
    known = [c for c in lattice.components if headline and _known(found.lines[f"{headline}:{c}"])]
    at = [names.index(f"{headline}:{c}") for c in known]
    covariance = found.covariance[np.ix_(at, at)]
    if not known or not np.isfinite(covariance).all():
        return {}
    chosen = [found.lines[f"{headline}:{c}"] for c in known]
    critical = max_t_critical(covariance, min(line.df or 1.0 for line in chosen), question.confidence)
    out = {}
    for name, line in zip(known, chosen, strict=True):
        value, half = line.value or 0.0, critical * (line.standard_error or 0.0)
        out[name] = Number(estimate=value, low=value - half, high=value + half)
    return out


def _further_runs(line: Estimate, verdict: str, question: Question, effects: int) -> int | None:
    if line.value is None or line.standard_error is None or line.df is None:
        return None
    if verdict != NOT_RESOLVED:
        return 0
    units = units_to_resolve(
        line.value, line.standard_error, line.df, n=line.n, margin=question.margin,
        confidence=1 - (1 - question.confidence) / effects, df_per_unit=line.df_per_unit,
    )  # fmt: skip
    runs = None if units is None else ceil(max(units - line.n, 1) * line.runs_per_unit)
    return None if runs is None or runs > MAX_RUNS else runs


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that those below alpha have a share of false discoveries of at most alpha (1995)."""
    n = len(p_values)
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * n / np.arange(1, n + 1)
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return [float(p) for p in adjusted]


def _interactions(lattice: Lattice, lines: Mapping[str, Estimate], question: Question) -> tuple[Interaction, ...]:
    nested = Number(estimate=None, reason="not applicable: one of the two requires the other")
    pairs = {pair: lines.get(f"pair:{pair[0]}:{pair[1]}") for pair in interaction_weights(lattice)}
    tested = [pair for pair, line in pairs.items() if _known(line)]
    p_values = [_zero_p(line) for pair in tested if (line := pairs[pair]) is not None]
    adjusted = dict(zip(tested, benjamini_hochberg(p_values), strict=True))
    return tuple(
        Interaction(
            components=pair,
            number=nested if line is None else _number(line, question),
            adjusted_p=adjusted.get(pair),
        )
        for pair, line in pairs.items()
    )


def _zero_p(line: Estimate) -> float:
    return beyond_margin_p(line.value or 0.0, line.standard_error or 0.0, line.df or 1.0, 0.0)


def _spectrum(lattice: Lattice, runs: Observations) -> dict[int, float] | None:
    """Order spectrum of the mean metric per variant (not of the noise taken out); None for an incomplete table."""
    if lattice.star or set(runs.cells) != set(lattice.cells):
        return None
    cells, values = np.asarray(runs.cells), np.asarray(runs.values) - runs.values[0]
    return order_spectrum(lattice, [float(values[cells == cell].mean()) for cell in lattice.cells])


def describe_design(lattice: Lattice, runs: Observations, found: Estimates) -> dict[str, Any]:
    """What kind of table this is, in plain values."""
    cells = set(runs.cells)
    seeds = {cluster for cluster in runs.clusters if cluster is not None}
    return {
        "kind": _kind(lattice, cells),
        "components": list(lattice.components),
        "requires": {
            name: list(lattice.names(need))
            for name, need in zip(lattice.components, lattice.needs, strict=True)
            if need
        },
        "blocks": [list(lattice.names(block)) for block in lattice.blocks],
        "runs": len(runs.cells),
        "variants": len(cells),
        "feasible_variants": len(lattice.cells),
        "seeds": len(seeds) or None,
        "seed_layout": found.layout,
        "order": found.order,
    }


def _kind(lattice: Lattice, cells: set[int]) -> str:
    out, into = set(drop_cells(lattice)), set(add_cells(lattice))
    if lattice.star:
        return "leave-one-out" if lattice.star == "last" else "add-one-in"
    if len(lattice.components) == 1:
        return "one"
    if cells == set(lattice.cells):
        return "factorial" if lattice.unconstrained else "lattice"
    known: Sequence[tuple[str, set[int]]] = (("leave-one-out", out), ("add-one-in", into), ("first-last", out | into))
    return next((name for name, wanted in known if cells == wanted), "fraction")
