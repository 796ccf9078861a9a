"""Weights under the names and in the layout of transformers' DeepseekV3 and Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ablate.components.mla.spec import LatentAttention
from ablate.components.moe.spec import RoutedExperts
from ablate.export.config import dense_width, exported_modules
from ablate.spec.model import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


def hf_weights(model: ModelSpec, state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights by transformers' names, and what was left out. ValueError if they are not the model's."""
    weights = Weights(model, state_dict)
    weights.copy("embedding.weight", "model.embed_tokens.weight")
    weights.copy("norm.weight", "model.norm.weight")
    weights.copy("head.weight", "lm_head.weight")
    for layer in range(model.n_layers):
        weights.block(f"layers.{layer}", f"model.layers.{layer}", layer)
    for k in exported_modules(model):
        weights.module(f"objective.layers.{k}", model.n_layers + k)
    rest = sorted(weights.rest)
    notes = []
    if model.linear.kind != "standard":
        notes.append(
            f"the weights are the master weights of {model.linear.kind} training: transformers multiplies them in its "
            "own dtype, so logits differ from the run's by the rounding of its products"
        )
    if any(name.startswith("objective.") for name in rest):
        notes.append(
            "the modules that predict further tokens are left out, as at deployment: transformers has a place for "
            "sequential ones with routed experts only"
        )
    strangers = [name for name in rest if not name.startswith("objective.")]
    if strangers:
        raise ValueError(f"these weights belong to no part of the model: {', '.join(strangers[:5])}")
    return weights.out, notes


class Weights:
    """Our weights on their way to transformers' names; `rest` are those not yet taken."""

    def __init__(self, model: ModelSpec, state_dict: Mapping[str, Tensor]) -> None:
        self.model, self.state_dict = model, state_dict
        self.rest, self.out = set(state_dict), dict[str, "Tensor"]()

    def take(self, name: str) -> Tensor:
        if name not in self.state_dict:
            raise ValueError(f"the weights have no {name}, which the model's specification asks for")
        self.rest.discard(name)
        return self.state_dict[name].detach().cpu()

    def put(self, name: str, tensor: Tensor) -> None:
        # A copy: safetensors refuses tensors that share memory, and chunks of one do.
        self.out[name] = tensor.clone().contiguous()

    def copy(self, ours: str, theirs: str) -> None:
        self.put(theirs, self.take(ours))

    def block(self, ours: str, theirs: str, layer: int) -> None:
        self.copy(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight")
        self.copy(f"{ours}.feed_forward_norm.weight", f"{theirs}.post_attention_layernorm.weight")
        node = self.model.attention
        if isinstance(node, LatentAttention):
            self.latent_attention(f"{ours}.attention", f"{theirs}.self_attn", node)
        else:
            for a, b in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("output", "o_proj")):
                self.copy(f"{ours}.attention.{a}.weight", f"{theirs}.self_attn.{b}.weight")
        feed_forward, _ = self.model.layer_feed_forward(layer)
        if isinstance(feed_forward, RoutedExperts):
            self.experts(f"{ours}.feed_forward", f"{theirs}.mlp", feed_forward)
        else:
            self.swiglu(f"{ours}.feed_forward", f"{theirs}.mlp", dense_width(self.model))

    def latent_attention(self, ours: str, theirs: str, node: LatentAttention) -> None:
        query = "q_up" if node.q_lora_rank else "q"
        query_HXD = self.take(f"{ours}.{query}.weight").unflatten(0, (node.n_heads, -1))
        query_HXD = _interleave(query_HXD.transpose(0, 1), node.qk_nope_head_dim).transpose(0, 1)
        self.put(f"{theirs}.{'q_b_proj' if node.q_lora_rank else 'q_proj'}.weight", query_HXD.flatten(0, 1))
        if node.q_lora_rank:
            self.copy(f"{ours}.q_down.weight", f"{theirs}.q_a_proj.weight")
            self.copy(f"{ours}.q_norm.weight", f"{theirs}.q_a_layernorm.weight")
        down_XD = self.take(f"{ours}.kv_down.weight")
        self.put(f"{theirs}.kv_a_proj_with_mqa.weight", _interleave(down_XD, node.kv_lora_rank))
        self.copy(f"{ours}.kv_norm.weight", f"{theirs}.kv_a_layernorm.weight")
        self.copy(f"{ours}.kv_up.weight", f"{theirs}.kv_b_proj.weight")
        self.copy(f"{ours}.output.weight", f"{theirs}.o_proj.weight")

    def swiglu(self, ours: str, theirs: str, width: int) -> None:
        from torch.nn.functional import pad

        gate, up = self.take(f"{ours}.gate_up.weight").chunk(2)
        more = width - gate.shape[0]
        self.put(f"{theirs}.gate_proj.weight", pad(gate, (0, 0, 0, more)))
        self.put(f"{theirs}.up_proj.weight", pad(up, (0, 0, 0, more)))
        self.put(f"{theirs}.down_proj.weight", pad(self.take(f"{ours}.down.weight"), (0, more)))

    def experts(self, ours: str, theirs: str, node: RoutedExperts) -> None:
        self.copy(f"{ours}.router.weight", f"{theirs}.gate.weight")
        bias, place = f"{ours}.router.bias_E", f"{theirs}.gate.e_score_correction_bias"
        gate_up_EXD, down_EDF = self.take(f"{ours}.experts.gate_up.weight"), self.take(f"{ours}.experts.down.weight")
        # Without a selection bias, one of zeros.
        self.put(place, self.take(bias) if bias in self.state_dict else gate_up_EXD.new_zeros(node.n_routed_experts))
        for e, (gate_up, down) in enumerate(zip(gate_up_EXD, down_EDF, strict=True)):
            gate, up = gate_up.chunk(2)
            for name, tensor in (("gate", gate), ("up", up), ("down", down)):
                self.put(f"{theirs}.experts.{e}.{name}_proj.weight", tensor)
        if node.n_shared_experts:
            self.swiglu(f"{ours}.shared", f"{theirs}.shared_experts", node.n_shared_experts * node.expert_hidden_dim)
            return
        # The class has shared experts in any case; of width zero they add nothing.
        self.put(f"{theirs}.shared_experts.gate_proj.weight", down_EDF.new_zeros(0, self.model.dim))
        self.put(f"{theirs}.shared_experts.up_proj.weight", down_EDF.new_zeros(0, self.model.dim))
        self.put(f"{theirs}.shared_experts.down_proj.weight", down_EDF.new_zeros(self.model.dim, 0))

    def module(self, ours: str, layer: int) -> None:
        """One module of multi-token prediction, as a layer behind the last, with its own copy of what it shares."""
        theirs = f"model.layers.{layer}"
        self.copy("embedding.weight", f"{theirs}.embed_tokens.weight")
        self.copy(f"{ours}.embedding_norm.weight", f"{theirs}.enorm.weight")
        self.copy(f"{ours}.hidden_norm.weight", f"{theirs}.hnorm.weight")
        self.copy(f"{ours}.projection.weight", f"{theirs}.eh_proj.weight")
        self.block(f"{ours}.block", theirs, layer)
        self.copy(f"{ours}.norm.weight", f"{theirs}.shared_head.norm.weight")
        self.copy("head.weight", f"{theirs}.shared_head.head.weight")


def _interleave(rows_XD: Tensor, start: int) -> Tensor:
    """Rows from `start` on, rotated as pairs (i, i + R / 2) here, in the order of pairs (2 i, 2 i + 1)."""
    from torch import cat

    fixed, rotated = rows_XD[:start], rows_XD[start:]
    return cat([fixed, rotated.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)])
