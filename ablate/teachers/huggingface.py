"""A causal language model of the `transformers` library as a teacher. No code that comes with a model is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablate.randomness import seed_of
from ablate.teachers.llama import Decoder, fast_dtype, obstacle
from ablate.teachers.teacher import Completion, Prompt, draws

BATCH = 32  # of transformers' own generate
DECODED_BATCH = 128
GOING_SHARE = 0.8  # of a batch's rows: below it those that have ended leave
WINDOW = 512  # tokens of held-out text that are read together
TOP_K = 64  # tokens that are drawn from; a small model's tail is where its text breaks


class HuggingFaceTeacher:
    """A model and its tokenizer, both of `transformers`; `description` is what the manifest says of them.

    It continues the bare text of a prompt, or answers a request through the chat template, up to the first special
    token. The same call gives the same texts on the same machine. Models of Llama's kind are sampled by `Decoder`.
    """

    def __init__(self, model: Any, tokenizer: Any, description: Mapping[str, Any]) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.ends = sorted(set(tokenizer.all_special_ids))
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = self.ends[0] if self.ends else 0
        dtype = fast_dtype()
        self.decoder = None if obstacle(model.config) else Decoder(model, dtype)
        sampled_in = str(dtype if self.decoder else model.dtype).removeprefix("torch.")
        self.description = {**description, "dtype": sampled_in, "top_k": TOP_K}

    @property
    def answers(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def flops_per_token(self) -> float | None:
        """Two a parameter but for the input embedding; attention is left out."""
        embedding = self.model.get_input_embeddings().weight
        total = sum(p.numel() for p in self.model.parameters())
        tied = self.model.get_output_embeddings().weight is embedding
        return 2.0 * (total if tied else total - embedding.numel())

    def describe(self) -> dict[str, Any]:
        return dict(self.description)

    def complete(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        found: list[Completion] = []
        texts = [self._rendered(prompt) for prompt in prompts]
        size = BATCH if self.decoder is None else DECODED_BATCH
        # Sampling by transformers draws from torch's global generator, which is the caller's.
        with torch.random.fork_rng(), torch.inference_mode():
            for start in range(0, len(texts), size):
                batch = texts[start : start + size]
                if self.decoder is None:
                    torch.manual_seed(seed_of(f"teacher tokens, seed {seed}, {batch}"))
                    found += self._generated(batch, max_tokens, temperature)
                else:
                    found += self._decoded(self.decoder, batch, max_tokens, temperature, seed)
        return found

    def nats_of(self, texts: Sequence[str]) -> list[float]:
        """Of each text, read in windows of `WINDOW` tokens that begin with none of what came before.

        A window's first token is predicted from the token that ends a text.
        """
        found = []
        with torch.inference_mode():
            for text in texts:
                ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
                found.append(sum(self._window_nats([self.ends[0], *window]) for window in windows))
        return found

    def _window_nats(self, ids: list[int]) -> float:
        if self.decoder is None:
            logits_TC = self.model(torch.tensor([ids[:-1]])).logits[0].float()
        else:
            logits_TC = self.decoder.read_all(ids[:-1])
        return float(torch.nn.functional.cross_entropy(logits_TC, torch.tensor(ids[1:]), reduction="sum"))

    def _rendered(self, prompt: Prompt) -> str:
        if not prompt.asks:
            return prompt.text
        message = [{"role": "user", "content": prompt.text}]
        return self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)

    def _decoded(
        self, decoder: Decoder, texts: list[str], max_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        """Rows in step, each with its own draws; one that has ended leaves the batch."""
        read = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        draw_BN = torch.from_numpy(np.stack([draws(seed, text, max_tokens) for text in texts]))
        written: list[list[int]] = [[] for _ in texts]
        nats = torch.zeros(len(texts), dtype=torch.float64)
        rows, ends = torch.arange(len(texts)), torch.tensor(self.ends)
        going = torch.ones(len(texts), dtype=torch.bool)
        logits_BC = decoder.read(read)
        for n in range(max_tokens):
            token_B = pick_among_top(logits_BC, temperature, draw_BN[rows, n])
            loss_B = logits_BC.logsumexp(-1) - logits_BC.gather(-1, token_B[:, None])[:, 0]
            nats[rows[going]] += loss_B[going].double()
            for row, token in zip(rows[going].tolist(), token_B[going].tolist(), strict=True):
                written[row].append(token)
            going = going & ~torch.isin(token_B, ends)
            if n + 1 == max_tokens or not going.any():
                break
            if going.sum() <= GOING_SHARE * len(rows):
                kept = going.nonzero()[:, 0]
                decoder.keep(kept)
                rows, token_B, going = rows[kept], token_B[kept], going[kept]
            logits_BC = decoder.step(token_B)
        return [
            self._completion(tokens, float(loss), len(ids))
            for tokens, loss, ids in zip(written, nats, read, strict=True)
        ]

    def _completion(self, tokens: list[int], nats: float, n_prompt: int) -> Completion:
        return Completion(
            text=self.tokenizer.decode(tokens, skip_special_tokens=True),
            n_forward_tokens=n_prompt + len(tokens) - 1,
            nats_per_token=nats / len(tokens),
            ended=tokens[-1] in self.ends,
        )

    def _generated(self, prompts: list[str], max_tokens: int, temperature: float) -> list[Completion]:
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": TOP_K, "top_p": 1.0}
        encoded = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
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
            found.append(self._completion(tokens[:n], sum(nats[:n]), n_prompt))
        return found


def pick_among_top(logits_BC: Tensor, temperature: float, draw_B: Tensor) -> Tensor:
    """The token at which the cumulated probability of the `TOP_K` likeliest, the likeliest first, passes the draw."""
    top = logits_BC.topk(min(TOP_K, logits_BC.shape[-1]), dim=-1)
    if temperature == 0:
        return top.indices[:, 0]
    cumulated_BK = torch.softmax(top.values.double() / temperature, dim=-1).cumsum(-1)
    found_B = torch.searchsorted(cumulated_BK, draw_B[:, None], right=True)
    return top.indices.gather(-1, found_B.clamp_max(top.indices.shape[-1] - 1))[:, 0]


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
