"""Regular two-level fractions 2^(n-p): generators found for a resolution, defining words, alias table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from ablate.attribution.design.designs import Design, Run, make_design
from ablate.attribution.lattice import Lattice

CANDIDATES = 300  # complete generator sets compared for the fewest shortest words


@dataclass(frozen=True, kw_only=True, slots=True)
class Fraction:
    """A regular fraction of the 2^n combinations (Box and Hunter 1961). Masks are over the n factors."""

    factors: int
    columns: tuple[int, ...]  # per factor: which of the q basic factors it is the product of (bitmask over q)
    basic: int  # q; the fraction has 2^q cells
    words: tuple[int, ...]  # defining relation: products of factors that are constant, without the empty one

    @property
    def resolution(self) -> int:
        """Length of the shortest word; n + 1 for the full factorial, which confounds nothing."""
        return min((word.bit_count() for word in self.words), default=self.factors + 1)

    @property
    def cells(self) -> tuple[int, ...]:
        """The 2^q cells as bitmasks over the factors, ascending; `full` is always one of them."""
        out = []
        for run in range(1 << self.basic):
            # A column is the product of its basic factors at levels +1 (on) and -1 (off).
            signs = [(column & ~run).bit_count() % 2 for column in self.columns]
            out.append(sum(1 << i for i, minus in enumerate(signs) if not minus))
        return tuple(sorted(out))

    def aliases(self, order: int = 2) -> dict[int, tuple[int, ...]]:
        """Each effect up to this order (mask) -> the other effects up to this order that it cannot be told from."""
        effects = [
            sum(1 << i for i in chosen)
            for size in range(1, order + 1)
            for chosen in combinations(range(self.factors), size)
        ]
        known = set(effects)
        return {effect: tuple(effect ^ word for word in self.words if effect ^ word in known) for effect in effects}


def fraction(factors: int, *, runs: int | None = None, resolution: int | None = None) -> Fraction:
    """The fraction of highest resolution with this many runs, or with fewest runs at this resolution.

    ValueError unless exactly one is asked for, runs is a power of two that can hold the factors, and 3 <= resolution.
    """
    if (runs is None) == (resolution is None):
        raise ValueError("give either the number of runs or the resolution of the fraction, not both and not neither")
    if runs is not None:
        q = runs.bit_length() - 1
        if runs != 1 << q or not factors < runs or q > factors:
            raise ValueError(
                f"{runs} runs were given; a fraction of {factors} factors has a power of two above {factors} and at "
                f"most {1 << factors} runs"
            )
        for wanted in range(q + 1, 2, -1):
            found = _search(factors, q, wanted)
            if found:
                return found
    assert runs is None, "resolution 3 exists whenever there are more runs than factors"
    if resolution is None or not 3 <= resolution <= factors:
        raise ValueError(f"resolution {resolution} was given; for {factors} factors it lies between 3 and {factors}")
    for q in range(1, factors + 1):
        found = _search(factors, q, resolution)
        if found:
            return found
    raise AssertionError("the full factorial has every resolution")


def _search(factors: int, q: int, resolution: int) -> Fraction | None:
    """Of the first candidates with this resolution, the one with the fewest shortest words; None where none exists."""
    if q >= factors:
        return _finish(tuple(1 << i for i in range(factors)), factors)
    best: Fraction | None = None
    for count, columns in enumerate(_columns(factors, q, resolution)):
        found = _finish(columns, q)
        if best is None or _aberration(found) < _aberration(best):
            best = found
        if count + 1 >= CANDIDATES:
            break
    return best


def _columns(factors: int, q: int, resolution: int) -> Iterator[tuple[int, ...]]:
    """Column sets in which no resolution - 1 columns multiply to a constant, by depth-first search."""
    pool = sorted(range(1, 1 << q), key=lambda column: (-column.bit_count(), column))

    def extend(chosen: tuple[int, ...], start: int) -> Iterator[tuple[int, ...]]:
        if len(chosen) == factors:
            yield chosen
            return
        taken = {0}
        for size in range(1, resolution - 1):
            for group in combinations(chosen, size):
                product = 0
                for column in group:
                    product ^= column
                taken.add(product)
        for at in range(start, len(pool)):
            if pool[at] not in taken:
                yield from extend((*chosen, pool[at]), at + 1)

    yield from extend(tuple(1 << i for i in range(q)), 0)


def _finish(columns: tuple[int, ...], q: int) -> Fraction:
    """The fraction with its defining words: each added factor times the basic factors of its column, and products."""
    words = {0}
    for i in range(q, len(columns)):
        word = columns[i] | 1 << i
        words |= {other ^ word for other in words}
    return Fraction(factors=len(columns), columns=columns, basic=q, words=tuple(sorted(words - {0})))


def _aberration(found: Fraction) -> tuple[int, ...]:
    """Words per length, shortest first (Fries and Hunter 1980); smaller is better, as is a higher resolution."""
    lengths = [word.bit_count() for word in found.words]
    return tuple(lengths.count(size) for size in range(1, found.factors + 1))


def fractional(
    lattice: Lattice, *, runs: int | None = None, resolution: int | None = None, seeds: int | None = None
) -> Design:
    """A regular fraction for the Owen-precedence values. seeds None: every run has its own; else every seed runs all.

    Resolution 4 and more assumes no interactions of three components, resolution 3 none at all; `aliases` lists what
    would be mistaken. ValueError under prerequisites (fractions hold forbidden variants: use `optimal`).
    """
    if not lattice.unconstrained:
        raise ValueError("a regular fraction holds variants that prerequisites forbid; use the optimal design")
    found = fraction(len(lattice.components), runs=runs, resolution=resolution)
    if seeds is not None and seeds < 2:
        raise ValueError(f"fractional: {seeds} seed was given; an interval needs at least two seeds")
    planned = [
        Run(cell=cell, block=r if seeds is None else s) for s in range(seeds or 1) for r, cell in enumerate(found.cells)
    ]
    order = 2 if found.resolution > 3 else 1
    return make_design("fractional", lattice, planned, index="owen", order=order)
