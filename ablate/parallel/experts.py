"""What a rank holds of a model: its layers, of the routed experts its share, and who holds which piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ablate.model.transformer import Part, RowsOf, Transformer, initialise
from ablate.parallel.gradients import Holders
from ablate.parallel.mesh import Mesh
from ablate.parallel.transport.peers import ExpertPeers, peers_of
from ablate.spec.model import ModelSpec
from ablate.spec.nodes import TransportNode


@dataclass(frozen=True, slots=True)
class Held:
    """A rank's part of a model. `parts`: the rows of parameters that it has in part."""

    model: Transformer
    parts: Mapping[str, RowsOf]
    peers: ExpertPeers | None  # with whom it exchanges tokens; None: it has all experts of its layers
    holders: Holders


def hold(spec: ModelSpec, transport: TransportNode | None, mesh: Mesh, *, seed: int, part: Part | None = None) -> Held:
    """The model as this rank holds it, with the initial values of the whole one. Every rank calls it at once.

    `part`: the layers that are there, as a pipeline lays them; None: all.
    """
    model = Transformer(spec, part)
    parts, peers = _divide(model, spec, transport, mesh)
    initialise(model, spec.init, seed, parts)
    return Held(model, parts, peers, Holders(model, parts))


def _divide(
    model: Transformer, spec: ModelSpec, transport: TransportNode | None, mesh: Mesh
) -> tuple[dict[str, RowsOf], ExpertPeers | None]:
    """Leave a model the experts of this rank, in every layer that routes."""
    if transport is None:
        return {}, None
    n_experts: int = getattr(spec.feed_forward, "n_routed_experts")  # noqa: B009 - of the nodes that have a transport
    peers = peers_of(mesh.ranks, mesh.data_rank, n_experts, mesh.groups, mesh.spans)
    return divided(model, peers, transport.build(peers, n_experts, spec.linear.wire()), n_experts), peers


def divided(model: nn.Module, peers: ExpertPeers, transport: Any, n_experts: int) -> dict[str, RowsOf]:
    """Parameter -> the rows that are left of it, once the experts of a rank alone are."""
    share = peers.shares[peers.rank]
    rows = (slice(share.start, share.stop), n_experts)
    found: dict[str, RowsOf] = {}
    for path, module in list(model.named_modules()):
        if hasattr(module, "divide"):
            found |= {f"{path}.{name}": rows for name in module.divide(share, transport)}
    return found
