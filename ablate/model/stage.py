"""One stage of a model that is divided over pipeline ranks: its layers, and at the ends embedding and loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ablate.model.loss import NO_LOADS, prediction_loss
from ablate.model.transformer import Part, Prediction, Transformer
from ablate.model.turns import Steps
from ablate.spec.run import TextNode


@dataclass(frozen=True, slots=True)
class Stage:
    """Neighbouring layers; the first stage has the embedding too, the last all that comes behind the layers."""

    layers: range
    first: bool
    last: bool


@dataclass(frozen=True, slots=True)
class StageLoss:
    """What a stage made of one micro-batch in training.

    `output`: what the next stage reads, or on the last one the loss; `balance`: the balance loss of its own routers,
    which is worked off where it arises, so that neither it nor its gradient travels; `main`: on the last stage the main
    head's cross-entropy, detached.
    """

    output: Tensor
    balance: Tensor | None
    routing: list[Any]
    main: Tensor | None = None


def stages(layers: Iterable[range]) -> tuple[Stage, ...]:
    """The stages of layers that are divided so."""
    divided = tuple(layers)
    return tuple(Stage(each, i == 0, i == len(divided) - 1) for i, each in enumerate(divided))


def part(held: Iterable[Stage]) -> Part:
    """What a process has to hold for some stages."""
    each = tuple(held)
    return Part(frozenset(i for s in each for i in s.layers), any(s.first for s in each), any(s.last for s in each))


def predict(model: Transformer, stage: Stage, x_BTD: Tensor | None, tokens_BT: Tensor) -> Steps[tuple[Any, list[Any]]]:
    """What the next stage reads, or on the last one the `Prediction`; and the routing of the stage.

    x_BTD: the output of the stage before; None at the first. Tokens are on every rank, since the order of a run's text
    is a function of seed and step.
    """
    embedded_BTD: Any = model.embedding(tokens_BT) if stage.first else None
    x_BTD, routing = yield from model.through(embedded_BTD if x_BTD is None else x_BTD, stage.layers)
    if not stage.last:
        return x_BTD, routing
    if embedded_BTD is None and getattr(model.objective, "joins_embedding", False):
        embedded_BTD = model.embedding(tokens_BT)
    prediction = yield from model.ahead(model.norm(x_BTD), embedded_BTD, routing)
    return prediction, prediction.routing


def stage_loss(
    model: Transformer,
    stage: Stage,
    x_BTD: Tensor | None,
    text: TextNode,
    batch: Mapping[str, Any],
    *,
    decaying: bool,
    targets_BT: Tensor | None = None,
) -> Steps[StageLoss]:
    """The stage's share of `model.loss.training_loss`, whose arguments it has."""
    found, routing = yield from predict(model, stage, x_BTD, batch["window_BT1"][:, :-1])
    balance = model.spec.balance
    own = balance.loss(routing, NO_LOADS) if balance is not None and routing else None
    own = own if isinstance(own, Tensor) else None  # experts that nothing balances have a loss of plain zero
    if not isinstance(found, Prediction):
        return StageLoss(found, own, routing)
    total, main = prediction_loss(model, text, batch, found, decaying=decaying, targets_BT=targets_BT)
    return StageLoss(total, own, routing, main.detach())
