"""Pieces of the model that several ranks hold: a gradient is the sum over them, and one of them may step it for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ablate.model.transformer import NO_PARTS, RowsOf
from ablate.parallel.groups import Group, made

Piece = tuple[str, int, int]  # a parameter's name, and the first of its rows and the one behind the last


class Holders:
    """Who holds which piece of the model. The same bits reach all holders, so that equal copies stay equal.

    A parameter is one piece, or one for each share of its experts. A piece is held by both copies of a stage under a
    bidirectional schedule, by both ends of the pipeline (the embedding beside a module that predicts further tokens),
    and by the data ranks, or those of them that have the same experts: there is no other rule for any of these. The
    gradient of an expert has the tokens of its whole expert group already.
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, RowsOf] = NO_PARTS) -> None:
        """Every rank of the world makes it at once, each with its own part of the model.

        `parts`: the rows that this rank has of parameters that it holds in part.
        """
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.pieces = {name: _piece(name, p, parts) for name, p in self.parameters.items()}
        everyone: list[dict[Piece, int]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, {piece: self.parameters[n].numel() for n, piece in self.pieces.items()})
        ranks: dict[Piece, list[int]] = {}
        for rank, pieces in enumerate(everyone):
            for piece in pieces:
                ranks.setdefault(piece, []).append(rank)
        self.ranks: Mapping[Piece, Group] = {piece: tuple(held_by) for piece, held_by in ranks.items()}
        self.owners = owners(self.ranks, {piece: n for pieces in everyone for piece, n in pieces.items()})
        self.groups = made(group for group in self.ranks.values() if len(group) > 1)

    def first(self, name: str) -> bool:
        """Whether this rank is the lowest that holds its piece of a parameter."""
        return self.ranks[self.pieces[name]][0] == dist.get_rank()

    def owns(self, name: str) -> bool:
        """Whether this rank is the one that steps a parameter, where only one does."""
        return self.owners[self.pieces[name]] == dist.get_rank()

    def join(self) -> None:
        """Replace every gradient by the sum over the holders: one all-reduce for each set of them.

        A piece that nobody has a gradient of keeps none, so that the optimizer passes over it as on one rank.
        """
        for group, handle in self.groups.items():
            shared = [p for name, p in self.parameters.items() if self.ranks[self.pieces[name]] == group]
            there = torch.tensor([p.grad is not None for p in shared], device=shared[0].device).to(shared[0].dtype)
            parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared]
            flat = torch.cat([*parts, there])
            dist.all_reduce(flat, group=handle)
            *gradients, held = flat.split([*(p.numel() for p in shared), len(shared)])
            for parameter, gradient, n in zip(shared, gradients, held.tolist(), strict=True):
                parameter.grad = gradient.view_as(parameter) if n else None

    @torch.no_grad()
    def hand_out(self) -> None:
        """Give all holders of a piece its values as its owner has them: one broadcast for each owner in each set."""
        for group, handle in self.groups.items():
            for owner in group:
                pieces = (self.pieces[name] for name in self.parameters)
                shared = [p for p, piece in zip(self.parameters.values(), pieces, strict=True)
                          if self.ranks[piece] == group and self.owners[piece] == owner]  # fmt: skip
                if not shared:
                    continue
                flat = torch.cat([p.flatten() for p in shared])
                dist.broadcast(flat, owner, group=handle)
                for parameter, values in zip(shared, flat.split([p.numel() for p in shared]), strict=True):
                    parameter.copy_(values.view_as(parameter))

    def clip(self, limit: float, order: Iterable[str]) -> Tensor:
        """Scale the gradients so that their norm over the whole model is at most `limit`; the norm before.

        `order`: every name of the whole model. Each piece's norm is counted by its lowest holder and they are joined in
        this order, as on one rank.
        """
        of_name: dict[str, list[Piece]] = {}
        for piece in sorted(self.ranks):
            of_name.setdefault(piece[0], []).append(piece)
        pieces = [piece for name in order for piece in of_name[name]]
        some = next(iter(self.parameters.values()))
        norms = torch.zeros(len(pieces), dtype=some.dtype, device=some.device)
        for i, (name, *_) in enumerate(pieces):
            gradient = self.parameters[name].grad if self.pieces.get(name) == pieces[i] else None
            if gradient is not None and self.first(name):
                norms[i] = torch.linalg.vector_norm(gradient)
        dist.all_reduce(norms)
        total = torch.linalg.vector_norm(norms)
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), limit, total)
        return total


def owners(ranks: Mapping[Piece, Group], sizes: Mapping[Piece, int]) -> dict[Piece, int]:
    """Piece -> which of its holders steps it (ZeRO-1, arXiv:1910.02054): the largest first, each by who has least.

    Whole pieces, as torch's ZeroRedundancyOptimizer has it, so that any optimizer sees whole matrices.
    """
    load, found = dict.fromkeys((rank for held_by in ranks.values() for rank in held_by), 0), dict[Piece, int]()
    for piece in sorted(ranks, key=lambda piece: (-sizes[piece], piece)):
        owner = min(ranks[piece], key=lambda rank: (load[rank], rank))
        load[owner] += sizes[piece]
        found[piece] = owner
    return found


def _piece(name: str, parameter: nn.Parameter, parts: Mapping[str, RowsOf]) -> Piece:
    rows = parts[name][0] if name in parts else slice(0, len(parameter))
    return name, rows.start, rows.stop
