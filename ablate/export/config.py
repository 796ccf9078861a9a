"""What config.json says of a model, and what transformers has no class for."""

from __future__ import annotations

from typing import Any

from ablate.components.mla.spec import GroupedQueryAttention, LatentAttention
from ablate.components.moe.spec import RoutedExperts, SwiGLU
from ablate.components.mtp.spec import MultiToken
from ablate.data.tokenizer import END_OF_TEXT_ID
from ablate.spec.model import ModelSpec

EXPORTABLE = "mla with moe or with moe off (dense), and gqa, mha or mqa with moe off (dense)"
LATENT_NORM_EPS = 1e-6  # transformers norms the latents with this, whatever rms_norm_eps says
GROUP_SCORES = 2  # transformers ranks a group of experts by the sum of its best two
# Documents follow each other with this token between them, so it begins a text as well as it ends one.
SPECIAL_IDS = {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID}


def hf_config(model: ModelSpec, sequence_length: int) -> dict[str, Any]:
    """config.json without its dtype. ValueError where no class of transformers computes the same logits."""
    shared = SPECIAL_IDS | {
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "intermediate_size": dense_width(model),
        "hidden_act": "silu",
        "max_position_embeddings": sequence_length,
        "rms_norm_eps": model.norm.eps,
        "initializer_range": model.init.deviation(model.dim),
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
    }
    if isinstance(model.attention, LatentAttention):
        return shared | _deepseek_config(model, model.attention)
    if not isinstance(model.attention, GroupedQueryAttention) or isinstance(model.feed_forward, RoutedExperts):
        raise ValueError(
            f"transformers has no class for {model.attention.kind} attention with {model.feed_forward.kind} "
            f"feed-forwards of this kind; what can be exported: {EXPORTABLE}"
        )
    node = model.attention
    return shared | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_attention_heads": node.n_heads,
        "num_key_value_heads": node.n_kv_heads,
        "head_dim": node.head_dim,
        "mlp_bias": False,
    }


def dense_width(model: ModelSpec) -> int:
    """Hidden width of every dense layer: transformers knows one, so narrower layers are filled up with zeros."""
    return max(n.hidden_dim for n in (model.first_feed_forward, model.feed_forward) if isinstance(n, SwiGLU))


def _deepseek_config(model: ModelSpec, node: LatentAttention) -> dict[str, Any]:
    if model.norm.eps != LATENT_NORM_EPS:
        raise ValueError(
            f"norm.eps is {model.norm.eps}; transformers' DeepseekV3 norms the latents with {LATENT_NORM_EPS} "
            "whatever its configuration says, so the logits would differ"
        )
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_attention_heads": node.n_heads,
        "num_key_value_heads": node.n_heads,
        "q_lora_rank": node.q_lora_rank or None,
        "kv_lora_rank": node.kv_lora_rank,
        "qk_nope_head_dim": node.qk_nope_head_dim,
        "qk_rope_head_dim": node.qk_rope_head_dim,
        "v_head_dim": node.v_head_dim,
        "rope_interleave": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "num_nextn_predict_layers": len(exported_modules(model)),
    }
    if not isinstance(model.feed_forward, RoutedExperts):
        return config | {"first_k_dense_replace": model.n_layers}
    return config | {"first_k_dense_replace": model.n_first_layers} | _routing_config(model.feed_forward)


def _routing_config(node: RoutedExperts) -> dict[str, Any]:
    limited = node.n_limited_groups < node.n_expert_groups
    if limited and node.n_group_scores != GROUP_SCORES:
        raise ValueError(
            f"groups of experts are ranked by their best {node.n_group_scores} affinities "
            f"({node.n_activated_experts} activated experts in {node.n_limited_groups} groups), in transformers by "
            f"their best {GROUP_SCORES}, so the logits would differ; what can be exported: moe=unlimited, and moe "
            f"with {GROUP_SCORES} activated experts for each group that a token may reach"
        )
    if node.n_routed_experts < GROUP_SCORES:
        raise ValueError("transformers' router needs at least 2 routed experts, and there is 1; it cannot be exported")
    return {
        "n_routed_experts": node.n_routed_experts,
        "n_shared_experts": node.n_shared_experts,
        "num_experts_per_tok": node.n_activated_experts,
        "moe_intermediate_size": node.expert_hidden_dim,
        "n_group": node.n_expert_groups if limited else 1,
        "topk_group": node.n_limited_groups if limited else 1,
        "routed_scaling_factor": node.route_scale,
    }


def exported_modules(model: ModelSpec) -> range:
    """Indices of the modules that DeepSeek's names can hold: sequential ones with routed experts."""
    node = model.objective
    named = isinstance(node, MultiToken) and node.arrangement == "sequential"
    routed = isinstance(model.attention, LatentAttention) and isinstance(model.feed_forward, RoutedExperts)
    return range(node.mtp_depth) if isinstance(node, MultiToken) and named and routed else range(0)
