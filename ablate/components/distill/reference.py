"""The main head's loss under each kind of text, position by position (arXiv:1503.02531 for soft targets)."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    for logits_TC, logp_TK, ids_TK in zip(logits_BTC, batch["soft_logp_BTK"], batch["soft_ids_BTK"], strict=True):
        for logits, logps, ids in zip(logits_TC.tolist(), logp_TK.tolist(), ids_TK.tolist(), strict=True):
            top = max(logits)
            normaliser = sum(math.exp((value - top) / node.temperature) for value in logits)
            model = [math.exp((logits[i] - top) / node.temperature) / normaliser for i in ids]
            teacher = [math.exp(logp) for logp in logps]
            total += sum(p * math.log(p / q) for p, q in zip(teacher, model, strict=True))
            if len(ids) < len(logits):
                left, right = 1 - sum(teacher), 1 - sum(model)
                total += left * math.log(left / right)
            positions += 1
    return (1 - node.weight) * cross_entropy + node.weight * node.temperature**2 * total / positions


REFERENCES = {"raw": plain_loss, "teacher": plain_loss, "teacher-logits": soft_target_loss}
