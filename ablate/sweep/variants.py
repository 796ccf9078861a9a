"""The variants of a study: from its design to levels of every component, specifications and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ablate.attribution.design import designs, exchange
from ablate.attribution.lattice import Lattice, lattice
from ablate.components.component import ON
from ablate.components.registry import REGISTRY, component
from ablate.components.variants import Variant
from ablate.errors import nearest
from ablate.runs.factors import PRESET, Cell, Factor, cells
from ablate.runs.plan import Design, NamedVariant
from ablate.runs.study import Study
from ablate.spec.run import Preset
from ablate.sweep.crossing import check_distinct, set_levels
from ablate.sweep.seeds import Round, require_planned_precision

LATTICES = ("lattice", "optimal", "staged")  # designs that lay out further factors of two levels among the components


@dataclass(frozen=True, kw_only=True, slots=True)
class _Assigned:
    """One variant of a cell of factors before it has a name: the components, further players at their second level."""

    variant: Variant
    seeds: tuple[int, ...]
    upper: tuple[str, ...] = ()


def variants(study: Study, base: Preset, now: Round | None = None) -> tuple[list[NamedVariant], Design]:
    """The variants of a study with their seeds, the reference first; and the design that they are laid out by.

    now: how many of its seeds and stages are planned; None: all of them, or the preset's.

    Factors are crossed with what the design compares: every combination of their levels has the whole design. Those
    of two levels are laid out among the components by a design that can: the lattice, whole or in part.
    ValueError where there is nothing to compare, a variant is impossible, or the design cannot be made.
    """
    assert not isinstance(study.learning_rates, str), "the rates are found before (ablate.sweep.tuned)"
    factors = study.crossed
    players = [f for f in factors if study.design in LATTICES and _is_player(f)]
    named: list[NamedVariant] = []
    laid_out = None
    for cell in cells([f for f in factors if f not in players]):
        try:
            found, design, laid_out = _in_cell(study, cell, players, base, now)
        except ValueError as error:
            if not cell.levels:
                raise
            raise ValueError(f"the cell {cell.label} of the factors: {error}") from None
        named += found
    if now:
        design = dataclasses.replace(design, stages=now.stages, looks=now.looks)
    for name, alternative in study.alternatives.items():
        if not any(v.levels[name] == alternative for v in named):
            raise ValueError(
                f"alternative {name}={alternative} has no effect: no variant of this study has {name} off; "
                f"disable {name} too, or leave the alternative out"
            )
    _check_backends(study, named)
    if factors:
        check_distinct(named, budget_given=study.budget is not None)
    if study.precision and laid_out is not None and study.design != "leave-one-out":
        require_planned_precision(study, base, named, laid_out)
    for name in study.learning_rates:
        if name not in [v.name for v in named]:
            raise ValueError(f"learning_rates names {name!r}, and {nearest(name, [v.name for v in named])}")
    return named, design


def _in_cell(
    study: Study, cell: Cell, players: Sequence[Factor], base: Preset, now: Round | None
) -> tuple[list[NamedVariant], Design, designs.Design | None]:
    """The variants at one combination of levels of the crossed factors, and how a design has laid them out."""
    here = study.load_preset(cell.settings) if cell.settings else base
    varied = [name for factor in study.crossed for name in factor.components]
    for name in varied:
        if name in (*study.disable, *study.enable, *study.without, *study.alternatives):
            raise ValueError(f"{name} is a factor, and the study turns it off or on too; leave it to the factor")
    full = (Variant.full(here) | _on(study.calibration)).without(study.without, study.alternatives)
    full = set_levels(full, cell.alternatives())
    n_seeds = (now.n_seeds if now else 0) or study.n_seeds or here.n_seeds
    laid_out = None
    if study.design == "one":
        seeds = tuple(range(n_seeds))
        alone = study.factors and not study.disable and not study.enable
        compared = [full] if alone else _compared(study, full, cell, here)
        assigned = [_Assigned(variant=variant, seeds=seeds) for variant in compared]
        design = Design(name="factorial" if alone else "one")
    else:
        at_stage = now.stage if now else None
        assigned, design, laid_out = _designed(study, full, n_seeds, [p.name for p in players], varied, at_stage)
    whole = Variant.full(here) | _on(study.calibration) | cell.alternatives()
    return [_named(a, full, whole, study, cell, players, base) for a in assigned], design, laid_out


def _is_player(factor: Factor) -> bool:
    """Whether a factor can stand among the components of a lattice: two levels that leave the components alone."""
    return len(factor.levels) == 2 and not factor.components and PRESET not in factor.fields


def _compared(study: Study, full: Variant, cell: Cell, here: Preset) -> list[Variant]:
    """The two sides of a comparison: with and without."""
    if study.enable:
        # What a component requires is on beside it and without it: add-one-in of aux-free is against moe alone.
        required = {r for name in study.enable for r in component(name).requires if r not in study.enable}
        off = set_levels(Variant.none() | study.alternatives | _on(required), cell.alternatives())
        return [off | _on(study.enable), off]
    if not study.disable:
        raise ValueError("nothing to compare: name at least one component with --disable or --enable")
    for name in study.disable:
        if full[name] != ON and (axis := component(name).axis) and not here.trainer.ranks.on_several(axis):
            raise ValueError(
                f"{name} means something only where a run has several {axis} ranks; give --ranks {axis}=2, or more"
            )
        if full[name] != ON:
            raise ValueError(
                f"{name} is off in every variant of this study already: it is not in the recipe of the preset "
                f"{study.preset}, or among what the study leaves out ({', '.join(study.without) or 'nothing'}); "
                f"disable one of: {', '.join(full.on) or 'nothing, choose another preset'}"
            )
    return [full, full.without(study.disable, study.alternatives)]


def _designed(
    study: Study, full: Variant, n_seeds: int, players: Sequence[str], varied: Sequence[str],
    stage: int | None,
) -> tuple[list[_Assigned], Design, designs.Design]:  # fmt: skip
    """Levels and seeds of each cell of a designed experiment over the components that are on in `full`.

    `players`: further factors of two levels. `varied`: components that a factor sets, which are not attributed to.
    `stage`: the last of a staged design that is run now; None: all.
    """
    named = study.disable or study.enable
    names = (*named, *study.calibration) if named else tuple(n for n in full.on if n not in varied)
    for name in names:
        if full[name] != ON:
            raise ValueError(
                f"{name} is off in every variant of this study, so nothing can be attributed to it; it must be in the "
                f"recipe of the preset {study.preset}, and not among what the study leaves out"
            )
    parts = lattice((*names, *players), REGISTRY.prerequisites(names, study.alternatives))
    design = _design(study, parts, n_seeds)
    if stage is not None:
        design = exchange.up_to_stage(design, stage, order=study.order)
    seeds: dict[int, list[int]] = {}
    for run in sorted(design.runs, key=lambda run: -run.cell.bit_count()):
        seeds.setdefault(run.cell, []).append(run.block)
    assigned = [
        _Assigned(
            variant=full.without([n for n in names if n not in parts.names(cell)], study.alternatives),
            seeds=tuple(blocks),
            upper=tuple(n for n in players if n in parts.names(cell)),
        )
        for cell, blocks in seeds.items()
    ]
    # A lattice that is there wholly needs no assumption for its values, whatever its noise was planned from.
    order = design.order if study.design in ("optimal", "staged") else None
    return assigned, Design(name=study.design, order=order, stages=design.stages), design


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


def _named(
    assigned: _Assigned, full: Variant, whole: Variant, study: Study, cell: Cell, players: Sequence[Factor],
    base: Preset,
) -> NamedVariant:  # fmt: skip
    """`full`: of the study in this cell; `whole`: the recipe, before the study leaves anything out."""
    variant = assigned.variant
    none = variant | {chosen.name: chosen.default_alternative for chosen, _ in variant.choices}
    none |= {name: level for name, level in study.alternatives.items() if variant[name] == level}
    name = variant.describe(full)
    if variant == full and full != whole:
        name = f"full without {' and '.join(study.without)}"
    if not variant.on:
        name = "none" if variant == none else variant.describe(none)
    elif variant != full and len(variant.on) < len(full.on) / 2 and variant == none | _on(variant.on):
        name = " ".join(f"+{n}" for n in variant.on)
    at = _with_players(cell, players, assigned.upper)
    if at.levels:
        name = at.label if study.design == "one" and not study.disable and not study.enable else f"{name} at {at.label}"
    spec = variant.resolve(study.load_preset(at.settings) if at.settings else base)
    spec = dataclasses.replace(spec, model=spec.model.with_backends(study.backends))
    assert not isinstance(study.learning_rates, str)
    if name in study.learning_rates:
        rate = study.learning_rates[name]
        spec = dataclasses.replace(spec, trainer=dataclasses.replace(spec.trainer, learning_rate=rate))
    return NamedVariant(
        name=name,
        levels=variant.levels | dict(at.levels),
        spec=spec,
        seeds=tuple(study.first_seed + seed for seed in assigned.seeds),
        upper=tuple(f.name for f in study.crossed if len(f.levels) == 2 and at.levels[f.name] == f.levels[1].label),
    )


def _with_players(cell: Cell, players: Sequence[Factor], upper: Sequence[str]) -> Cell:
    """The cell with a level for each factor that is laid out among the components."""
    levels, settings = dict(cell.levels), dict(cell.settings)
    for factor in players:
        level = factor.levels[factor.name in upper]
        levels[factor.name] = level.label
        settings |= level.settings
    return Cell(levels=levels, settings=settings)


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
