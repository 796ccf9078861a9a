"""A causal language model of the `transformers` library as a teacher. No code that comes with a model is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ablate.randomness import seed_of
from ablate.teachers.teacher import Completion

BATCH = 32


class HuggingFaceTeacher:
    """A model and its tokenizer, both of `transformers`; `description` is what the manifest says of them.

    It continues the bare text of a prompt up to the first special token. The same call gives the same texts on the
    same machine.
    """

    def __init__(self, model: Any, tokenizer: Any, description: Mapping[str, Any]) -> None:
        self.model, self.tokenizer, self.description = model.eval(), tokenizer, dict(description)
        self.ends = sorted(set(tokenizer.all_special_ids))
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = self.ends[0] if self.ends else 0

    @property
    def flops_per_token(self) -> float | None:
        """Two a parameter but for the input embedding; attention is left out."""
        embedding = self.model.get_input_embeddings().weight
        total = sum(p.numel() for p in self.model.parameters())
        tied = self.model.get_output_embeddings().weight is embedding
        return 2.0 * (total if tied else total - embedding.numel())

    def describe(self) -> dict[str, Any]:
        return dict(self.description)

    def complete(self, prompts: Sequence[str], *, max_tokens: int, temperature: float, seed: int) -> list[Completion]:
        found: list[Completion] = []
        # Sampling there draws from torch's global generator, which is the caller's.
        with torch.random.fork_rng():
            for start in range(0, len(prompts), BATCH):
                batch = list(prompts[start : start + BATCH])
                torch.manual_seed(seed_of(f"teacher tokens, seed {seed}, {batch}"))
                found += self._batch(batch, max_tokens, temperature)
        return found

    @torch.no_grad()
    def _batch(self, prompts: list[str], max_tokens: int, temperature: float) -> list[Completion]:
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        encoded = self.tokenizer(prompts, return_tensors="pt", padding=True)
        losses = _Losses()
        sequences = self.model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            **sampling,
            max_new_tokens=max_tokens,
            eos_token_id=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
            logits_processor=[losses],
        )
        tokens_BN = sequences[:, encoded["input_ids"].shape[1] :]
        nats_BN = losses.until(sequences)
        n_prompt_B = encoded["attention_mask"].sum(1).tolist()
        found = []
        for tokens, nats, n_prompt in zip(tokens_BN.tolist(), nats_BN.tolist(), n_prompt_B, strict=True):
            # What follows the end of a text is padding.
            n = next((k + 1 for k, token in enumerate(tokens) if token in self.ends), len(tokens))
            text = self.tokenizer.decode(tokens[:n], skip_special_tokens=True)
            found.append(Completion(text=text, n_forward_tokens=n_prompt + n - 1, nats_per_token=sum(nats[:n]) / n))
        return found


class _Losses:
    """The model's own loss on each token that it writes, without keeping the logits of more than one.

    It stands in the place of a processor of logits, which sees each step's before the temperature changes them.
    """

    def __init__(self) -> None:
        self.logp_BC: Tensor | None = None
        self.nats: list[Tensor] = []

    def __call__(self, ids_BT: Tensor, logits_BC: Tensor) -> Tensor:
        self._take(ids_BT)
        self.logp_BC = torch.log_softmax(logits_BC.float(), dim=-1)
        return logits_BC

    def until(self, ids_BT: Tensor) -> Tensor:
        """Losses in nats (B, N) of the N tokens that were written."""
        self._take(ids_BT)
        return torch.stack(self.nats, dim=1)

    def _take(self, ids_BT: Tensor) -> None:
        if self.logp_BC is not None:
            self.nats.append(-self.logp_BC.gather(-1, ids_BT[:, -1:])[:, 0])


def load_named(name: str, *, revision: str = "main") -> HuggingFaceTeacher:
    """The model of a name or folder, of safetensors alone; ValueError if it, or `transformers`, is not there.

    `revision`: a commit, so that the name cannot change its meaning.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ValueError(
            f"the teacher {name} is a Hugging Face model and transformers is absent: "
            "pip install 'dsv3-ablate[transformers]'"
        ) from None
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"the teacher {name} cannot be loaded ({error}); check its name and the network") from None
    commit = getattr(model.config, "_commit_hash", None)
    return HuggingFaceTeacher(
        model, tokenizer, {"kind": "huggingface", "name": name, "revision": revision, "commit": commit}
    )
