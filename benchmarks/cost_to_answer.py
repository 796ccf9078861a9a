"""What an attribution costs: runs, error and honesty of our designs beside one-at-a-time, permutations and factorials.

Target: the Owen-precedence values of six loss components with 48 feasible variants. Every run has its own seed and
noise sd sigma; truths are random games (two-way, three-way, saturating).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from ablate.attribution.design.exchange import lattice_design, optimal_cells, staged
from ablate.attribution.indices import index_weights
from ablate.attribution.lattice import Floats, Lattice, lattice
from ablate.attribution.verdicts import t_quantile
from ablate.validation.check import TRUTHS, in_chunks, loss_lattice, truth_table, with_replicated_ends
from ablate.validation.estimators import Outcome, StudyPlan, independent_plan, simulate

TOLERANCE = 0.005  # nats, the size of an effect worth finding
DRAWS = 100  # different sets of random orders per row
PERMUTED = 7  # variants on a path from none to full
ONE_AT_A_TIME = {
    "last": ("leave-one-out", "no interactions"),
    "later": ("leave-one-out, dependants off on both sides", "no interactions"),
    "first": ("add-one-in", "no interactions"),
    "both": ("(first + last) / 2", "pairs at most"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A way to spend runs. `plan` makes it from a generator; one that ignores it is the same every time."""

    name: str
    assumes: str
    plan: Callable[[np.random.Generator], StudyPlan]
    random: bool = False
    interval: bool = True  # whether it has one


def contenders(game: Lattice) -> list[Contender]:
    """Ours first, then the others at about the same numbers of runs."""
    ours = [optimal(game, n) for n in (24, 28, 32)]
    ours.append(optimal(game, 28, residual_order=0, name="A-optimal 28, noise from repeats only"))
    ours += [every_variant(game, 6), every_variant(game, 6, order=2)]
    others = [one_at_a_time(game, index, n) for index in ("last", "later", "first") for n in (5, 8)]
    others += [one_at_a_time(game, "both", n) for n in (3, 4)]
    others += [permutations(game, n) for n in (5, 8)]
    others += [antithetic(game, pairs) for pairs in (3, 4)]
    others += [factorial(game, 0), factorial(game, 2)]
    return [*ours, *others]


def _fixed(name: str, assumes: str, build: Callable[[], StudyPlan]) -> Contender:
    """A contender that is the same every time, built when it is first asked for."""
    once = cache(build)
    return Contender(name=name, assumes=assumes, plan=lambda _: once())


def optimal(game: Lattice, size: int, *, residual_order: int = 2, name: str = "") -> Contender:
    """A-optimal cells and three repeats of each end, interactions of pairs at most."""

    def build() -> StudyPlan:
        cells = with_replicated_ends(optimal_cells(game, size)[0], game)
        return independent_plan(game, cells, index_weights(game, "owen"), order=2, residual_order=residual_order)

    return _fixed(name or f"A-optimal {size}, interactions <= 2", "pairs at most", build)


def every_variant(game: Lattice, extra: int, *, order: int | None = None) -> Contender:
    """All 48 variants and `extra` repeats where they help most."""

    def build() -> StudyPlan:
        cells = [run.cell for run in lattice_design(game, block_size=1, extra_runs=extra).runs]
        return independent_plan(game, cells, index_weights(game, "owen"), order=order)

    name = "lattice of 48, exact" if order is None else f"lattice of 48, interactions <= {order}"
    return _fixed(name, "nothing" if order is None else "pairs at most", build)


def one_at_a_time(game: Lattice, index: str, repeats: int) -> Contender:
    """One change at a time, every variant run `repeats` times. index: a key of ONE_AT_A_TIME."""
    first, last, later = index_weights(game, "first"), index_weights(game, "last"), _last_without_dependants(game)
    functional = {"last": last, "later": later, "first": first, "both": (first + later) / 2}[index]
    used = [cell for cell, w in zip(game.cells, np.abs(functional).sum(axis=0), strict=True) if w > 0]
    name, assumes = ONE_AT_A_TIME[index]
    return _fixed(
        f"{name}, {len(used)} variants x {repeats}",
        assumes,
        partial(independent_plan, game, used * repeats, functional, residual_order=0),
    )


def _last_without_dependants(game: Lattice) -> Floats:
    """Leave-one-out with dependants off on both sides, so that moe is not credited with aux-free as well."""
    weights = np.zeros((len(game.components), len(game.cells)))
    for i in range(len(game.components)):
        high = game.full & ~game.dependants(i)
        weights[i, game.index([high, high & ~(1 << i)])] = (1.0, -1.0)
    return weights


def factorial(game: Lattice, neutral: int) -> Contender:
    """Every combination of six components and `neutral` more that cannot move the loss, run once each.

    aux-free without moe is no variant: such a run trains the same model as without aux-free.
    """
    moe, aux = game.mask(["moe"]), game.mask(["aux-free"])
    cells = [cell & ~aux if cell & aux and not cell & moe else cell for cell in range(1 << len(game.components))]
    return _fixed(
        f"2^{6 + neutral} factorial, prerequisites ignored",
        "nothing",
        partial(independent_plan, game, cells * 2**neutral, index_weights(game, "owen"), residual_order=0),
    )


def permutations(game: Lattice, count: int) -> Contender:
    """Random admissible orders, every variant on the path run afresh; t over orders."""

    def plan(rng: np.random.Generator) -> StudyPlan:
        cells: list[int] = []
        weights = np.zeros((count, len(game.components), count * PERMUTED))
        for p in range(count):
            path, entered = random_path(game, rng)
            for step, component in enumerate(entered):
                weights[p, component, p * PERMUTED + step + 1] += 1.0
                weights[p, component, p * PERMUTED + step] -= 1.0
            cells += path
        mean = weights.mean(axis=0)
        spread = (weights - mean).transpose(1, 0, 2) / (count * (count - 1)) ** 0.5
        return StudyPlan(lattice=game, cells=tuple(cells), weights=mean, spread=spread, df=count - 1.0)

    return Contender(name=f"permutations, {count} fresh", assumes="nothing", plan=plan, random=True)


def antithetic(game: Lattice, pairs: int, ends: int = 4) -> Contender:
    """Random admissible orders and their reverses, the two ends run `ends` times and shared; no interval."""

    def plan(rng: np.random.Generator) -> StudyPlan:
        cells = [0] * ends + [game.full] * ends
        rows = np.zeros((len(game.components), 2 * ends + 2 * pairs * (PERMUTED - 2)))
        for _ in range(pairs):
            blocks = rng.permutation(len(game.blocks))
            for order in (blocks, blocks[::-1]):
                path, entered = block_path(game, order)
                where = [slice(0, ends), *range(len(cells), len(cells) + PERMUTED - 2), slice(ends, 2 * ends)]
                for step, component in enumerate(entered):
                    for at, sign in ((where[step + 1], 1.0), (where[step], -1.0)):
                        rows[component, at] += sign / (2 * pairs) / (ends if isinstance(at, slice) else 1)
                cells += path[1:-1]
        nothing = np.zeros((len(rows), 1, len(cells)))
        return StudyPlan(lattice=game, cells=tuple(cells), weights=rows, spread=nothing, df=1.0)

    name = f"antithetic permutations, {2 * pairs}, shared ends"
    return Contender(name=name, assumes="nothing", plan=plan, random=True, interval=False)


def random_path(game: Lattice, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Variants from none to full, and the component that enters at each step, blocks in random order."""
    return block_path(game, rng.permutation(len(game.blocks)))


def block_path(game: Lattice, order: Sequence[int]) -> tuple[list[int], list[int]]:
    """The same for a given order of the blocks; inside a block prerequisites enter first."""
    path, entered = [0], []
    for b in order:
        members = [i for i in range(len(game.components)) if game.blocks[b] >> i & 1]
        for i in sorted(members, key=lambda i: game.needs[i].bit_count()):
            entered.append(i)
            path.append(path[-1] | 1 << i)
    return path, entered


def run_contender(
    contender: Contender, truths: Floats, sigma: float, rng: np.random.Generator, target: Floats
) -> tuple[Outcome, int]:
    """Simulated studies, and the runs of one."""
    if not contender.random:
        plan = contender.plan(rng)
        return in_chunks(plan, truths, target, lambda n: rng.normal(0.0, sigma, (n, len(plan.cells)))), len(plan.cells)
    parts = []
    for some in np.array_split(truths, DRAWS):
        plan = contender.plan(rng)
        parts.append(simulate(plan, some, rng.normal(0.0, sigma, (len(some), len(plan.cells))), target))
    together = Outcome(
        errors=np.concatenate([p.errors for p in parts]),
        standard_errors=np.concatenate([p.standard_errors for p in parts]),
        df=parts[0].df,
    )
    return together, len(plan.cells)


def equal_runs_table(simulations: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Every contender under every truth and both noise levels."""
    game = loss_lattice()
    owen = index_weights(game, "owen")
    rows = []
    for contender in contenders(game):
        row: dict[str, Any] = {"design": contender.name, "assumes": contender.assumes}
        for sigma in (0.005, 0.003):
            for kind in TRUTHS:
                truths = truth_table(game, kind, rng, simulations)
                outcome, row["runs"] = run_contender(contender, truths, sigma, rng, owen)
                worst, everything = outcome.within(TOLERANCE)
                row[f"{kind} {sigma}"] = {
                    "rmse": outcome.rmse(),
                    "worst effect within tolerance": worst,
                    "all effects within tolerance": everything,
                    "half-width": outcome.half_width() if contender.interval else None,
                    "worst coverage": float(outcome.coverage().min()) if contender.interval else None,
                }
        rows.append(row)
    return rows


def staged_row(simulations: int, rng: np.random.Generator, sigma: float = 0.005) -> dict[str, Any]:
    """The staged design with its alpha paid: stops after 28 runs where every half-width is already small enough."""
    game = loss_lattice()
    owen = index_weights(game, "owen")
    runs = staged(game).runs
    early = [run.cell for run in runs if run.stage == 0]
    first = independent_plan(game, early, owen, order=2)
    second = independent_plan(game, [run.cell for run in runs], owen)
    row: dict[str, Any] = {"design": "staged 28 then 54, alpha paid", "assumes": "pairs at the first look"}
    for kind in TRUTHS:
        truths = truth_table(game, kind, rng, simulations)
        noise = rng.normal(0.0, sigma, (simulations, len(runs)))
        looks = [simulate(first, truths, noise[:, : len(early)], owen), simulate(second, truths, noise, owen)]
        critical = [t_quantile(0.5 + 0.975 / 2, look.df) for look in looks]
        stop = (critical[0] * looks[0].standard_errors).max(axis=1) <= TOLERANCE
        covered = np.where(stop[:, None], looks[0].covered(critical[0]), looks[1].covered(critical[1]))
        row[kind] = {
            "worst coverage": float(covered.mean(axis=0).min()),
            "mean runs": float(np.where(stop, len(early), len(runs)).mean()),
        }
    return row


def runs_needed(simulations: int, rng: np.random.Generator, sigma: float = 0.005) -> list[dict[str, Any]]:
    """Fewest runs at which every effect lies within the tolerance with probability .95; None where none do."""
    game = loss_lattice()
    owen = index_weights(game, "owen")
    often = (2, 4, 8, 16, 32, 64)
    families: dict[str, list[Contender]] = {
        "A-optimal, interactions <= 2 (ours)": [optimal(game, n) for n in range(22, 64, 2)],
        "lattice of 48, exact (ours)": [every_variant(game, extra) for extra in range(0, 60, 2)],
        "leave-one-out": [one_at_a_time(game, "last", n) for n in often],
        "leave-one-out, dependants off on both sides": [one_at_a_time(game, "later", n) for n in often],
        "add-one-in": [one_at_a_time(game, "first", n) for n in often],
        "(first + last) / 2": [one_at_a_time(game, "both", n) for n in (*range(2, 13), 16, 24, 32)],
        "permutations, fresh": [permutations(game, n) for n in range(6, 64, 2)],
        "antithetic permutations, shared ends": [antithetic(game, n) for n in range(2, 32)],
        "2^6 factorial": [factorial(game, 0)],
        "2^8 factorial": [factorial(game, 2)],
    }
    rows = []
    for name, family in families.items():
        row: dict[str, Any] = {"design": name, "most runs tried": len(family[-1].plan(rng).cells)}
        for kind in TRUTHS:
            truths = truth_table(game, kind, rng, simulations)
            row[kind] = _first_enough(family, truths, sigma, rng, owen, together=False)
            row[f"{kind}, all at once"] = _first_enough(family, truths, sigma, rng, owen, together=True)
        rows.append(row)
    return rows


def _first_enough(
    family: list[Contender], truths: Floats, sigma: float, rng: np.random.Generator, target: Floats, *, together: bool
) -> int | None:
    for contender in family:
        outcome, runs = run_contender(contender, truths, sigma, rng, target)
        if outcome.within(TOLERANCE)[int(together)] >= 0.95:
            return runs
    return None


def eight_player_cells() -> int:
    """Feasible variants of all eight components, for the text."""
    names = ("mla", "moe", "aux-free", "mtp", "fp8", "dualpipe", "alltoall", "distill")
    return len(lattice(names, {"aux-free": ["moe"], "alltoall": ["moe"]}).cells)
