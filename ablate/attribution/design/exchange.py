"""Designs that are searched for: A-optimal cells by exchange, seeds dealt to blocks by swaps, lattice and staged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ablate.attribution.design.designs import Design, Run, make_design
from ablate.attribution.indices import index_weights
from ablate.attribution.lattice import Floats, Ints, Lattice, model_matrix, model_terms, term_orders

RIDGE = 1e-7  # keeps the information matrix of a still deficient design invertible; far below one run's information
BLOCK_SIZE = 4
EXTRA_RUNS = 6
FIRST_STAGE = 28  # runs of a staged design that are read first
SWAPS = 3000
ROUNDS = 50  # of exchange; far more than any start took
STARTS = 20
NEARLY = 1.02  # designs this close to the best in variance are told apart by their bias
SEARCH = 30_000


def optimal_cells(
    lattice: Lattice, runs: int, *, order: int = 2, seed: int = 0, starts: int | None = None
) -> tuple[tuple[int, ...], float]:
    """Cells (repeats allowed) that keep the variances of the Owen-precedence values small, and the largest variance.

    A-optimality under a model with interactions up to `order`, feasible cells only, by Fedorov exchange from seeded
    random starts; each result is improved by exchanges in which the worse determined values weigh more. Of the designs
    whose worst variance is the smallest or nearly so, the one that interactions of the next order bias least is kept.
    Variances in units of the noise variance of one run. ValueError below one run per model term.
    """
    terms = len(model_terms(lattice, order))
    if runs <= terms:
        raise ValueError(
            f"{runs} runs cannot determine the {terms} terms of interactions up to order {order} among "
            f"{len(lattice.components)} components and their noise; use at least {terms + 1} runs"
        )
    generator = np.random.default_rng(seed)
    rows = model_matrix(lattice, order)
    wanted = index_weights(lattice, "owen") @ rows
    # Large problems have flatter optima, and an exchange costs cells * terms^2.
    effort = max(SEARCH // rows.size, 1)
    found: dict[tuple[int, ...], float] = {}
    for _ in range(starts or min(effort, STARTS)):
        chosen = _random_start(len(rows), runs, generator)
        weights = np.ones(len(wanted))
        for _ in range(min(effort, 3) + 2):
            variances = _variances(rows[chosen], wanted)
            found[tuple(sorted(chosen.tolist()))] = float(variances.max())
            weights = weights * variances / variances.mean() if np.isfinite(variances).all() else weights
            chosen = exchange(chosen, _lower_trace(rows, (wanted.T * weights) @ wanted))
    best_worst = min(found.values())
    finalists = [chosen for chosen, worst in found.items() if worst <= NEARLY * best_worst]
    best = min(finalists, key=lambda chosen: _bias(lattice, rows[list(chosen)], wanted, chosen, order))
    return tuple(lattice.cells[c] for c in best), found[best]


def _bias(lattice: Lattice, design: Floats, wanted: Floats, chosen: tuple[int, ...], order: int) -> float:
    """Squared bias by interactions of the next order, with random signs and (as in saturation) all of one sign."""
    ignored = model_matrix(lattice, None)[:, term_orders(lattice) == order + 1]
    alias = wanted @ np.linalg.pinv(design) @ ignored[list(chosen)] - index_weights(lattice, "owen") @ ignored
    return float((alias**2).sum() + (alias.sum(axis=1) ** 2).sum())


def _variances(rows: Floats, wanted: Floats) -> Floats:
    """Variance of each functional (k,) by least squares on these rows; infinite where one is not determined."""
    if np.linalg.matrix_rank(rows) < rows.shape[1]:
        return np.full(len(wanted), np.inf)
    return np.einsum("kp,pq,kq->k", wanted, np.linalg.inv(rows.T @ rows), wanted)


def _random_start(cells: int, runs: int, generator: np.random.Generator) -> np.ndarray:
    """Random positions, each cell used equally often as far as possible."""
    rounds = [generator.permutation(cells) for _ in range(-(-runs // cells))]
    return np.concatenate(rounds)[:runs]


def exchange(chosen: Ints, worth: Callable[[Ints, int], Floats]) -> Ints:
    """Coordinate exchange: replace one run at a time by the best candidate for its place, while any replacement helps.

    chosen: positions of the candidates of a start, (R,). worth(chosen, r): (C,) the objective of the design with every
    candidate in the place of run r, up to a constant; -inf forbids a candidate.
    """
    chosen = chosen.copy()
    for _ in range(ROUNDS):
        before = chosen.copy()
        for at in range(len(chosen)):
            values = worth(chosen, at)
            best = int(np.argmax(values))
            if values[best] > values[chosen[at]] + 1e-9:
                chosen[at] = best
        if (chosen == before).all():
            break
    return chosen


def _lower_trace(rows: Floats, criterion: Floats) -> Callable[[Ints, int], Floats]:
    """A-optimality: by how much each candidate lowers trace(criterion @ inverse information) of the other runs.

    The inverse without a run follows from that without the run before it by two updates of rank one, as `exchange` asks
    for the places in order; it is computed anew at the first place, because such updates drift.
    """
    without = np.zeros((rows.shape[1], rows.shape[1]))

    def worth(chosen: Ints, at: int) -> Floats:
        nonlocal without
        if at == 0:
            inverse = np.linalg.inv(rows[chosen].T @ rows[chosen] + RIDGE * np.eye(rows.shape[1]))
        else:
            inward = without @ rows[chosen[at - 1]]
            inverse = without - np.outer(inward, inward) / (1.0 + rows[chosen[at - 1]] @ inward)
        lever = inverse @ rows[chosen[at]]
        without = inverse + np.outer(lever, lever) / (1.0 - rows[chosen[at]] @ lever)
        spread = rows @ without
        return np.asarray(((spread @ criterion) * spread).sum(axis=1) / (1.0 + (spread * rows).sum(axis=1)))

    return worth


def optimal(lattice: Lattice, runs: int, *, order: int = 2, seed: int = 0, starts: int | None = None) -> Design:
    """A-optimal design for the Owen-precedence values under interactions up to `order`; every run has its own seed."""
    cells, _ = optimal_cells(lattice, runs, order=order, seed=seed, starts=starts)
    fresh = [Run(cell=cell, block=r) for r, cell in enumerate(cells)]
    return make_design("optimal", lattice, fresh, index="owen", order=order)


def lattice_design(
    lattice: Lattice,
    *,
    replicates: int = 1,
    block_size: int = BLOCK_SIZE,
    extra_runs: int = EXTRA_RUNS,
    order: int | None = None,
    seed: int = 0,
) -> Design:
    """Every feasible variant `replicates` times, plus further runs of the variants that matter most.

    block_size 1: every run has its own seed; the extra runs go one by one where they lower the summed variance most
    (the two ends first). At least the number of variants: every replicate is one seed, without extra runs. Between:
    each replicate is dealt into blocks of that size that share a seed, so that effects vary least; the extra runs are
    the two ends, in blocks of two. order None assumes nothing about interactions. ValueError: seeds give no interval.
    """
    if replicates < 1 or block_size < 1 or extra_runs < 0:
        raise ValueError(
            f"replicates {replicates}, block_size {block_size}, extra_runs {extra_runs} were given; the first two are "
            f"at least 1, the last at least 0"
        )
    if block_size == 1:
        cells = [*lattice.cells * replicates, *_extra_cells(lattice, replicates, extra_runs)]
        runs = [Run(cell=cell, block=r) for r, cell in enumerate(cells)]
    elif block_size >= len(lattice.cells):
        runs = [Run(cell=cell, block=r) for r in range(replicates) for cell in lattice.cells]
    else:
        runs = _blocked_runs(lattice, replicates, block_size, order or 2, np.random.default_rng(seed))
        first = 1 + max(run.block for run in runs)
        runs += [Run(cell=(0, lattice.full)[e % 2], block=first + e // 2) for e in range(extra_runs // 2 * 2)]
    return make_design("lattice", lattice, runs, index="owen", order=order)


def _extra_cells(lattice: Lattice, replicates: int, extra: int) -> list[int]:
    """Greedy repeats: each goes to the cell whose further run lowers the summed variance of the Owen values most."""
    squares = np.square(index_weights(lattice, "owen")).sum(axis=0)
    counts = np.full(len(squares), replicates)
    for _ in range(extra):
        counts[np.argmax(np.round(squares / (counts * (counts + 1)), 12))] += 1
    return [cell for cell, n in zip(lattice.cells, counts.tolist(), strict=True) for _ in range(n - replicates)]


def _blocked_runs(
    lattice: Lattice, replicates: int, block_size: int, order: int, generator: np.random.Generator
) -> list[Run]:
    per_replicate = max(len(lattice.cells) // block_size, 1)
    runs = []
    for r in range(replicates):
        for position, block in enumerate(_deal(lattice, per_replicate, order, generator)):
            runs.append(Run(cell=lattice.cells[position], block=r * per_replicate + int(block)))
    return sorted(runs, key=lambda run: run.block)


def _deal(lattice: Lattice, blocks: int, order: int, generator: np.random.Generator) -> np.ndarray:
    """Block of each feasible cell (C,), found by random swaps that lower the summed variance of the Owen values.

    Information with block effects taken out: X'X - sum over blocks of s s' / size, s the column sums of the block.
    """
    x = model_matrix(lattice, order)[:, 1:]
    wanted = index_weights(lattice, "owen") @ x
    criterion = wanted.T @ wanted
    block = generator.permutation(np.arange(len(x)) % blocks)
    sizes = np.bincount(block, minlength=blocks)
    sums = np.array([x[block == b].sum(axis=0) for b in range(blocks)])
    ridged = x.T @ x + RIDGE * np.eye(x.shape[1])
    best = _trace(ridged, sums, sizes, criterion)
    for a, b in generator.integers(0, len(x), (SWAPS, 2)):
        if block[a] == block[b]:
            continue
        step = x[b] - x[a]
        sums[block[a]] += step
        sums[block[b]] -= step
        trace = _trace(ridged, sums, sizes, criterion)
        if trace < best - 1e-12:
            best = trace
            block[a], block[b] = block[b], block[a]
        else:
            sums[block[a]] -= step
            sums[block[b]] += step
    return block


def _trace(information: Floats, sums: Floats, sizes: np.ndarray, criterion: Floats) -> float:
    return float((criterion * np.linalg.inv(information - (sums.T / sizes) @ sums)).sum())


def staged(
    lattice: Lattice, *, first_runs: int = FIRST_STAGE, extra_runs: int = EXTRA_RUNS, order: int = 2, seed: int = 0
) -> Design:
    """An A-optimal first stage, then the rest of the lattice with repeated ends; both readings share alpha.

    Every run has its own seed. Stopping after the first stage because it looks clear is paid for: intervals of both
    stages are read at `stage_confidence`. Uncorrected, the final intervals cover too rarely.
    """
    cells, _ = optimal_cells(lattice, first_runs, order=order, seed=seed)
    rest = [cell for cell in lattice.cells if cell not in set(cells)]
    runs = [Run(cell=cell, block=r, stage=0) for r, cell in enumerate(cells)]
    runs += [
        Run(cell=cell, block=len(runs) + r, stage=1)
        for r, cell in enumerate([*rest, *_extra_cells(lattice, 1, extra_runs)])
    ]
    return make_design("staged", lattice, runs, index="owen", stages=2)


def up_to_stage(design: Design, stage: int, *, order: int = 2) -> Design:
    """What a staged design knows when this stage (0, 1, ...) is finished, at the confidence of its stages."""
    runs = [run for run in design.runs if run.stage <= stage]
    assumed = None if {run.cell for run in runs} == set(design.lattice.cells) else order
    return make_design(design.name, design.lattice, runs, index=design.index, order=assumed, stages=design.stages)
