"""Which token is read and which is predicted, by index (arXiv:2412.19437, eqs. 21-25)."""

from __future__ import annotations

from collections.abc import Sequence


def alignment(window: Sequence[int], depth: int) -> list[tuple[int, int, int]]:
    """(position i, token whose embedding joins, token predicted) of module `depth` over a window t_0 .. t_T.

    Module k at position i reads the embedding of t_{i+k} and predicts t_{i+k+1}.
    """
    last = len(window) - 1
    return [(i, window[i + depth], window[i + depth + 1]) for i in range(last - depth)]
