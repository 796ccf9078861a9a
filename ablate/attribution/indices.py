"""Attribution indices as weight vectors over feasible cells: effect = weights @ values.

Every index is linear in the game, so one matrix gives the estimate and, with any noise model, its variance.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb, factorial

import numpy as np

from ablate.attribution.lattice import Floats, Lattice, largest_feasible, positions

INDICES = ("first", "last", "owen", "shapley", "banzhaf", "permission", "faigle-kern")

TITLES = {
    "first": "add-one-in",
    "last": "leave-one-out",
    "owen": "Owen-precedence value",
    "shapley": "Shapley value",
    "banzhaf": "Banzhaf value",
    "permission": "permission value",
    "faigle-kern": "precedence Shapley value",
}


def undefined_reason(lattice: Lattice, index: str) -> str | None:
    """Why an index does not exist on this lattice, in one sentence, or None where it does."""
    if index not in INDICES:
        raise ValueError(f"unknown index {index!r}; the indices are {', '.join(INDICES)}")
    if lattice.star and index != lattice.star:
        return f"arms of which a run has one at a time define the {TITLES[lattice.star]} effect only"
    if index in ("shapley", "banzhaf") and not lattice.unconstrained:
        return f"the {TITLES[index]} needs all 2^{len(lattice.components)} variants, and prerequisites forbid some"
    return None


@lru_cache(maxsize=64)
def index_weights(lattice: Lattice, index: str) -> Floats:
    """(K, C) weights of an index; read-only. ValueError where the index is not defined on this lattice.

    first: v(P+i) - v(P), P the prerequisites of i. last: v(full) - v(full without i and its dependants).
    owen: mean marginal over orders that keep blocks together and respect prerequisites (Owen 1977, with the orders
    inside a block restricted to linear extensions). faigle-kern: the same with one block (Faigle and Kern 1992).
    permission: Shapley value of the game of largest feasible parts (Gilles, Owen, van den Brink 1992).
    """
    reason = undefined_reason(lattice, index)
    if reason:
        raise ValueError(reason)
    if lattice.star:
        sign = 1.0 if index == "first" else -1.0
        out = sign * np.hstack([-np.ones((len(lattice.components), 1)), np.eye(len(lattice.components))])
    elif index == "first":
        out = _one_at_a_time(lattice, last=False)
    elif index == "last":
        out = _one_at_a_time(lattice, last=True)
    elif index == "owen":
        out = _ordered_weights(lattice, lattice.blocks)
    elif index == "faigle-kern":
        out = _ordered_weights(lattice, (lattice.full,))
    elif index == "shapley":
        out = _ordered_weights(lattice, tuple(1 << i for i in range(len(lattice.components))))
    elif index == "permission":
        out = _permission_weights(lattice)
    else:
        out = _banzhaf_weights(lattice)
    out.setflags(write=False)
    return out


@lru_cache(maxsize=64)
def total_weights(lattice: Lattice) -> Floats:
    """(C,) weights of v(full) - v(none)."""
    out = np.zeros(len(lattice.cells))
    out[-1], out[0] = 1.0, -1.0
    out.setflags(write=False)
    return out


def _one_at_a_time(lattice: Lattice, *, last: bool) -> Floats:
    out = np.zeros((len(lattice.components), len(lattice.cells)))
    for i, need in enumerate(lattice.needs):
        bit = 1 << i
        high, low = (lattice.full, lattice.full & ~(bit | lattice.dependants(i))) if last else (need | bit, need)
        out[i, lattice.index([high, low])] = (1.0, -1.0)
    return out


def _ordered_weights(lattice: Lattice, blocks: tuple[int, ...]) -> Floats:
    """Mean marginal over uniform block orders times uniform linear extensions inside each block, without listing them.

    A component of block b enters after a set of whole other blocks (Shapley weight by their number) and a feasible part
    R of b, with probability chains(none to R) * chains(R+i to b) / chains(none to b).
    """
    out = np.zeros((len(lattice.components), len(lattice.cells)))
    where = positions(lattice)
    for block in blocks:
        others = [b for b in blocks if b != block]
        before = np.array([sum(b for k, b in enumerate(others) if q >> k & 1) for q in range(1 << len(others))])
        sizes = np.array([q.bit_count() for q in range(1 << len(others))])
        m = len(blocks)
        by_size = np.array([factorial(s) * factorial(m - 1 - s) / factorial(m) for s in range(m)])
        for i, part, share in _entry_shares(lattice, block):
            weight = by_size[sizes] * share
            out[i, where[before | part | 1 << i]] += weight
            out[i, where[before | part]] -= weight
    return out


def _entry_shares(lattice: Lattice, block: int) -> list[tuple[int, int, float]]:
    """(component, part of the block before it, probability) over uniform linear extensions of one block."""
    parts = _feasible_parts(lattice, block)
    steps = {
        part: [i for i, need in enumerate(lattice.needs) if block >> i & 1 and not part >> i & 1 and not need & ~part]
        for part in parts
    }
    # Integers: 12! chains at most, exact also as float64.
    up = dict.fromkeys(parts, 0)
    up[0] = 1
    for part in parts:
        for i in steps[part]:
            up[part | 1 << i] += up[part]
    down = dict.fromkeys(parts, 0)
    down[block] = 1
    for part in reversed(parts):
        down[part] += sum(down[part | 1 << i] for i in steps[part])
    return [(i, part, up[part] * down[part | 1 << i] / up[block]) for part in parts for i in steps[part]]


def _feasible_parts(lattice: Lattice, block: int) -> list[int]:
    """Feasible subsets of one block, small masks first (every subset stands before its supersets)."""
    cells = np.asarray(lattice.cells, dtype=np.int64)
    return sorted(set((cells & block).tolist()))


def _all_subset_shapley(n: int, i: int) -> tuple[np.ndarray, Floats]:
    """Subsets without i, and the Shapley weight of each."""
    masks = np.arange(1 << n, dtype=np.int64)
    without = masks[masks >> i & 1 == 0]
    sizes = np.array([int(m).bit_count() for m in without])
    by_size = np.array([1.0 / (n * comb(n - 1, s)) for s in range(n)])
    return without, by_size[sizes]


def _permission_weights(lattice: Lattice) -> Floats:
    n = len(lattice.components)
    feasible_part = lattice.index(largest_feasible(lattice))
    out = np.zeros((n, len(lattice.cells)))
    for i in range(n):
        without, weight = _all_subset_shapley(n, i)
        np.add.at(out[i], feasible_part[without | 1 << i], weight)
        np.subtract.at(out[i], feasible_part[without], weight)
    return out


def _banzhaf_weights(lattice: Lattice) -> Floats:
    n = len(lattice.components)
    cells = np.asarray(lattice.cells, dtype=np.int64)
    return np.array([np.where(cells >> i & 1 == 1, 1.0, -1.0) for i in range(n)]) / 2 ** (n - 1)


def is_nested(lattice: Lattice, i: int, j: int) -> bool:
    """True where one component needs the other: their interaction is not applicable (and is not zero)."""
    return bool(lattice.needs[i] >> j & 1 or lattice.needs[j] >> i & 1)


def interaction_weights(lattice: Lattice) -> dict[tuple[str, str], Floats | None]:
    """Banzhaf interaction index of every pair: (component, component) -> (C,) weights, or None for a nested pair.

    The index is v(T+ij) - v(T+i) - v(T+j) + v(T), averaged over the contexts T in which all four cells are feasible
    (Grabisch and Roubens 1999). It equals the two-factor interaction of a designed experiment. Arms have no pairs.
    """
    n = len(lattice.components)
    out: dict[tuple[str, str], Floats | None] = {}
    for i in range(0 if lattice.star else n):
        for j in range(i + 1, n):
            pair = (lattice.components[i], lattice.components[j])
            out[pair] = None if is_nested(lattice, i, j) else _pair_weights(lattice, i, j)
    return out


def _pair_weights(lattice: Lattice, i: int, j: int) -> Floats:
    cells = np.asarray(lattice.cells, dtype=np.int64)
    both = 1 << i | 1 << j
    need = lattice.needs[i] | lattice.needs[j]
    contexts = cells[(cells & both == 0) & (cells & need == need)]
    weight = 1.0 / len(contexts)
    out = np.zeros(len(cells))
    out[lattice.index(contexts | both)] = weight
    out[lattice.index(contexts | 1 << i)] = -weight
    out[lattice.index(contexts | 1 << j)] = -weight
    out[lattice.index(contexts)] = weight
    return out
