"""The one evaluation of every variant: the main head's next-token loss on windows spread over the held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.data.windows import Windows, spread_indices
from ablate.model.transformer import Prediction, Transformer
from ablate.spec.run import RunSpec

BATCH_WINDOWS = 32  # in smaller batches a small model's time goes into calls instead of products
LOGITS_BYTES = 64 * 2**20  # of a batch, float32: so that the peak of a run's memory is a training step's


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out windows, int64 (W, T + 1), whose text each target is, and the UTF-8 bytes of every token."""

    windows_WT1: Tensor
    documents_WT: Tensor  # number of the target's document, int64
    token_bytes_C: Tensor

    @classmethod
    def of(cls, windows: Windows, n_windows: int, token_bytes: np.ndarray) -> HeldOut:
        """`n_windows` windows spread evenly over the whole text, or all where there are fewer; they do not overlap.

        The first windows of a file are parts of a few documents, and what those are about moves the mean more than
        the model does.
        """
        chosen = spread_indices(n_windows, len(windows))
        arrays = (windows[chosen], windows.documents(chosen), token_bytes)
        return cls(*map(torch.from_numpy, arrays))

    def fewer(self, n_windows: int) -> HeldOut:
        """`n_windows` of these windows, spread evenly over them, or all where there are fewer."""
        chosen = torch.from_numpy(spread_indices(n_windows, len(self.windows_WT1)))
        return HeldOut(self.windows_WT1[chosen], self.documents_WT[chosen], self.token_bytes_C)

    def judged(self) -> dict[str, int]:
        """How much is evaluated on: windows, and the documents that they are parts of."""
        return {"windows": len(self.windows_WT1), "documents": len(self.documents_WT.unique())}


def batch_windows(run: RunSpec) -> int:
    """Windows that are evaluated at once: a function of the specification alone, like everything a result hangs on."""
    logits_bytes = 4 * run.trainer.sequence_length * run.model.vocab_size  # of one window
    return max(run.trainer.micro_batch_size, min(BATCH_WINDOWS, LOGITS_BYTES // logits_bytes))


def evaluate(model: Transformer, held_out: Mapping[str, HeldOut], *, batch_size: int) -> dict[str, float]:
    """Metrics by name. Of the first set plain names, of another one names that begin with its own.

    `nats_per_token`, `bits_per_byte` (total nats over the UTF-8 bytes of the predicted tokens);
    with multi-token prediction `draft_acceptance`: how often the token that the first module drafts is the main
    head's greedy choice one step later; with experts the figures of `load_metrics` over all windows.
    """
    return figures(tallies(model, held_out, batch_size=batch_size), held_out)


@torch.no_grad()
def tallies(model: Transformer, held_out: Mapping[str, HeldOut], *, batch_size: int) -> dict[str, Tally]:
    """What the model does on every set of windows; routers go by their names in it."""
    was_training = model.training
    model.eval()
    found = {name: _tally(model, windows, batch_size) for name, windows in held_out.items()}
    model.train(was_training)
    return found


def _tally(model: Transformer, held_out: HeldOut, batch_size: int) -> Tally:
    device, tally = model.head.weight.device, Tally()
    names = {module: name for name, module in model.named_modules()}
    for window_BT1 in held_out.windows_WT1.split(batch_size):
        window_BT1 = window_BT1.to(device)
        prediction = model.predict(window_BT1[:, :-1])
        tally.count(prediction.routing, names)
        tally.add(model.head, prediction, window_BT1)
    return tally


def figures(found: Mapping[str, Tally], held_out: Mapping[str, HeldOut]) -> dict[str, float]:
    """The metrics of all sets of windows, by name."""
    return {key: value for name, tally in found.items() for key, value in tally.named(name, held_out[name]).items()}


@dataclass(slots=True)
class Tally:
    """Sums over windows: nats, drafted tokens, and the loads of experts by the name of their router."""

    nats: float = 0.0
    accepted: int = 0
    drafted: int = 0
    loads: dict[str, Tensor] = field(default_factory=dict)

    def add(self, head: Any, prediction: Prediction, window_BT1: Tensor) -> None:
        """What the main head says of a batch of windows, and how far the first further module agrees with it."""
        logits_BTC = head(prediction.hidden_BTD).float()
        self.nats += float(F.cross_entropy(logits_BTC.flatten(0, 1), window_BT1[:, 1:].flatten(), reduction="sum"))
        if prediction.future.hidden_BTD:
            draft_BT = head(prediction.future.hidden_BTD[0]).argmax(-1)
            self.accepted += int((draft_BT == logits_BTC[:, 1:].argmax(-1)).sum())
            self.drafted += draft_BT.numel()

    def count(self, routing: Iterable[Any], names: Mapping[Any, str]) -> None:
        """The tokens that each expert of a batch got."""
        for each in routing:
            router, counts_E = names[each.router], each.counts_BE.sum(0)
            self.loads[router] = self.loads[router] + counts_E if router in self.loads else counts_E

    @classmethod
    def sum(cls, parts: Iterable[Tally]) -> Tally:
        """Of several ranks, each of which has seen some windows or some layers."""
        whole = cls()
        for part in parts:
            whole.nats += part.nats
            whole.accepted += part.accepted
            whole.drafted += part.drafted
            for router, load_E in part.loads.items():
                whole.loads[router] = whole.loads[router] + load_E if router in whole.loads else load_E
        return whole

    def named(self, name: str, held_out: HeldOut) -> dict[str, float]:
        """The metrics of a set of windows, all of which it has seen; those of a further set begin with its name."""
        target_WT = held_out.windows_WT1[:, 1:]
        nats, n_bytes = self.nats, int(held_out.token_bytes_C[target_WT].sum())
        metrics = {"nats_per_token": nats / target_WT.numel(), "bits_per_byte": nats / math.log(2) / n_bytes}
        if self.drafted:
            metrics["draft_acceptance"] = self.accepted / self.drafted
        prefix = "" if name == "held_out" else f"{name}_"
        return {prefix + key: value for key, value in (metrics | load_metrics(list(self.loads.values()))).items()}


def load_metrics(loads_E: list[Tensor]) -> dict[str, float]:
    """How even the experts' loads are, mean over layers; `dead_experts` is the sum. Nothing without experts.

    `max_violation` is (max load - mean) / mean (arXiv:2408.15664); `load_entropy` is that of the loads over ln E.
    """
    if not loads_E:
        return {}
    violation, entropy, dead = [], [], 0
    for load_E in loads_E:
        share_E = load_E.double() / load_E.sum()
        violation.append(float(share_E.max()) * len(share_E) - 1)
        entropy.append(float(torch.special.entr(share_E).sum()) / math.log(len(share_E)))
        dead += int((load_E == 0).sum())
    n = len(loads_E)
    return {"max_violation": sum(violation) / n, "load_entropy": sum(entropy) / n, "dead_experts": float(dead)}
