"""The lattice of feasible variants: prerequisites, blocks, interaction terms, dividends.

A variant ("cell") is a bitmask: bit i set means components[i] is on. A game is one number per feasible cell, in the
order of `Lattice.cells`. Shape letters here: C feasible cells, K components, P model terms, R runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MAX_COMPONENTS = 12
MAX_ARMS = 60  # of a star, whose cells are single bits

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lattice:
    """Feasible variants under prerequisites. Build it with `lattice`, which checks and closes the relation."""

    components: tuple[str, ...]
    needs: tuple[int, ...]  # per component: bitmask of all its prerequisites, direct and indirect
    blocks: tuple[int, ...]  # bitmasks that partition the components; no prerequisite crosses two blocks
    cells: tuple[int, ...]  # feasible bitmasks, ascending; the first is `none`, the last is `full`
    star: str = ""  # of arms, the one index they define: "first" around `none`, "last" around `full`; see `star`
    labels: tuple[tuple[int, str], ...] = ()  # what a study calls its cells, where it has names for them

    @property
    def full(self) -> int:
        """The cell with every component on."""
        return (1 << len(self.components)) - 1

    @property
    def unconstrained(self) -> bool:
        """True where all 2^K cells are feasible."""
        return not any(self.needs)

    def mask(self, names: Iterable[str]) -> int:
        """The bitmask of these components. ValueError for a name that is not one."""
        out = 0
        for name in names:
            if name not in self.components:
                raise ValueError(f"unknown component {name!r}; the components are {', '.join(self.components)}")
            out |= 1 << self.components.index(name)
        return out

    def names(self, cell: int) -> tuple[str, ...]:
        """The components that are on in a cell."""
        return tuple(name for i, name in enumerate(self.components) if cell >> i & 1)

    def label(self, cell: int) -> str:
        """A cell in words: the study's name, else `none`, `full`, or the components that are on, joined by `+`."""
        if cell in (known := dict(self.labels)):
            return known[cell]
        if self.star == "last":
            return f"full without {self.names(cell)[0]}" if cell else "full"
        if cell == 0:
            return "none"
        return "full" if cell == self.full else "+".join(self.names(cell))

    def index(self, cells: int | Sequence[int] | Ints) -> Ints:
        """Positions of feasible cells in `cells`. ValueError names the first cell that is not feasible."""
        wanted = np.atleast_1d(np.asarray(cells, dtype=np.int64))
        cells = np.asarray(self.cells, dtype=np.int64)
        found = np.minimum(np.searchsorted(cells, wanted), len(cells) - 1)
        wrong = np.flatnonzero(cells[found] != wanted)
        if len(wrong):
            raise ValueError(self.infeasible_reason(int(wanted[wrong[0]])))
        return found

    def infeasible_reason(self, cell: int) -> str:
        """One sentence that says which prerequisite a cell breaks."""
        for i, name in enumerate(self.components):
            lacking = self.needs[i] & ~cell
            if cell >> i & 1 and lacking:
                return f"{name} is on without {' and '.join(self.names(lacking))}, which it requires"
        return f"cell {cell:#x} names components that do not exist"

    def dependants(self, i: int) -> int:
        """Bitmask of the components that need component i, directly or not."""
        return sum(1 << j for j, need in enumerate(self.needs) if need >> i & 1)


def lattice(
    components: Sequence[str],
    requires: Mapping[str, Iterable[str]] | None = None,
    blocks: Iterable[Iterable[str]] | None = None,
) -> Lattice:
    """The lattice of these components.

    requires: component -> the components it needs; any acyclic relation. blocks: groups whose members enter together in
    the Owen-precedence value; components left out stand alone. Default: connected components of the prerequisite graph.
    A prerequisite between two blocks merges them (otherwise no admissible order would exist).
    ValueError: no component, more than 12, repeated or unknown names, a cycle, a component in two blocks.
    """
    names = tuple(components)
    if not names:
        raise ValueError("no component was given; an attribution needs at least one")
    if len(names) > MAX_COMPONENTS:
        raise ValueError(
            f"{len(names)} components were given; exact attribution handles at most {MAX_COMPONENTS}: hold some fixed"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"component {repeated[0]!r} is given twice; every component needs a name of its own")
    needs = _closed_prerequisites(names, requires or {})
    masks = np.arange(1 << len(names), dtype=np.int64)
    feasible = np.ones(len(masks), dtype=bool)
    for i, need in enumerate(needs):
        feasible &= (masks >> i & 1 == 0) | (masks & need == need)
    return Lattice(
        components=names,
        needs=needs,
        blocks=_merged_blocks(names, needs, blocks or ()),
        cells=tuple(masks[feasible].tolist()),
    )


def star(components: Sequence[str], index: str) -> Lattice:
    """Arms of which a run has one at a time, each compared with one reference and never with each other.

    index "first": the reference is `none` and an arm's bit means on. "last": it is `full`, and the bit means that the
    arm's component is off. ValueError for more than 60 arms.
    """
    names = tuple(components)
    if len(names) > MAX_ARMS:
        raise ValueError(
            f"{len(names)} components were given, and {MAX_ARMS} can be compared with one reference; name fewer"
        )
    bits = tuple(1 << i for i in range(len(names)))
    return Lattice(components=names, needs=(0,) * len(names), blocks=bits, cells=(0, *bits), star=index)


def _closed_prerequisites(names: tuple[str, ...], requires: Mapping[str, Iterable[str]]) -> tuple[int, ...]:
    """Transitive closure of the prerequisites as bitmasks, by repeated union; a cycle makes a component need itself."""
    needs = [0] * len(names)
    for name, wanted in requires.items():
        for other in (name, *wanted):
            if other not in names:
                raise ValueError(
                    f"the prerequisite of {name!r} names {other!r}, which is not a component ({', '.join(names)})"
                )
        needs[names.index(name)] = sum({1 << names.index(other) for other in wanted})
    for _ in names:
        for i, need in enumerate(needs):
            for j in range(len(names)):
                if need >> j & 1:
                    needs[i] |= needs[j]
    circle = [name for i, name in enumerate(names) if needs[i] >> i & 1]
    if circle:
        raise ValueError(f"the prerequisites go in a circle through {', '.join(circle)}; remove one of them")
    return tuple(needs)


def _merged_blocks(names: tuple[str, ...], needs: tuple[int, ...], blocks: Iterable[Iterable[str]]) -> tuple[int, ...]:
    """Partition of the components: the given blocks, then unions wherever a prerequisite joins two of them."""
    given: list[int] = []
    for block in blocks:
        members = 0
        for name in block:
            if name not in names:
                raise ValueError(f"a block names {name!r}, which is not a component ({', '.join(names)})")
            members |= 1 << names.index(name)
        given.append(members)
    for i, name in enumerate(names):
        if sum(members >> i & 1 for members in given) > 1:
            raise ValueError(f"component {name!r} is in two blocks; put it in one")
    out: list[int] = []
    for group in (*given, *((1 << i) | need for i, need in enumerate(needs))):
        joined = group
        for block_mask in [b for b in out if b & group]:
            out.remove(block_mask)
            joined |= block_mask
        if joined:
            out.append(joined)
    return tuple(sorted(out, key=lambda b: b & -b))


@lru_cache(maxsize=64)
def positions(lattice: Lattice) -> Ints:
    """Position in `cells` of each of the 2^K bitmasks, -1 where it is not feasible; read-only."""
    out = np.full(1 << len(lattice.components), -1, dtype=np.int64)
    out[list(lattice.cells)] = np.arange(len(lattice.cells))
    out.setflags(write=False)
    return out


@lru_cache(maxsize=64)
def term_orders(lattice: Lattice) -> Ints:
    """Per feasible cell T (C,): how many of its members no other member needs.

    Feasible cells stand one to one for interaction terms: T is the term of its topmost members *given* their
    prerequisites. Without prerequisites this is |T|; the nested pair {moe, aux-free} is the main effect of aux-free.
    """
    cells = np.asarray(lattice.cells, dtype=np.int64)
    orders = np.zeros(len(cells), dtype=np.int64)
    for i in range(len(lattice.components)):
        orders += (cells >> i & 1 == 1) & (cells & lattice.dependants(i) == 0)
    return orders


def model_terms(lattice: Lattice, order: int | None) -> Ints:
    """Cells that stand for the terms up to an order of interaction, the mean first; None: all of them."""
    cells = np.asarray(lattice.cells, dtype=np.int64)
    if order is None:
        return cells
    if order < 1:
        raise ValueError(f"order of interactions {order} was given; it is 1 (main effects) or more")
    orders = term_orders(lattice)
    kept = cells[orders <= order]
    return kept[np.argsort(orders[orders <= order], kind="stable")]


def model_matrix(lattice: Lattice, order: int | None, cells: Sequence[int] | Ints | None = None) -> Floats:
    """(cells, P) matrix of unanimity games: 1 where the term's members are all on. Default: all feasible cells."""
    rows = np.asarray(lattice.cells if cells is None else cells, dtype=np.int64)
    terms = model_terms(lattice, order)
    return ((rows[:, None] & terms[None, :]) == terms[None, :]).astype(np.float64)


def largest_feasible(lattice: Lattice) -> Ints:
    """For each of the 2^K subsets, its largest feasible part: members whose prerequisites are all inside (2^K,)."""
    masks = np.arange(1 << len(lattice.components), dtype=np.int64)
    out = np.zeros_like(masks)
    for i, need in enumerate(lattice.needs):
        out |= np.where((masks >> i & 1 == 1) & (masks & need == need), 1 << i, 0)
    return out


def dividends(lattice: Lattice, values: Sequence[float] | Floats) -> Floats:
    """Harsanyi dividends (C,): the game is the sum over T of dividend(T) * [T is inside the cell].

    Computed on all subsets of the game restricted to largest feasible parts (Gilles, Owen, van den Brink 1992), whose
    dividends vanish outside the feasible cells, by the fast Moebius transform.
    """
    v = _checked_values(lattice, values)
    out = v[lattice.index(largest_feasible(lattice))].copy()
    masks = np.arange(len(out), dtype=np.int64)
    for i in range(len(lattice.components)):
        with_i = masks[masks >> i & 1 == 1]
        out[with_i] -= out[with_i ^ (1 << i)]
    return out[np.asarray(lattice.cells, dtype=np.int64)]


def order_spectrum(lattice: Lattice, values: Sequence[float] | Floats) -> dict[int, float]:
    """How additive the game is: share of the summed absolute dividends per order 1, 2, ... (all 0 for a flat game)."""
    sizes = np.abs(dividends(lattice, values))
    orders = term_orders(lattice)
    total = float(sizes[orders > 0].sum())
    return {
        int(k): float(sizes[orders == k].sum()) / total if total > 0 else 0.0 for k in range(1, int(orders.max()) + 1)
    }


def _checked_values(lattice: Lattice, values: Sequence[float] | Floats) -> Floats:
    """Values as (C,) float64. ValueError where there is not one finite number per feasible cell."""
    v = np.asarray(values, dtype=np.float64)
    if v.shape != (len(lattice.cells),):
        raise ValueError(f"a game needs one value for each of the {len(lattice.cells)} feasible cells, got {v.shape}")
    if not np.isfinite(v).all():
        raise ValueError(
            f"the value of cell {lattice.label(lattice.cells[int(np.argmin(np.isfinite(v)))])} is not finite"
        )
    return v
