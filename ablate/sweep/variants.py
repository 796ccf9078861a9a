"""The variants of a study: from its design to levels of every component, specifications and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ablate.components.component import ON
from ablate.components.registry import component
from ablate.components.variants import describe, full_variant, none_variant, prerequisites, resolve, without
from ablate.errors import nearest
from ablate.runs.plan import NamedVariant
from ablate.runs.study import Study
from ablate.spec.run import Preset


def variants(study: Study, base: Preset) -> list[NamedVariant]:
    """The variants of a study's design with their seeds, the reference first.

    ValueError where there is nothing to compare, a variant is impossible, or the design cannot be made.
    """
    full = without(full_variant(base) | _on(study.calibration), study.without, study.alternatives)
    n_seeds = base.n_seeds if study.n_seeds is None else study.n_seeds
    if study.design == "one":
        seeds = tuple(range(n_seeds))
        assigned = [(levels, seeds) for levels in _compared(study, full)]
    else:
        assigned = _designed(study, full, n_seeds)
    for name, alternative in study.alternatives.items():
        if not any(levels[name] == alternative for levels, _ in assigned):
            raise ValueError(
                f"alternative {name}={alternative} has no effect: no variant of this study has {name} off; "
                f"disable {name} too, or leave the alternative out"
            )
    named = [_named(levels, seeds, full, study, base) for levels, seeds in assigned]
    _check_backends(study, named)
    for name in study.learning_rates:
        if name not in [v.name for v in named]:
            raise ValueError(f"learning_rates names {name!r}, and {nearest(name, [v.name for v in named])}")
    return named


def _compared(study: Study, full: Mapping[str, str]) -> list[dict[str, str]]:
    """The two sides of a comparison: with and without."""
    if study.enable:
        # What a component requires is on beside it and without it: add-one-in of aux-free is against moe alone.
        required = {r for name in study.enable for r in component(name).requires if r not in study.enable}
        off = none_variant() | dict(study.alternatives) | _on(list(required))
        return [off | dict.fromkeys(study.enable, ON), off]
    if not study.disable:
        raise ValueError("nothing to compare: name at least one component with --disable or --enable")
    for name in study.disable:
        if full[name] != ON:
            raise ValueError(
                f"{name} is off in every variant of this study already (preset {study.preset}, "
                f"without {', '.join(study.without) or 'nothing'}); "
                f"disable one of: {', '.join(n for n in full if full[n] == ON) or 'nothing, choose another preset'}"
            )
    return [dict(full), without(full, study.disable, study.alternatives)]


def _designed(study: Study, full: Mapping[str, str], n_seeds: int) -> list[tuple[dict[str, str], tuple[int, ...]]]:
    """Levels and seeds of each cell of a designed experiment over the components that are on in `full`."""
    from ablate.attribution.lattice import lattice

    named = study.disable or study.enable
    names = (*named, *study.calibration) if named else tuple(name for name in full if full[name] == ON)
    for name in names:
        if full[name] != ON:
            raise ValueError(f"{name} is off in every variant of this study, so nothing can be attributed to it")
    parts = lattice(names, {name: prerequisites(name, names, study.alternatives) for name in names})
    design = _design(study, parts, n_seeds)
    seeds: dict[int, list[int]] = {}
    for run in sorted(design.runs, key=lambda run: -run.cell.bit_count()):
        seeds.setdefault(run.cell, []).append(run.block)
    return [
        (without(full, [n for n in names if n not in parts.names(cell)], study.alternatives), tuple(blocks))
        for cell, blocks in seeds.items()
    ]


def _design(study: Study, parts: Any, n_seeds: int) -> Any:
    from ablate.attribution.design import designs, exchange

    make: dict[str, Callable[[], Any]] = {
        "leave-one-out": lambda: designs.leave_one_out(parts, n_seeds),
        "add-one-in": lambda: designs.add_one_in(parts, n_seeds),
        "first-last": lambda: designs.first_last(parts, n_seeds),
        "lattice": lambda: exchange.lattice_design(parts, replicates=n_seeds, block_size=study.block_size),
        "optimal": lambda: exchange.optimal(parts, _n_runs(study), order=study.order),
        "staged": lambda: exchange.staged(parts, order=study.order),
    }
    return make[study.design]()


def _n_runs(study: Study) -> int:
    if study.n_runs is None:
        raise ValueError("design is optimal, and n_runs does not say how many; 32 suffice for six components and pairs")
    return study.n_runs


def _named(
    levels: dict[str, str], seeds: tuple[int, ...], full: Mapping[str, str], study: Study, base: Preset
) -> NamedVariant:
    none = {n: component(n).default_alternative for n in levels}
    none |= {k: v for k, v in study.alternatives.items() if levels[k] == v}
    added = [name for name in levels if levels[name] == ON]
    name = describe(levels, full)
    if not added:
        name = "none" if levels == none else describe(levels, none)
    elif levels != full and len(added) < sum(full[n] == ON for n in full) / 2 and levels == none | _on(added):
        name = " ".join(f"+{n}" for n in added)
    spec = resolve(base, levels)
    spec = dataclasses.replace(spec, model=spec.model.with_backends(study.backends))
    if name in study.learning_rates:
        rate = study.learning_rates[name]
        spec = dataclasses.replace(spec, trainer=dataclasses.replace(spec.trainer, learning_rate=rate))
    return NamedVariant(name=name, levels=levels, spec=spec, seeds=tuple(study.first_seed + seed for seed in seeds))


def _check_backends(study: Study, named: Sequence[NamedVariant]) -> None:
    """ValueError for a backend that no variant's node of that slot has."""
    for slot, backend in study.backends.items():
        if not any(v.spec.model.backends.get(slot) == backend for v in named):
            raise ValueError(
                f"backend {slot}={backend} has no effect: no variant of this study has a part in the slot {slot} "
                f"that knows a backend {backend}"
            )


def _on(names: Sequence[str]) -> dict[str, str]:
    return dict.fromkeys(names, ON)
