"""The proof that a study with a transport begins with: its variants at nano size, on ranks and in one process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ablate.errors import RunFailed
from ablate.spec.ranks import Ranks

MOST_RANKS = 4  # of the check; larger layouts are made of the same hops
LEFT_OUT = "distill"  # where text comes from has no part in it, and may not fit other sizes


def prove(variants: Iterable[Mapping[str, str]], ranks: Ranks) -> Iterator[str]:
    """A line for every distinct variant, given as levels. RunFailed for the first that changes anything."""
    from ablate.components.registry import component
    from ablate.parallel.together import launch
    from ablate.parallel.transport.equality import Case, check

    small = ranks if ranks.data <= MOST_RANKS else Ranks(data=MOST_RANKS, expert=MOST_RANKS, node=MOST_RANKS // 2)
    raw = {LEFT_OUT: component(LEFT_OUT).default_alternative}
    distinct = {tuple((levels | raw).items()): dict(levels) | raw for levels in map(dict, variants)}
    cases = [Case(levels=levels, ranks=small) for levels in distinct.values()]
    uneven = [Case(levels=c.levels, ranks=small, n_routed_experts=6, idle=1, starved=1) for c in cases[:1]]
    for case, found in zip([*cases, *uneven], launch(check, small.world, [*cases, *uneven])[0], strict=True):
        what = case.name + (", 6 experts, one starved, one rank without tokens" if case.idle else "")
        line = (
            f"{what}: loss differs by {found.loss_error:.1e}, gradients by {found.gradient_error:.1e}, their norm by "
            f"{found.norm_error:.1e}, expert counts {'equal' if found.counts_equal else 'DIFFER'}"
        )
        if not found.holds:
            raise RunFailed(f"the transport changes the result on {small} ({line}; allowed {found.tolerance:.0e})")
        yield line
