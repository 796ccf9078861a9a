"""A Llama-style model of `transformers` that writes for many prompts at once: plain tensors and a cache in place.

`generate` of that library keeps every row to the end of the longest and makes the cache anew at each step. Here the
weights are bfloat16 where the processor multiplies it, rows leave when they end, and the cache is written in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 32  # positions by which a cache grows
READ_ROWS = 16  # prompts that are read together: more of them do not fit a processor's own memory


def fast_dtype() -> torch.dtype:
    """bfloat16 on a processor that multiplies it, else float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        flags = []
    return torch.bfloat16 if {"avx512_bf16", "amx_bf16"} & set(flags) else torch.float32


def obstacle(config: Any) -> str:
    """Why a model of this configuration cannot be read by `Decoder`, or ""."""
    if config.model_type != "llama":
        return f"its kind is {config.model_type}"
    if config.hidden_act != "silu" or config.attention_bias or config.mlp_bias:
        return "it has biases or another activation"
    if config.rope_parameters["rope_type"] != "default":
        return f"its rotation is {config.rope_parameters['rope_type']}"
    return ""


class Decoder:
    """The model's equations for the next token of every row, with the keys and values that it has read.

    Rows are as long as they are: the cache holds (rows x key heads, positions, head dimension), and what lies behind a
    row's end is masked. ValueError for a model that is not of this kind.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        config = model.config
        if why := obstacle(config):
            raise ValueError(f"this model is not decoded here ({why}); it is by transformers' own generate")
        self.n_kv, self.head_dim = config.num_key_value_heads, config.head_dim
        self.group = config.num_attention_heads // self.n_kv
        self.eps, self.theta, self.dtype = config.rms_norm_eps, config.rope_parameters["rope_theta"], dtype
        self.embedding = model.get_input_embeddings().weight.detach().to(dtype)
        head = model.get_output_embeddings().weight.detach()
        self.head = self.embedding if head is model.get_input_embeddings().weight else head.to(dtype)
        self.norm = model.model.norm.weight.detach().to(dtype)
        self.layers = [_layer(layer, dtype) for layer in model.model.layers]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.n_read_B = torch.zeros(0, dtype=torch.long)

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Begin rows with these prompts; logits (B, C) of the token behind each, float32."""
        lengths = torch.tensor([len(ids) for ids in prompts])
        n = int(lengths.max())
        ids_BT = torch.tensor([[*ids, *[0] * (n - len(ids))] for ids in prompts])
        self._begin(lengths)
        # What stands behind a prompt's end is read too, and no position before it sees that.
        x_BD = []
        for first in range(0, len(prompts), READ_ROWS):
            part = ids_BT[first : first + READ_ROWS]
            x_BTD = self._trunk(part, torch.arange(n).expand(len(part), n), None, first)
            x_BD.append(x_BTD[torch.arange(len(part)), lengths[first : first + READ_ROWS] - 1])
        return self._logits(torch.cat(x_BD))

    def read_all(self, ids: Sequence[int]) -> Tensor:
        """Begin one row; logits (T, C) behind each of its tokens, float32."""
        self._begin(torch.tensor([len(ids)]))
        return self._logits(self._trunk(torch.tensor([ids]), torch.arange(len(ids))[None], None)[0])

    def _begin(self, length_B: Tensor) -> None:
        """An empty cache for rows that will have read so much."""
        positions = -(-(int(length_B.max()) + 1) // STEP) * STEP
        shape = (len(length_B) * self.n_kv, positions, self.head_dim)
        self.keys = [torch.zeros(shape, dtype=self.dtype) for _ in self.layers]
        self.values = [torch.zeros(shape, dtype=self.dtype) for _ in self.layers]
        self.n_read_B = length_B

    def step(self, token_B: Tensor) -> Tensor:
        """Logits (B, C) behind one more token of every row, float32."""
        if int(self.n_read_B.max()) >= self.keys[0].shape[1]:
            self._grow()
        n = self.keys[0].shape[1]
        mask_B1S = torch.zeros(len(token_B), 1, n, dtype=self.dtype)
        mask_B1S.masked_fill_(torch.arange(n) > self.n_read_B[:, None, None], float("-inf"))
        x_BTD = self._trunk(token_B[:, None], self.n_read_B[:, None], mask_B1S.repeat_interleave(self.n_kv, 0))
        self.n_read_B = self.n_read_B + 1
        return self._logits(x_BTD[:, 0])

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, in this order."""
        wide = (rows[:, None] * self.n_kv + torch.arange(self.n_kv)).flatten()
        self.n_read_B = self.n_read_B[rows]
        for cache in (self.keys, self.values):
            for i, tensor in enumerate(cache):
                cache[i] = tensor[wide]

    def _grow(self) -> None:
        for cache in (self.keys, self.values):
            for i, tensor in enumerate(cache):
                cache[i] = F.pad(tensor, (0, 0, 0, STEP))

    def _logits(self, x_BD: Tensor) -> Tensor:
        return F.linear(F.rms_norm(x_BD, x_BD.shape[-1:], self.norm, self.eps), self.head).float()

    def _trunk(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor | None, first: int = 0) -> Tensor:
        """Hidden states (B, T, D) of the rows from `first` on; without a mask each begins here."""
        x_BTD = F.embedding(ids_BT, self.embedding)
        cos, sin = self._rotation(positions_BT)
        rows = (torch.arange(first, first + len(ids_BT))[:, None] * self.n_kv + torch.arange(self.n_kv)).flatten()
        # (rows x key heads, T): where this call's keys go
        places = positions_BT.repeat_interleave(self.n_kv, 0)
        for number, layer in enumerate(self.layers):
            y_BTD = F.rms_norm(x_BTD, x_BTD.shape[-1:], layer["norm"], self.eps)
            q, k, v = self._heads(F.linear(y_BTD, layer["qkv"]), cos, sin)
            self.keys[number][rows[:, None], places] = k
            self.values[number][rows[:, None], places] = v
            seen = self._prompt_attention(q, k, v) if mask is None else self._attention(number, q, mask)
            x_BTD = x_BTD + F.linear(seen.reshape(*x_BTD.shape[:2], -1), layer["out"])
            y_BTD = F.rms_norm(x_BTD, x_BTD.shape[-1:], layer["feed_norm"], self.eps)
            gate, up = F.linear(y_BTD, layer["gate_up"]).chunk(2, dim=-1)
            x_BTD = x_BTD + F.linear(F.silu(gate) * up, layer["down"])
        return x_BTD

    def _heads(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B H, T, G, K) of the H key heads' groups, rotated keys and values (B H, T, K)."""
        n_batch, n = qkv.shape[:2]
        parts = qkv.split([self.n_kv * self.group * self.head_dim, *[self.n_kv * self.head_dim] * 2], dim=-1)
        q, k, v = (part.view(n_batch, n, -1, self.head_dim) for part in parts)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        q = q.view(n_batch, n, self.n_kv, self.group, self.head_dim).transpose(1, 2)
        return q.flatten(0, 1), k.transpose(1, 2).flatten(0, 1), v.transpose(1, 2).flatten(0, 1)

    def _attention(self, number: int, q: Tensor, mask: Tensor) -> Tensor:
        """Of one token a row: (B, 1, H, G K) from the cache; `mask` (B H, 1, S)."""
        # The whole cache, since a part of it would be copied first.
        scores = q[:, 0] @ self.keys[number].transpose(1, 2) * self.head_dim**-0.5 + mask
        weights = scores.float().softmax(-1).to(self.dtype)
        return (weights @ self.values[number]).view(-1, 1, self.n_kv, self.group * self.head_dim)

    def _prompt_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of whole prompts: (B, T, H, G K), causal."""
        n = q.shape[1]
        k, v = (t[:, None].expand(-1, self.group, -1, -1) for t in (k, v))
        seen = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        return seen.view(-1, self.n_kv, self.group, n, self.head_dim).permute(0, 3, 1, 2, 4)

    def _rotation(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B, T, 1, K), whose second half repeats the first."""
        powers = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        angles = positions_BT[..., None] * self.theta**-powers
        angles = torch.cat([angles, angles], dim=-1)[:, :, None]
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def _layer(layer: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    attention, feed = layer.self_attn, layer.mlp
    weights = {
        "norm": layer.input_layernorm.weight,
        "qkv": torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
        "out": attention.o_proj.weight,
        "feed_norm": layer.post_attention_layernorm.weight,
        "gate_up": torch.cat([feed.gate_proj.weight, feed.up_proj.weight]),
        "down": feed.down_proj.weight,
    }
    return {name: weight.detach().to(dtype) for name, weight in weights.items()}


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
