"""The training loss: one function for what trains, what is timed and what is tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.model.transformer import Prediction, Transformer
from ablate.spec.run import TextNode

NO_LOADS: Mapping[Any, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TrainingLoss:
    """What one micro-batch gave. `total` carries the gradient; `main` is the main head's cross-entropy, detached."""

    total: Tensor
    main: Tensor
    routing: list[Any]  # of every layer that routes, for whoever counts the experts' loads


def training_loss(
    model: Transformer,
    text: TextNode,
    batch: Mapping[str, Any],
    *,
    decaying: bool,
    targets_BT: Tensor | None = None,
    earlier_loads: Mapping[Any, Tensor] = NO_LOADS,
) -> TrainingLoss:
    """The main head's loss as the text node has it, plus the objective's and the balance's terms.

    batch: `window_BT1`, int64 (B, T + 1), and what the text node added. decaying: whether the learning rate's decay has
    begun, which the objective's weight follows. targets_BT: the main head's, where some are to be left out
    (-100); by default the next tokens. earlier_loads: int64 counts (E,) by router of the optimizer step's earlier
    micro-batches, for a balance loss over the whole batch.
    """
    prediction, balance = model.predict(batch["window_BT1"][:, :-1]), model.spec.balance
    if not len(batch["window_BT1"]):
        return _of_nothing(prediction, with_objective=bool(model.spec.objective.loss_weight(decaying)))
    total, main = prediction_loss(model, text, batch, prediction, decaying=decaying, targets_BT=targets_BT)
    if balance is not None:
        total = total + balance.loss(prediction.routing, earlier_loads)
    return TrainingLoss(total, main.detach(), prediction.routing)


def prediction_loss(
    model: Transformer,
    text: TextNode,
    batch: Mapping[str, Any],
    prediction: Prediction,
    *,
    decaying: bool,
    targets_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of what is predicted, without the balance's term; and of that the main head's cross-entropy alone."""
    next_BT = batch["window_BT1"][:, 1:]
    main, logits_BTC = _main_head(model, prediction.hidden_BTD, next_BT if targets_BT is None else targets_BT, text)
    total = text.loss(main, logits_BTC, batch)
    weight = model.spec.objective.loss_weight(decaying)
    if weight:
        total = total + weight * model.objective.loss(prediction.future, next_BT, model.head)
    return total, main


def _of_nothing(prediction: Prediction, *, with_objective: bool) -> TrainingLoss:
    """Of a micro-batch without sequences: zero, whose backward pass meets the same transfers as other ranks' do."""
    hidden = [prediction.hidden_BTD, *(prediction.future.hidden_BTD if with_objective else ())]
    total = torch.stack([h.sum() for h in hidden]).sum()
    return TrainingLoss(total, total.new_zeros((), dtype=torch.float32), prediction.routing)  # as the head's losses are


def _main_head(
    model: Transformer, hidden_BTD: Tensor, targets_BT: Tensor, text: TextNode
) -> tuple[Tensor, Tensor | None]:
    """The next-token cross-entropy, and the logits if the text's loss wants them."""
    if not text.wants_logits:
        return model.head.cross_entropy(hidden_BTD, targets_BT), None
    logits_BTC = model.head(hidden_BTD).float()
    return F.cross_entropy(logits_BTC.flatten(0, 1), targets_BT.flatten()), logits_BTC
