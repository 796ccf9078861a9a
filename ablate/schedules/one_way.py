"""Schedules whose stages lie along the ranks once or several times over: gpipe, 1f1b, zb1p, interleaved."""

from __future__ import annotations

from ablate.schedules.action import Action, Kind, Schedule


def _straight(name: str, ranks: list[list[Action]], n_micro_batches: int, n_stages: int | None = None) -> Schedule:
    n = len(ranks)
    placement = tuple(stage % n for stage in range(n_stages or n))
    return Schedule(
        name=name, n_micro_batches=n_micro_batches, placement=(placement,), ranks=tuple(tuple(r) for r in ranks)
    )


def gpipe(n_ranks: int, n_micro_batches: int) -> Schedule:
    """All forwards, then all backwards (arXiv:1811.06965)."""
    kinds: tuple[Kind, ...] = ("F", "B")
    ranks = [[Action(kind, rank, i) for kind in kinds for i in range(n_micro_batches)] for rank in range(n_ranks)]
    return _straight("gpipe", ranks, n_micro_batches)


def one_forward_one_backward(n_ranks: int, n_micro_batches: int) -> Schedule:
    """1F1B (PipeDream-Flush, arXiv:2006.09503): in a rank's steady state one backward follows one forward.

    On one rank it is plain accumulation over the micro-batches.
    """
    ranks = []
    for rank in range(n_ranks):
        ahead = min(n_micro_batches, n_ranks - 1 - rank)
        actions = [Action("F", rank, i) for i in range(ahead)]
        for i in range(n_micro_batches):
            if ahead + i < n_micro_batches:
                actions.append(Action("F", rank, ahead + i))
            actions.append(Action("B", rank, i))
        ranks.append(actions)
    return _straight("1f1b", ranks, n_micro_batches)


def zero_bubble(n_ranks: int, n_micro_batches: int) -> Schedule:
    """ZB-H1 (arXiv:2401.10241, section 2.3; `ZB1P` in DeepSeek's table): 1F1B with the backward in two parts.

    A rank puts off as many weight parts as its place, which fills the memory that the first rank needs anyway, and
    does them where it would wait.
    """
    ranks = []
    for rank in range(n_ranks):
        ahead = min(n_micro_batches, n_ranks - 1 - rank)
        actions = [Action("F", rank, i) for i in range(ahead)]
        n_weights = 0
        for i in range(n_micro_batches):
            if ahead + i < n_micro_batches:
                actions.append(Action("F", rank, ahead + i))
            actions.append(Action("I", rank, i))
            if i + 1 - n_weights > rank or ahead + i >= n_micro_batches:
                actions.append(Action("W", rank, n_weights))
                n_weights += 1
        actions += [Action("W", rank, i) for i in range(n_weights, n_micro_batches)]
        ranks.append(actions)
    return _straight("zb1p", ranks, n_micro_batches)


def interleaved(n_ranks: int, n_micro_batches: int, n_chunks: int = 2) -> Schedule:
    """Interleaved 1F1B (arXiv:2104.04473, section 2.2): `n_chunks` stages a rank, micro-batches in rounds of n_ranks.

    ValueError if the micro-batches are no whole number of rounds.
    """
    if n_micro_batches % n_ranks:
        raise ValueError(
            f"interleaved on {n_ranks} pipeline ranks takes micro-batches in rounds of {n_ranks}, and "
            f"{n_micro_batches} are no whole number of rounds; give a multiple of {n_ranks}, or choose 1f1b"
        )
    total = n_micro_batches * n_chunks
    ranks = []
    for rank in range(n_ranks):

        def action(kind: Kind, step: int, rank: int = rank) -> Action:
            round_of, place = divmod(step, n_ranks * n_chunks)
            chunk, micro = divmod(place, n_ranks)
            chunk = chunk if kind == "F" else n_chunks - 1 - chunk
            return Action(kind, chunk * n_ranks + rank, round_of * n_ranks + micro)

        ahead = min(total, 2 * (n_ranks - 1 - rank) + (n_chunks - 1) * n_ranks)
        actions = [action("F", step) for step in range(ahead)]
        for step in range(total):
            if ahead + step < total:
                actions.append(action("F", ahead + step))
            actions.append(action("B", step))
        ranks.append(actions)
    return _straight("interleaved", ranks, n_micro_batches, n_ranks * n_chunks)
