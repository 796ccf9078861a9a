"""Weights in the dtype of products, converted once an optimizer step and not once a micro-batch.

Autocast converts every matrix anew in each micro-batch, and its backward pass makes a float32 copy of each gradient to
add it to the sum. While a step is open, one converted copy serves all its micro-batches, and its gradient is added to
the weight's own float32 sum in one pass. The numbers are the same, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ablate.kernels.weight_gradients import splitting
from ablate.model.recompute import recomputing


class _Open:
    """The step that is under way: weight -> its copy; None outside of steps. One process trains one model at a time."""

    copies: dict[Tensor, Tensor] | None = None


def begin_step() -> None:
    """Open a step: copies that are made from here on serve until it ends."""
    _Open.copies = {}


def end_step() -> None:
    """Close the step, before the optimizer changes the weights."""
    _Open.copies = None


def of_step(weight: Tensor) -> Tensor:
    """The weight as a product reads it: the open step's copy in autocast's dtype; else the weight itself.

    The copy is a leaf whose gradient goes to `weight.grad` and stays nowhere else. The weight itself where no step is
    open, autocast is off, no gradient is wanted, or the chunk's backward comes in two parts (which knows weights only).
    """
    kind = weight.device.type
    wanted = torch.is_grad_enabled() or recomputing()
    if _Open.copies is None or not torch.is_autocast_enabled(kind) or not wanted or splitting():
        return weight
    if not (weight.is_leaf and weight.requires_grad):
        return weight
    if weight not in _Open.copies:
        _Open.copies[weight] = _copy(weight, torch.get_autocast_dtype(kind))
    return _Open.copies[weight]


def _copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    copy = weight.detach().to(dtype).requires_grad_()

    def hand_on(leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        weight.grad = gradient.to(weight.dtype) if weight.grad is None else weight.grad.add_(gradient)

    copy.register_post_accumulate_grad_hook(hand_on)
    return copy
