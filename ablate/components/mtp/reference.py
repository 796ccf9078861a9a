"""Which token is read and which is predicted, and what is computed between (arXiv:2412.19437, eqs. 21-25)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ablate.components.mtp.spec import MultiToken, NextToken


def alignment(window: Sequence[int], depth: int) -> list[tuple[int, int, int]]:
    """(position i, token whose embedding joins, token predicted) of module `depth` over a window t_0 .. t_T.

    Module k at position i reads the embedding of t_{i+k} and predicts t_{i+k+1}.
    """
    last = len(window) - 1
    return [(i, window[i + depth], window[i + depth + 1]) for i in range(last - depth)]


# Module k's transformer block, for one sequence: (T, D) -> (T, D).
Block = Callable[[int, Tensor], Tensor]


def future_hidden(
    node: MultiToken, weights: Mapping[str, Tensor], block: Block, trunk_TD: Tensor, embedded_TD: Tensor, eps: float
) -> list[Tensor]:
    """What the shared head reads of each further token, for one sequence: depth k gives (T - k, D).

    Sequential modules join the hidden state of depth k - 1 with the embedding of the token k ahead (eq. 21); parallel
    heads (arXiv:2404.19737) read the trunk alone.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]

    found, hidden = [], trunk_TD
    for k in range(1, node.mtp_depth + 1):
        n, own = len(trunk_TD) - k, f"layers.{k - 1}"
        if node.arrangement == "sequential":
            rows = [
                torch.cat([norm(embedded_TD[i + k], f"{own}.embedding_norm"), norm(hidden[i], f"{own}.hidden_norm")])
                for i in range(n)
            ]
            hidden = block(k, torch.stack(rows) @ weights[f"{own}.projection.weight"].T)  # eqs. 21 and 22
        else:
            hidden = block(k, trunk_TD[:n])
        found.append(norm(hidden, f"{own}.norm"))  # what the head of eq. 23 reads
    return found


def nothing_further(
    node: NextToken, weights: Mapping[str, Tensor], block: Block, trunk_TD: Tensor, embedded_TD: Tensor, eps: float
) -> list[Tensor]:
    return []


REFERENCES = {"mtp": future_hidden, "next-token": nothing_further}
