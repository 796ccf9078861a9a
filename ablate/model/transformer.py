"""The transformer: walks the slots of a specification and knows no component by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ablate.model.block import Block, ModelContext, Rotation, rotation_table
from ablate.model.modules import Embedding
from ablate.model.turns import Steps, at_once, steps_of
from ablate.randomness import torch_generator
from ablate.spec.machine import this_machine
from ablate.spec.model import Init, ModelSpec

RowsOf = tuple[slice, int]  # of a parameter that is held in part: which rows, and how many there are in all
NO_PARTS: Mapping[str, RowsOf] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Prediction:
    """One training pass. `hidden_BTD` is what the main head reads; `future` what the objective adds to it."""

    hidden_BTD: Tensor
    future: Any
    routing: list[Any]  # of every layer that routes, trunk first, then the objective's


@dataclass(frozen=True, slots=True)
class Part:
    """What of a model is there: some of its layers, the embedding at its `first` end, all behind them at its `last`."""

    layers: frozenset[int]
    first: bool
    last: bool


class Transformer(nn.Module):
    """tokens_BT -> logits_BTC, causal. Embedding and head are separate; both are the objective's too."""

    def __init__(self, spec: ModelSpec, part: Part | None = None) -> None:
        """`part`: what a rank of a pipeline holds; the rest is None, and every name stays the whole model's."""
        super().__init__()
        part = part or Part(frozenset(range(spec.n_layers)), True, True)
        self.spec = spec
        context = ModelContext(spec)
        objective: Any = spec.objective.build(context) if part.last else None
        embeds = part.first or getattr(objective, "joins_embedding", False)
        self.embedding: Any = Embedding(spec.vocab_size, spec.dim, spec.residual_dtype) if embeds else None
        self.layers: Any = nn.ModuleList()
        for layer in range(spec.n_layers):
            self.layers.add_module(str(layer), Block(spec, layer) if layer in part.layers else None)
        self.norm: Any = context.norm(spec.dim) if part.last else None
        self.head: Any = spec.head.build(spec.dim, spec.vocab_size) if part.last else None
        self.objective: Any = objective
        self._rotation: Rotation | None = None

    def rotation(self, length: int) -> Rotation:
        """The rotary table of positions 0 .. length - 1, on the weights' device."""
        table, device = self._rotation, next(self.parameters()).device
        if table is None or len(table.cos_TP) < length or table.cos_TP.device != device:
            # Kept for training, which cannot use a table that was made in inference mode. Doubling keeps decoding,
            # which asks for one more position each time, from making a table for every token.
            capacity = length if table is None else max(length, 2 * len(table.cos_TP))
            with torch.inference_mode(False):
                table = rotation_table(self.spec.attention.rope_dim, capacity, self.spec.rope_theta, device)
            self._rotation = table
        return table.positions(0, length)

    def trunk(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
        """Normed output of the last layer, the embedded tokens, and the routing of the layers that route."""
        embedded_BTD = self.embedding(tokens_BT)
        x_BTD, routing = at_once(self.through(embedded_BTD, range(len(self.layers))))
        return self.norm(x_BTD), embedded_BTD, routing

    def through(self, x_BTD: Tensor, layers: range) -> Steps[tuple[Tensor, list[Any]]]:
        """Output of some layers one after another, and the routing of those that route."""
        rotation, routing = self.rotation(x_BTD.shape[1]), []
        # Where another reads x too, its gradient is added to the layers' sum, whether a block makes that of its own
        # graph (`recompute`) or not.
        x_BTD = x_BTD.view_as(x_BTD)
        for layer in layers:
            x_BTD, routed = yield from steps_of(self.layers[layer], x_BTD, rotation)
            if routed is not None:
                routing.append(routed)
        return x_BTD, routing

    def predict(self, tokens_BT: Tensor) -> Prediction:
        """The trunk and the objective's modules, without the head."""
        return at_once(self.ahead(*self.trunk(tokens_BT)))

    def ahead(self, hidden_BTD: Tensor, embedded_BTD: Tensor | None, routing: list[Any]) -> Steps[Prediction]:
        """What the objective's modules add to the trunk's output; the embedded tokens where they read them."""
        future = yield from steps_of(self.objective, hidden_BTD, embedded_BTD, self.rotation(hidden_BTD.shape[1]))
        return Prediction(hidden_BTD, future, routing + [r for r in future.routing if r is not None])

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.head(self.trunk(tokens_BT)[0])

    def new_cache(self, batch: int, capacity: int) -> list[Any]:
        """An empty cache of `capacity` positions for each layer."""
        return [layer.attention.new_cache(batch, capacity) for layer in self.layers]

    def decode(self, tokens_BT: Tensor, caches: list[Any]) -> Tensor:
        """Logits of tokens that follow those in the caches, which grow by them."""
        start = caches[0].length
        rotation = self.rotation(start + tokens_BT.shape[1]).positions(start, tokens_BT.shape[1])
        x_BTD = self.embedding(tokens_BT)
        for layer, cache in zip(self.layers, caches, strict=True):
            x_BTD = layer.decode(x_BTD, rotation, cache)
        return self.head(self.norm(x_BTD))


def initialise(model: nn.Module, init: Init, seed: int, parts: Mapping[str, RowsOf] = NO_PARTS) -> None:
    """Fill the weights. Each parameter has a generator keyed by (seed, name), so that variants share what they can.

    Two models that have a parameter of the same name and shape get bit-identical values for one seed; and one that
    holds some rows of a parameter, which are in `parts` by its name, the values of these rows.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            generator = torch_generator(f"initial weights, seed {seed}, {name}")
            rows, n_rows = parts.get(name, (slice(None), len(parameter)))
            values = torch.randn(n_rows, *parameter.shape[1:], generator=generator, dtype=torch.float32)[rows]
            parameter.copy_(values * init.deviation(parameter.shape[-1]))


def parameter_hashes(model: nn.Module) -> dict[str, str]:
    """Shape and hash of the values of every parameter, by name: what pairing of two runs is checked by."""
    return {name: parameter_hash(parameter) for name, parameter in model.named_parameters()}


def parameter_hash(parameter: Tensor) -> str:
    """Of one parameter."""
    values = parameter.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return f"{'x'.join(map(str, parameter.shape))}:{hashlib.sha256(values).hexdigest()[:16]}"


def build(spec: ModelSpec, seed: int) -> Transformer:
    """A float32 transformer with its initial weights, on the backends of this machine."""
    model = Transformer(spec.for_machine(this_machine(), "float32"))
    initialise(model, spec.init, seed)
    return model
