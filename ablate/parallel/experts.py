"""A model whose routed experts are divided over ranks: its rows, and one rule for gradients and their norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ablate.model.transformer import RowsOf, Transformer, initialise
from ablate.parallel.mesh import Mesh
from ablate.parallel.transport.peers import ExpertPeers, peers_of
from ablate.spec.run import RunSpec


@dataclass(slots=True)
class Divided:
    """What a rank has of a model: the parameters that it holds in part, and who it exchanges rows with."""

    mesh: Mesh
    parts: Mapping[str, RowsOf]
    peers: ExpertPeers | None  # None: every rank has all experts

    def join_gradients(self, model: nn.Module) -> None:
        """Every gradient becomes the sum over the ranks that hold the parameter, with the same bits on all of them.

        A rank's loss is its share of the mean over the batch. An expert's gradient has the tokens of its whole expert
        group already: what is left is the sum over the groups.
        """
        named = list(model.named_parameters())
        for group, parameters in (
            ("data", [p for name, p in named if name not in self.parts]),
            ("replicas", [p for name, p in named if name in self.parts]),
        ):
            _all_reduce(parameters, self.mesh.groups[group])

    def clip(self, model: nn.Module, largest: float) -> Tensor:
        """Scale the gradients so that their norm over the whole model is at most `largest`; the norm before."""
        squares = []
        for name, p in model.named_parameters():
            square = torch.zeros((), device=p.device, dtype=p.dtype) if p.grad is None else p.grad.norm().square()
            squares.append((name in self.parts, square))
        in_parts = torch.stack([s if part else torch.zeros_like(s) for part, s in squares])
        dist.all_reduce(in_parts, group=self.mesh.groups["everyone"])
        whole = torch.stack([torch.zeros_like(s) if part else s for part, s in squares])
        norm = (in_parts + whole).sum().sqrt()
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(factor)
        return norm


def _all_reduce(parameters: Iterable[nn.Parameter], group: Any) -> None:
    """One flattened sum. A parameter that no token of this rank reached has a gradient of zeros."""
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters or dist.get_world_size(group) == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat, group=group)
    for p, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        assert p.grad is not None
        p.grad.copy_(summed.view_as(p))


def build_divided(run: RunSpec, mesh: Mesh) -> tuple[Transformer, Divided]:
    """The model of a run as this rank holds it, with the initial values of the whole one."""
    model = Transformer(run.model)
    parts, peers = divide(model, run, mesh)
    initialise(model, run.model.init, run.seed, parts)
    return model, Divided(mesh, parts, peers)


def divide(model: Transformer, run: RunSpec, mesh: Mesh) -> tuple[dict[str, RowsOf], ExpertPeers | None]:
    """Leave a model the experts of this rank, in every layer that routes."""
    ranks, node, transport = mesh.ranks, run.model.feed_forward, run.trainer.transport
    if transport is None:
        return {}, None
    n_experts: int = getattr(node, "n_routed_experts")  # noqa: B009 - of the nodes that have a transport
    peers = peers_of(ranks, mesh.data_rank, n_experts, mesh.groups)
    return divided(model, peers, transport.build(peers, n_experts, run.model.linear.wire()), n_experts), peers


def divided(model: nn.Module, peers: ExpertPeers, transport: Any, n_experts: int) -> dict[str, RowsOf]:
    """Parameter -> the rows that are left of it, once the experts of a rank alone are."""
    share = peers.shares[peers.rank]
    rows = (slice(share.start, share.stop), n_experts)
    found: dict[str, RowsOf] = {}
    for path, module in list(model.named_modules()):
        if hasattr(module, "divide"):
            found |= {f"{path}.{name}": rows for name in module.divide(share, transport)}
    return found
