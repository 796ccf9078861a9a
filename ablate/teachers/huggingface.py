"""A teacher from Hugging Face, through the `transformers` extra. Safetensors only, and no code of the model is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ablate.teachers.teacher import Completion

BATCH = 16


class HuggingFaceTeacher:
    """A causal language model by name or folder. `revision`: a commit, so that the name cannot change its meaning."""

    def __init__(self, name: str, *, revision: str = "main", device: str = "cpu") -> None:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise ValueError(
                f"the teacher {name} is a Hugging Face model and transformers is absent: "
                "pip install 'dsv3-ablate[transformers]'"
            ) from None
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        self.tokenizer: Any
        self.model: Any
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", **options)
            self.model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, **options)
        except (OSError, ValueError) as error:
            raise ValueError(f"the teacher {name} cannot be loaded ({error}); check its name and the network") from None
        self.model = self.model.to(device).eval()
        self.name, self.revision = name, revision
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token_id = self.tokenizer.eos_token_id or 0

    @property
    def flops_per_token(self) -> float | None:
        """Two a parameter but for the input embedding; attention is left out."""
        embedding = self.model.get_input_embeddings().weight
        total = sum(p.numel() for p in self.model.parameters())
        tied = self.model.get_output_embeddings().weight is embedding
        return 2.0 * (total if tied else total - embedding.numel())

    def describe(self) -> dict[str, Any]:
        commit = getattr(self.model.config, "_commit_hash", None)
        return {"kind": "huggingface", "name": self.name, "revision": self.revision, "commit": commit}

    def complete(self, prompts: Sequence[str], *, max_tokens: int, temperature: float, seed: int) -> list[Completion]:
        found: list[Completion] = []
        # Sampling there draws from torch's global generator, which is the caller's.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), BATCH):
                found += self._batch(list(prompts[start : start + BATCH]), max_tokens, temperature)
        return found

    @torch.no_grad()
    def _batch(self, prompts: list[str], max_tokens: int, temperature: float) -> list[Completion]:
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        encoded = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.model.device)
        output = self.model.generate(
            **encoded,
            **sampling,
            max_new_tokens=max_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens_BN = output.sequences[:, encoded["input_ids"].shape[1] :]
        logp_BNC = torch.log_softmax(torch.stack(output.logits, 1).float(), -1)
        nats_BN = -logp_BNC.gather(-1, tokens_BN[..., None])[..., 0]
        lengths = [self._length(tokens) for tokens in tokens_BN.tolist()]
        return [
            Completion(
                text=self.tokenizer.decode(tokens[:n], skip_special_tokens=True),
                n_forward_tokens=n_prompt + n - 1,
                nats_per_token=float(nats[:n].mean()),
            )
            for tokens, nats, n, n_prompt in zip(
                tokens_BN, nats_BN, lengths, encoded["attention_mask"].sum(1).tolist(), strict=True
            )
        ]

    def _length(self, tokens: list[int]) -> int:
        """Tokens up to the end of the text, that one included; the rest is padding."""
        end = self.tokenizer.eos_token_id
        return tokens.index(end) + 1 if end in tokens else len(tokens)
