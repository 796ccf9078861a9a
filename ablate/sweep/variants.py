"""The variants of a study: from its design to levels of every component, specifications and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from ablate.attribution.design import designs, exchange
from ablate.attribution.lattice import Lattice, lattice
from ablate.components.component import ON
from ablate.components.registry import REGISTRY, component
from ablate.components.variants import Variant
from ablate.errors import nearest
from ablate.runs.plan import Design, NamedVariant
from ablate.runs.study import Study
from ablate.spec.run import Preset


def variants(study: Study, base: Preset) -> tuple[list[NamedVariant], Design]:
    """The variants of a study with their seeds, the reference first; and the design that they are laid out by.

    ValueError where there is nothing to compare, a variant is impossible, or the design cannot be made.
    """
    assert not isinstance(study.learning_rates, str), "the rates are found before (ablate.sweep.tuned)"
    full = (Variant.full(base) | _on(study.calibration)).without(study.without, study.alternatives)
    n_seeds = base.n_seeds if study.n_seeds is None else study.n_seeds
    if study.design == "one":
        seeds = tuple(range(n_seeds))
        assigned, design = [(variant, seeds) for variant in _compared(study, full)], Design(name="one")
    else:
        assigned, design = _designed(study, full, n_seeds)
    for name, alternative in study.alternatives.items():
        if not any(variant[name] == alternative for variant, _ in assigned):
            raise ValueError(
                f"alternative {name}={alternative} has no effect: no variant of this study has {name} off; "
                f"disable {name} too, or leave the alternative out"
            )
    named = [_named(variant, seeds, full, study, base) for variant, seeds in assigned]
    _check_backends(study, named)
    for name in study.learning_rates:
        if name not in [v.name for v in named]:
            raise ValueError(f"learning_rates names {name!r}, and {nearest(name, [v.name for v in named])}")
    return named, design


def _compared(study: Study, full: Variant) -> list[Variant]:
    """The two sides of a comparison: with and without."""
    if study.enable:
        # What a component requires is on beside it and without it: add-one-in of aux-free is against moe alone.
        required = {r for name in study.enable for r in component(name).requires if r not in study.enable}
        off = Variant.none() | study.alternatives | _on(required)
        return [off | _on(study.enable), off]
    if not study.disable:
        raise ValueError("nothing to compare: name at least one component with --disable or --enable")
    for name in study.disable:
        if full[name] != ON:
            raise ValueError(
                f"{name} is off in every variant of this study already: it is not in the recipe of the preset "
                f"{study.preset}, or among what the study leaves out ({', '.join(study.without) or 'nothing'}); "
                f"disable one of: {', '.join(full.on) or 'nothing, choose another preset'}"
            )
    return [full, full.without(study.disable, study.alternatives)]


def _designed(study: Study, full: Variant, n_seeds: int) -> tuple[list[tuple[Variant, tuple[int, ...]]], Design]:
    """Levels and seeds of each cell of a designed experiment over the components that are on in `full`."""
    named = study.disable or study.enable
    names = (*named, *study.calibration) if named else full.on
    for name in names:
        if full[name] != ON:
            raise ValueError(
                f"{name} is off in every variant of this study, so nothing can be attributed to it; it must be in the "
                f"recipe of the preset {study.preset}, and not among what the study leaves out"
            )
    parts = lattice(names, REGISTRY.prerequisites(names, study.alternatives))
    design = _design(study, parts, n_seeds)
    seeds: dict[int, list[int]] = {}
    for run in sorted(design.runs, key=lambda run: -run.cell.bit_count()):
        seeds.setdefault(run.cell, []).append(run.block)
    assigned = [
        (full.without([n for n in names if n not in parts.names(cell)], study.alternatives), tuple(blocks))
        for cell, blocks in seeds.items()
    ]
    # Once every run of a staged design is there the whole lattice is, so that only `optimal` assumes its order.
    order = study.order if study.design == "optimal" else None
    return assigned, Design(name=study.design, order=order, stages=design.stages)


def _design(study: Study, parts: Lattice, n_seeds: int) -> designs.Design:
    make: dict[str, Callable[[], designs.Design]] = {
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


def _named(variant: Variant, seeds: tuple[int, ...], full: Variant, study: Study, base: Preset) -> NamedVariant:
    none = variant | {chosen.name: chosen.default_alternative for chosen, _ in variant.choices}
    none |= {name: level for name, level in study.alternatives.items() if variant[name] == level}
    name = variant.describe(full)
    if variant == full and full != Variant.full(base) | _on(study.calibration):
        name = f"full without {' and '.join(study.without)}"
    if not variant.on:
        name = "none" if variant == none else variant.describe(none)
    elif variant != full and len(variant.on) < len(full.on) / 2 and variant == none | _on(variant.on):
        name = " ".join(f"+{n}" for n in variant.on)
    spec = variant.resolve(base)
    spec = dataclasses.replace(spec, model=spec.model.with_backends(study.backends))
    assert not isinstance(study.learning_rates, str)
    if name in study.learning_rates:
        rate = study.learning_rates[name]
        spec = dataclasses.replace(spec, trainer=dataclasses.replace(spec.trainer, learning_rate=rate))
    return NamedVariant(
        name=name, levels=variant.levels, spec=spec, seeds=tuple(study.first_seed + seed for seed in seeds)
    )


def _check_backends(study: Study, named: Sequence[NamedVariant]) -> None:
    """ValueError for a backend that no variant's node of that slot has."""
    for slot, backend in study.backends.items():
        if not any(v.spec.model.backends.get(slot) == backend for v in named):
            raise ValueError(
                f"backend {slot}={backend} has no effect: no variant of this study has a part in the slot {slot} "
                f"that knows a backend {backend}"
            )


def _on(names: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(names, ON)
