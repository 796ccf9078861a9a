"""What a part costs: parameters, arithmetic and cache, in closed form and without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

BF16_BYTES = 2
FP32_BYTES = 4
DTYPE_BYTES = {"bfloat16": BF16_BYTES, "float32": FP32_BYTES}  # of an activation, by a run's dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Price of one part of a model. Counts of arithmetic are for the forward pass of one token.

    `activated` is what one token touches of `parameters`. `weight_flops` is two per activated matrix weight;
    `gate_flops` are the router's, which the published convention leaves out of a model's FLOPs.
    `attention_flops` are the two attention products, causal: a token attends to (T + 1) / 2 tokens on average.
    """

    parameters: int = 0
    activated: int = 0
    weight_flops: int = 0
    attention_flops: int = 0
    gate_flops: int = 0
    kv_cache_elements: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, times: int) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) * times for f in fields(self)})

    @property
    def forward_flops(self) -> int:
        return self.weight_flops + self.attention_flops


def matrix(rows: int, columns: int) -> Cost:
    """One linear map without bias, used by every token."""
    return Cost(parameters=rows * columns, activated=rows * columns, weight_flops=2 * rows * columns)


def vector(size: int) -> Cost:
    """A norm's weight: parameters, no counted arithmetic."""
    return Cost(parameters=size, activated=size)


def causal_attention(*, sequence_length: int, n_heads: int, qk_dim: int, v_dim: int) -> Cost:
    """The products q k^T and p v of one token, averaged over its position."""
    return Cost(attention_flops=(sequence_length + 1) * n_heads * (qk_dim + v_dim))


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCost:
    """Price of a whole model.

    `main` is the model that is deployed, embedding and head included. `extra` is what only training uses
    (multi-token prediction modules): its parameters, and its FLOPs spread over the tokens of a sequence.
    """

    main: Cost
    embedding_parameters: int  # of `main`: the input embedding's table, of which a token reads one row
    extra_parameters: int
    extra_forward_flops_per_token: float
    sequence_length: int

    @property
    def forward_flops_per_token(self) -> int:
        """As deployed: the main model, the modules of multi-token prediction discarded."""
        return self.main.forward_flops

    @property
    def training_flops_per_token(self) -> int:
        """Forward and backward (twice the forward) of everything that is trained; recomputation never counted."""
        return round(3 * (self.main.forward_flops + self.extra_forward_flops_per_token))

    @property
    def trained_parameters(self) -> int:
        return self.main.parameters + self.extra_parameters

    def summary(self) -> dict[str, int]:
        """The figures of `account`, in plain numbers."""
        return {
            "total_parameters": self.main.parameters,
            "activated_parameters": self.main.activated,
            "activated_without_embedding": self.main.activated - self.embedding_parameters,
            "trained_parameters": self.trained_parameters,
            "training_flops_per_token": self.training_flops_per_token,
            "forward_flops_per_token": self.forward_flops_per_token,
            "uncounted_router_flops_per_token": 3 * self.main.gate_flops,
            "kv_cache_bytes_per_token": BF16_BYTES * self.main.kv_cache_elements,
            "kv_cache_elements_per_token": self.main.kv_cache_elements,
            "weight_bytes": BF16_BYTES * self.trained_parameters,
            "optimizer_bytes": 3 * FP32_BYTES * self.trained_parameters,
            "sequence_length": self.sequence_length,
        }
