"""A checkpoint of this program as a teacher, sampled with its key-value cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablate.data.corpus import Corpus, load_tokenizer
from ablate.data.tokenizer import END_OF_TEXT_ID, vocabulary_bytes
from ablate.model.weights import read_weights
from ablate.teachers.load import load_model
from ablate.teachers.teacher import Completion, Prompt, draws

BATCH = 128
PROMPT_STEP = 16


def pick(logits_BC: Tensor, temperature: float, draw_B: Tensor) -> Tensor:
    """The token at which the cumulated probability passes the draw; the likeliest one at temperature 0."""
    if temperature == 0:
        return logits_BC.argmax(-1)
    cumulated_BC = torch.softmax(logits_BC.double() / temperature, dim=-1).cumsum(-1)
    found_B = torch.searchsorted(cumulated_BC, draw_B[:, None], right=True)[:, 0]
    return found_B.clamp_max(logits_BC.shape[-1] - 1)


class CheckpointTeacher:
    """A model that this program trained on the same corpus. Its context is the length it was trained at.

    When the context is full, its second half is read again as a new beginning, so that texts may be longer.
    `metrics` of its run's record go into the manifest, so that a text says how good its teacher was.
    `use_cache` false computes every token from the whole context: the reference for what the cache gives.
    """

    answers = False

    def __init__(
        self, folder: str, corpus: Corpus, *, metrics: Mapping[str, float] | None = None, use_cache: bool = True
    ) -> None:
        self.weights = read_weights(folder)
        facts = self.weights.manifest
        if facts.corpus_hash != corpus.hash:
            raise ValueError(
                f"the teacher {folder} was trained on another corpus (hash {facts.corpus_hash[:12]}, not "
                f"{corpus.hash[:12]}): its tokens mean something else, and it may have seen this corpus's held-out "
                "text; train a teacher on this corpus"
            )
        self.model = load_model(folder)
        self.context = facts.sequence_length
        self.tokenizer = load_tokenizer(corpus)
        self.token_bytes = vocabulary_bytes(self.tokenizer)
        self.metrics = dict(metrics or {})
        self.use_cache = use_cache

    @property
    def flops_per_token(self) -> float | None:
        return float(self.weights.manifest.flops_per_token)

    def describe(self) -> dict[str, Any]:
        facts = self.weights.manifest
        return {
            "kind": "checkpoint",
            "run_id": facts.run_id,
            "spec": facts.run,
            "weights_hash": self.weights.hash,
            "training_tokens": facts.training_tokens,
            "training_flops": facts.training_flops,
            "parameters": facts.parameters,
            "metrics": self.metrics,
        }

    def complete(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        texts = [prompt.text for prompt in prompts]
        encoded = [_shortened(self.tokenizer.encode(p, add_special_tokens=False).ids, self.context) for p in texts]
        if not all(encoded):
            raise ValueError("a prompt is empty; a teacher continues text, so give it some")
        written: dict[int, Completion] = {}
        for rows in _batches(encoded):
            ids_BT = torch.tensor([encoded[row] for row in rows])
            draw_BN = torch.from_numpy(np.stack([draws(seed, texts[row], max_tokens) for row in rows]))
            written |= zip(rows, self._sample(ids_BT, draw_BN, temperature), strict=True)
        return [written[row] for row in range(len(texts))]

    @torch.no_grad()
    def _sample(self, ids_BT: Tensor, draw_BN: Tensor, temperature: float) -> list[Completion]:
        """Continue prompts of equal length by as many tokens as there are draws, or to the end of the text."""
        context_BT, cache, n_read = ids_BT, None, ids_BT.shape[1]
        tokens, nats, reads = [], [], []
        ended_B = torch.zeros(len(ids_BT), dtype=torch.bool)
        for draw_B in draw_BN.T.contiguous():
            logits_BC, cache = self._next(context_BT, cache)
            token_B = pick(logits_BC, temperature, draw_B)
            tokens.append(token_B)
            nats.append(torch.nn.functional.cross_entropy(logits_BC, token_B, reduction="none"))
            reads.append(n_read)
            n_read += 1
            ended_B |= token_B == END_OF_TEXT_ID
            if ended_B.all():
                break
            context_BT = torch.cat([context_BT, token_B[:, None]], dim=1)
            if context_BT.shape[1] > self.context:
                context_BT, cache = context_BT[:, -max(1, self.context // 2) :], None
                n_read += context_BT.shape[1] - 1
        return self._completions(torch.stack(tokens, 1), torch.stack(nats, 1), reads)

    def _next(self, context_BT: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits behind the context; a cache holds all of it but the last token, None nothing."""
        if not self.use_cache:
            return self.model(context_BT)[:, -1].float(), None
        if cache is None:
            cache = self.model.new_cache(len(context_BT), self.context)
            return self.model.decode(context_BT, cache)[:, -1].float(), cache
        return self.model.decode(context_BT[:, -1:], cache)[:, -1].float(), cache

    def _completions(self, tokens_BN: Tensor, nats_BN: Tensor, reads: list[int]) -> list[Completion]:
        found = []
        for tokens, nats in zip(tokens_BN.tolist(), nats_BN.tolist(), strict=True):
            n = tokens.index(END_OF_TEXT_ID) + 1 if END_OF_TEXT_ID in tokens else len(tokens)
            # A text cut at max_tokens may end inside a character, whose bytes are then left out.
            text = b"".join(self.token_bytes[token] for token in tokens[:n]).decode(errors="ignore")
            found.append(
                Completion(
                    text=text,
                    n_forward_tokens=reads[n - 1],
                    nats_per_token=sum(nats[:n]) / n,
                    ended=tokens[n - 1] == END_OF_TEXT_ID,
                )
            )
        return found


def _shortened(ids: list[int], context: int) -> list[int]:
    """The end of a prompt, with room for a token in the context, in one of a few lengths: so that batches are large."""
    n = min(len(ids), context - 1)
    return ids[-max(n // PROMPT_STEP * PROMPT_STEP, min(n, PROMPT_STEP)) :]


def _batches(encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows of equal length together, since the cache has one length for its whole batch."""
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for row, ids in enumerate(encoded):
        by_length[len(ids)].append(row)
    for rows in by_length.values():
        for start in range(0, len(rows), BATCH):
            yield rows[start : start + BATCH]
