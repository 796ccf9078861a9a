"""One rule for gradients of many ranks: that of a name is the sum over the ranks that hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ablate.parallel.groups import Group, made


class Holders:
    """Who holds which parameter. The same bits reach all holders, so that equal copies stay equal.

    A name is held by both copies of a stage under a bidirectional schedule, by both ends of the pipeline (the embedding
    beside a module that predicts further tokens), and by the data ranks: there is no other rule for any of these.
    """

    def __init__(self, model: nn.Module) -> None:
        """Every rank of the world makes it at once, each with its own part of the model."""
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        everyone: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, list(self.parameters))
        ranks: dict[str, list[int]] = {}
        for rank, names in enumerate(everyone):
            for name in names:
                ranks.setdefault(name, []).append(rank)
        self.ranks: Mapping[str, Group] = {name: tuple(held_by) for name, held_by in ranks.items()}
        self.groups = made(group for group in self.ranks.values() if len(group) > 1)

    def first(self, name: str) -> bool:
        """Whether this rank is the lowest that holds a name."""
        return self.ranks[name][0] == dist.get_rank()

    def join(self) -> None:
        """Replace every gradient by the sum over the holders: one all-reduce for each set of them.

        A parameter that nobody has a gradient of keeps none, so that the optimizer passes over it as on one rank.
        """
        for group, handle in self.groups.items():
            shared = [p for name, p in self.parameters.items() if self.ranks[name] == group]
            there = torch.tensor([p.grad is not None for p in shared], device=shared[0].device).to(shared[0].dtype)
            parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared]
            flat = torch.cat([*parts, there])
            dist.all_reduce(flat, group=handle)
            *gradients, held = flat.split([*(p.numel() for p in shared), len(shared)])
            for parameter, gradient, n in zip(shared, gradients, held.tolist(), strict=True):
                parameter.grad = gradient.view_as(parameter) if n else None

    def clip(self, limit: float, order: Iterable[str]) -> Tensor:
        """Scale the gradients so that their norm over the whole model is at most `limit`; the norm before.

        `order`: every name of the whole model. Each norm is counted by the lowest holder and they are joined in this
        order, as on one rank.
        """
        names = list(order)
        some = next(iter(self.parameters.values()))
        norms = torch.zeros(len(names), dtype=some.dtype, device=some.device)
        for i, name in enumerate(names):
            gradient = self.parameters[name].grad if name in self.parameters else None
            if gradient is not None and self.first(name):
                norms[i] = torch.linalg.vector_norm(gradient)
        dist.all_reduce(norms)
        total = torch.linalg.vector_norm(norms)
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), limit, total)
        return total
