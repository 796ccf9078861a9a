"""What a study will take and tell before it is run: runs, FLOPs, hours, memory, cost, width of the intervals."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ablate.attribution.design.designs import Run, make_design
from ablate.attribution.study.cells import LATTICES, design_cells
from ablate.attribution.study.compare import compare
from ablate.attribution.study.designed import AGAINST_REFERENCE, cell_of, design_lattice
from ablate.attribution.verdicts import t_quantile
from ablate.presets.noise import known_noise
from ablate.quantities import duration, listed, memory, number, plural, scaled, significant
from ablate.runs.plan import Plan, read_plan
from ablate.runs.store import Store
from ablate.spec.run import Preset

BYTES_PER_PARAMETER = 16  # float32 weight, gradient and two moments; activations come on top
PETAFLOP = 1e15


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """How far runs stray, from somewhere that is named."""

    pair_sd: float | None  # of the difference of two variants within a seed, nats per token
    run_sd: float | None  # of one run from seed to seed
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """Of the runs of a plan that have no record yet. None stands for what is not known here."""

    n_variants: int
    n_runs: int  # of the whole plan
    n_left: int
    flops: float  # of training, branches and all seeds that are left together
    device_s: float | None  # of these runs one after another
    wall_s: float | None  # with as many at a time as were asked for
    bytes_per_run: int  # weights, gradients and moments of the largest variant
    n_parallel: int
    cost: float | None  # at the price of a device's hour
    half_width: float | None  # of the least precise effect's interval, nats per token
    half_width_from: str  # which noise it is expected with, or why there is none


def price(
    plan: Plan, *, n_parallel: int, per_hour: float | None, noise: Noise | None, done: Collection[str] = ()
) -> Price:
    """The price of a plan. `per_hour`: of one device, on which one run trains at a time; `done`: runs with a record.

    ValueError for a price that is no finite number from 0 up.
    """
    if per_hour is not None and not 0 <= per_hour < math.inf:
        raise ValueError(f"--price is {per_hour}; it is what an hour of one device costs, 0 or more")
    left, device_s = plan.left(done), plan.seconds(1, done)
    half_width, origin = expected_half_width(plan, noise)
    return Price(
        n_variants=len(plan.variants),
        n_runs=plan.n_runs,
        n_left=sum(left.values()),
        flops=sum(v.flops / v.n_steps * v.n_all_steps * left[v.name] for v in plan.variants),
        device_s=device_s,
        wall_s=plan.seconds(n_parallel, done),
        bytes_per_run=round(max(BYTES_PER_PARAMETER * v.cost["trained_parameters"] for v in plan.variants)),
        n_parallel=n_parallel,
        cost=None if per_hour is None or device_s is None else per_hour * device_s / 3600,
        half_width=half_width,
        half_width_from=origin,
    )


def lines(found: Price, per_hour: float | None) -> Iterator[str]:
    """The price for people, a line for each part."""
    ended = found.n_runs - found.n_left
    left = f", of which {ended} {'has' if ended == 1 else 'have'} ended; what follows is of the rest" if ended else ""
    yield f"Cells: {plural(found.n_variants, 'variant')}; {plural(found.n_runs, 'run')} in all{left}."
    rate = f" ({duration(found.flops / PETAFLOP)} at 1 PFLOP/s)" if found.flops > 60 * PETAFLOP else ""
    yield f"Arithmetic: {scaled(found.flops, 'FLOP')} of training{rate}."
    if found.device_s is None or found.wall_s is None:
        yield "Hours: not known here; the largest variant does not fit this machine, or was not timed."
    else:
        yield (
            f"Hours: {duration(found.device_s)} one after another, {duration(found.wall_s)} with {found.n_parallel} at "
            "a time."
        )
    yield f"Memory: {memory(found.bytes_per_run)} a run for weights, gradients and moments; activations on top."
    if per_hour is not None:
        said = "not known without the hours" if found.cost is None else f"{number(found.cost, 2)}"
        yield f"Cost: {said}, at {number(per_hour, 2)} an hour of one device."
    if found.half_width is None:
        yield f"Expected half-width of an interval: not known; {found.half_width_from}."
    else:
        yield (
            f"Expected half-width of the widest interval: ±{number(found.half_width)} nats per token, with "
            f"{found.half_width_from}."
        )


def noise_of(folder: Path) -> Noise:
    """The noise in the records of a study. ValueError if it has none that can be used."""
    store = Store(folder)
    if not store.plan_file.is_file():
        raise ValueError(f"--noise is {folder}, which holds no study; give the folder that a study wrote")
    result = compare(read_plan(store.plan_file), list(store), store.failures())
    pairs = [(c.loss.sd, c.loss.df) for c in result.comparisons if c.loss.sd and c.loss.df and c.pairing_ok]
    run_sd = result.noise.sd if result.noise else None
    if pairs:
        df = sum(df for _, df in pairs)
        pair_sd = math.sqrt(sum(df * sd**2 for sd, df in pairs) / df)
        origin = f"the sd of a pair's difference of {significant(pair_sd)} in {folder} ({df:.0f} degrees of freedom)"
    elif result.attribution is not None and result.attribution.residual_sd:
        pair_sd = result.attribution.residual_sd * math.sqrt(2)
        origin = f"the residual sd of a run of {significant(result.attribution.residual_sd)} in {folder}"
    else:
        raise ValueError(f"--noise is {folder}, and too few of its runs have finished to tell their noise")
    return Noise(pair_sd=pair_sd, run_sd=run_sd, origin=origin)


def published_noise(plan: Plan, preset: Preset) -> Noise | None:
    """The noise that was published for runs like these; the widest, where it was for several comparisons."""
    found = known_noise(preset, plan.match, plan.budget)
    if not found:
        return None
    widest = max(found, key=lambda noise: noise.pair_sd_nats)
    origin = (
        f"the sd of a pair's difference of {significant(widest.pair_sd_nats)} in {widest.origin} "
        f"({listed(widest.components)}, {widest.pair_df:.0f} degrees of freedom)"
    )
    return Noise(pair_sd=widest.pair_sd_nats, run_sd=widest.run_sd_nats, origin=origin)


def expected_half_width(plan: Plan, noise: Noise | None) -> tuple[float | None, str]:
    """Of the least precise effect, as the report will compute its interval, and with which noise; or None and why."""
    if noise is None or noise.pair_sd is None:
        return None, "no noise was measured for it: name a study of this preset with --noise DIR"
    widths = []
    for cell in design_cells(plan):
        if plan.design.name in AGAINST_REFERENCE:
            n = min(len(v.seeds) for v in cell.variants)
            if n < 2:
                return None, "one seed gives no interval"
            widths.append(t_quantile(0.5 + plan.interval_confidence / 2, n - 1) * noise.pair_sd / math.sqrt(n))
            continue
        inside = tuple(f for f in plan.factors if plan.design.name in LATTICES and f.name not in cell.levels)
        parts = design_lattice(cell.variants, inside)
        runs = [Run(cell=cell_of(parts, v), block=seed) for v in cell.variants for seed in v.seeds]
        index = "first" if plan.design.name == "add-one-in" else "owen"
        try:
            made = make_design(plan.design.name, parts, runs, index=index, order=plan.design.order)
        except ValueError as error:
            return None, str(error)
        widths.append(made.half_width(noise.pair_sd / math.sqrt(2), plan.interval_confidence))
    return max(widths), noise.origin
