"""The main head's loss under each kind of text, position by position (arXiv:1503.02531 for soft targets)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ablate.components.distill.spec import RawText, TeacherLogits, TeacherText


def plain_loss(
    node: RawText | TeacherText, cross_entropy: float, logits_BTC: Tensor, batch: Mapping[str, Any]
) -> float:
    return cross_entropy


def soft_target_loss(node: TeacherLogits, cross_entropy: float, logits_BTC: Tensor, batch: Mapping[str, Any]) -> float:
    """(1 - weight) CE + weight temperature^2 KL(teacher || model), the tokens beside the K kept ones as one."""
    total, positions = 0.0, 0
    parts = (batch["soft_logp_BTK"], batch["soft_ids_BTK"], batch["soft_rest_logp_BT"])
    for position in zip(*(part.flatten(0, 1).tolist() for part in (logits_BTC, *parts)), strict=True):
        logits, logps, ids, rest = position
        others = [value for i, value in enumerate(logits) if i not in ids]
        of_all = log_sum_exp(logits, node.temperature)
        model = [logits[i] / node.temperature - of_all for i in ids]
        if others:
            logps, model = [*logps, rest], [*model, log_sum_exp(others, node.temperature) - of_all]
        total += sum(math.exp(p) * (p - q) for p, q in zip(logps, model, strict=True))
        positions += 1
    return (1 - node.weight) * cross_entropy + node.weight * node.temperature**2 * total / positions


def log_sum_exp(logits: Sequence[float], temperature: float) -> float:
    top = max(logits)
    return top / temperature + math.log(sum(math.exp((value - top) / temperature) for value in logits))


REFERENCES = {"raw": plain_loss, "teacher": plain_loss, "teacher-logits": soft_target_loss}
