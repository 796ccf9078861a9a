"""Training data of the text nodes that have a teacher: mixed windows; soft targets and the loss that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablate.components.distill.text import read_manifest, training_texts
from ablate.data.batches import Batch, Batches
from ablate.data.corpus import Corpus
from ablate.data.prepare import encode_documents
from ablate.data.tokens import TokenFile
from ablate.data.windows import Windows, batch_indices
from ablate.model.weights import read_weights
from ablate.randomness import seed_of, uniform
from ablate.spec.run import LoadModel, RunSpec


def teacher_slots(*, seed: int, step: int, batch_size: int, share: float) -> np.ndarray:
    """Which slots of a step's batch the teacher fills, bool (batch_size,): each with probability `share`.

    A pure function of its arguments, and those of a smaller share are among those of a larger one.
    """
    return uniform(f"teacher slots, seed {seed}, step {step}", batch_size) < share


def teacher_indices(*, n_windows: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    """The teacher's window for every slot of a step, in an order of its own; slots that stay raw pass theirs by."""
    own = seed_of(f"teacher text, seed {seed}")
    return batch_indices(n_windows=n_windows, seed=own, step=step, batch_size=batch_size)


class TeacherTextBatches(Batches):
    """Raw batches in which the teacher's windows take some slots; the others are the raw variant's, in its order."""

    def __init__(self, run: RunSpec, corpus: Corpus, *, text: str, text_hash: str, share: float) -> None:
        """ValueError if `text`, a ready-made text or a folder, is not the one of that hash."""
        super().__init__(run, corpus, self.mixed)
        self.share = share
        self.teacher_windows = Windows(_teacher_stream(corpus, text, text_hash), run.trainer.sequence_length)

    def mixed(self, step: int) -> np.ndarray:
        """The step's windows, int64 (batch_size, T + 1)."""
        place: dict[str, Any] = {"seed": self.run.seed, "step": step, "batch_size": self.run.trainer.batch_size}
        indices = teacher_indices(n_windows=len(self.teacher_windows), **place)
        taken = teacher_slots(**place, share=self.share)
        windows = self.raw(step)
        windows[taken] = self.teacher_windows[indices[taken]]
        return windows


def _teacher_stream(corpus: Corpus, text: str, text_hash: str) -> TokenFile:
    found = read_manifest(text).text_hash
    if found != text_hash:
        raise ValueError(
            f"the run was planned with another teacher text: {text} has sha256 {found[:12]}, "
            f"the run asks for {text_hash[:12]}; put that text back, or plan the study again"
        )
    return encode_documents(corpus, training_texts(text), name="teacher")


class SoftTargetBatches(Batches):
    """Raw batches with the teacher's distribution at every position, computed where the batch is trained on."""

    def __init__(
        self,
        run: RunSpec,
        corpus: Corpus,
        load_model: LoadModel,
        *,
        teacher: str,
        teacher_hash: str,
        temperature: float,
        n_tokens: int,
    ) -> None:
        """ValueError if the weights in the folder `teacher` are others, or of a model of another corpus."""
        super().__init__(run, corpus)
        weights = read_weights(teacher)
        if weights.hash != teacher_hash:
            raise ValueError(
                f"the run was planned with another teacher: the weights in {teacher} have sha256 "
                f"{weights.hash[:12]}, the run asks for {teacher_hash[:12]}; plan the study again"
            )
        if weights.manifest.corpus_hash != run.corpus_hash:
            raise ValueError(
                f"the teacher {teacher} was trained on another corpus (hash {weights.manifest.corpus_hash[:12]}, "
                f"not {run.corpus_hash[:12]}): its tokens mean something else, and it may have seen this held-out "
                "text; train a teacher on this corpus"
            )
        self.temperature, self.n_tokens = temperature, n_tokens
        self.teacher = load_model(teacher)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        window_BT1 = batch["window_BT1"]
        logits_BTC = self.teacher.to(window_BT1.device)(window_BT1[:, :-1])
        return batch | soft_targets(logits_BTC, self.temperature, self.n_tokens)


@torch.no_grad()
def soft_targets(logits_BTC: Tensor, temperature: float, n_tokens: int) -> dict[str, Tensor]:
    """What a batch holds of a teacher at `temperature`: the ids of the K likeliest tokens, K at most C, their
    log-probabilities, and that of all others together (-inf if there are none)."""
    logp_BTC = torch.log_softmax(logits_BTC.float() / temperature, dim=-1)
    found = logp_BTC.topk(min(n_tokens, logp_BTC.shape[-1]), dim=-1)
    rest_BT = _rest(logp_BTC, found.indices)
    return {"soft_ids_BTK": found.indices, "soft_logp_BTK": found.values, "soft_rest_logp_BT": rest_BT}


def soft_target_loss(logits_BTC: Tensor, batch: Mapping[str, Any], temperature: float) -> Tensor:
    """Mean of temperature^2 KL(teacher || model) over positions (arXiv:1503.02531), in nats a token.

    The tokens beside the K that the batch holds count as one, so this is at most the full divergence and its
    gradient still moves their joint probability.
    """
    logp_BTK, ids_BTK, rest_BT = (batch[f"soft_{name}"] for name in ("logp_BTK", "ids_BTK", "rest_logp_BT"))
    logq_BTC = torch.log_softmax(logits_BTC / temperature, dim=-1)
    logq_BTK = logq_BTC.gather(-1, ids_BTK)
    divergence_BT = (logp_BTK.exp() * (logp_BTK - logq_BTK)).sum(-1)
    if ids_BTK.shape[-1] < logits_BTC.shape[-1]:
        divergence_BT = divergence_BT + rest_BT.exp() * (rest_BT - _rest(logq_BTC, ids_BTK))
    return temperature**2 * divergence_BT.mean()


def _rest(logp_BTC: Tensor, ids_BTK: Tensor) -> Tensor:
    """Log-probability of all tokens but these. 1 less their sum would be zero for who is certain to the last bit."""
    return logp_BTC.scatter(-1, ids_BTK, float("-inf")).logsumexp(-1)
