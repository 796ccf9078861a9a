"""Architectures that `account --model` prices, against transformers' own models of the published sizes on `meta`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4MoeConfig,
    OlmoeConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from ablate.presets import preset_file
from ablate.presets.account import PUBLISHED, account_model, account_preset, render

COMMON = {"max_position_embeddings": 8192}


def sizes(dim: int, layers: int, heads: int, kv: int, head_dim: int, hidden: int, vocab: int, **more: Any) -> Any:
    return COMMON | {
        "hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "head_dim": head_dim, "intermediate_size": hidden, "vocab_size": vocab, "tie_word_embeddings": False,
    } | more  # fmt: skip


def experts(n: int, active: int, hidden: int) -> dict[str, int]:
    return {"num_experts": n, "num_experts_per_tok": active, "moe_intermediate_size": hidden}


GLM = {"n_routed_experts": 160, "num_experts_per_tok": 8, "n_shared_experts": 1, "attention_bias": True}
TIED = {"tie_word_embeddings": True}
CONFIGS = {
    "qwen3-0.6b": Qwen3Config(**sizes(1024, 28, 16, 8, 128, 3072, 151936, **TIED)),
    "qwen3-8b": Qwen3Config(**sizes(4096, 36, 32, 8, 128, 12288, 151936)),
    "qwen3-30b-a3b": Qwen3MoeConfig(**sizes(2048, 48, 32, 4, 128, 6144, 151936, **experts(128, 8, 768))),
    "qwen2.5-0.5b": Qwen2Config(**sizes(896, 24, 14, 2, 64, 4864, 151936, **TIED)),
    "qwen2.5-7b": Qwen2Config(**sizes(3584, 28, 28, 4, 128, 18944, 152064)),
    "glm-4.5": Glm4MoeConfig(
        **sizes(5120, 92, 96, 8, 128, 12288, 151552, use_qk_norm=True, **GLM),
        first_k_dense_replace=3,
        moe_intermediate_size=1536,
    ),
    "glm-4.5-air": Glm4MoeConfig(
        **sizes(4096, 46, 96, 8, 128, 10944, 151552, use_qk_norm=False, **GLM | {"n_routed_experts": 128}),
        first_k_dense_replace=1,
        moe_intermediate_size=1408,
    ),
    "olmoe-1b-7b": OlmoeConfig(**sizes(2048, 16, 16, 16, 128, 1024, 50304, num_experts=64, num_experts_per_tok=8)),
    "gemma2-9b": Gemma2Config(**sizes(3584, 42, 16, 8, 256, 14336, 256000, sliding_window=4096, **TIED)),
    "gemma3-4b": Gemma3TextConfig(**sizes(2560, 34, 8, 4, 256, 10240, 262208, sliding_window=1024, **TIED)),
}


def counted(config: Any) -> tuple[int, int]:
    """Parameters in all, and of what one token activates: of the routed experts its share."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    named = dict(model.named_parameters())
    routed = sum(p.numel() for name, p in named.items() if ".experts." in name)
    n_experts = getattr(config, "num_experts", None) or getattr(config, "n_routed_experts", 1)
    total = sum(p.numel() for p in named.values())
    return total, total - routed + routed * getattr(config, "num_experts_per_tok", 1) // n_experts


def test_every_published_architecture_is_compared() -> None:
    assert {path.stem for path in PUBLISHED.iterdir()} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_transformers(name: str) -> None:
    found, config = account_model(Path(name), None), CONFIGS[name]
    assert (found["total_parameters"], found["activated_parameters"]) == counted(config)
    embedding = config.vocab_size * config.hidden_size
    assert found["activated_without_embedding"] == found["activated_parameters"] - embedding


def test_interleaved_dense_and_routed_layers(tmp_path: Path) -> None:
    text = (PUBLISHED / "qwen3-30b-a3b.toml").read_text().replace("count = 48", "count = 24")
    dense = re.sub("feed_forward.*", 'feed_forward = { kind = "swiglu", hidden_dim = 6144 }', text)
    (tmp_path / "mixed.toml").write_text(text + dense[dense.index("[[layers]]") :])
    config = Qwen3MoeConfig(
        **sizes(2048, 48, 32, 4, 128, 6144, 151936, **experts(128, 8, 768)), mlp_only_layers=list(range(0, 48, 2))
    )
    found = account_model(tmp_path / "mixed.toml", None)
    assert (found["total_parameters"], found["activated_parameters"]) == counted(config)


@pytest.mark.parametrize("length", [1, 3, 5, 9])
def test_a_window_leaves_the_pairs_that_a_mask_leaves(length: int, tmp_path: Path) -> None:
    """One layer of one head of 2 channels: 8 FLOPs a pair, 4 elements of cache a token that is kept."""
    layer = 'count = 1\nattention = { kind = "gqa", n_heads = 1, n_kv_heads = 1, head_dim = 2 }\n'
    layer += 'feed_forward = { kind = "swiglu", hidden_dim = 1 }\n'
    figures = {}
    for name, window in (("all", ""), ("window", "sliding_window = 3\n")):
        (tmp_path / f"{name}.toml").write_text(f"dim = 2\nvocab_size = 1\n[[layers]]\n{layer}{window}")
        figures[name] = account_model(tmp_path / f"{name}.toml", length)
    mask = torch.ones(length, length).tril()
    seen = {"all": float(mask.sum()), "window": float((mask - torch.ones(length, length).tril(-3)).sum())}
    saved = figures["all"]["forward_flops_per_token"] - figures["window"]["forward_flops_per_token"]
    assert saved == round(8 * (seen["all"] - seen["window"]) / length)
    assert figures["window"]["kv_cache_elements_per_token"] == round(4 * min(3, length) / length)


def test_what_can_only_be_priced_is_not_trained() -> None:
    with pytest.raises(
        ValueError, match="qwen3-8b has groups of layers: `account --model` prices it and nothing trains it"
    ):
        preset_file(PUBLISHED / "qwen3-8b.toml")


def test_what_is_wrong_in_a_group_of_layers_is_told(tmp_path: Path) -> None:
    path, text = tmp_path / "wrong.toml", (PUBLISHED / "qwen3-8b.toml").read_text()
    for old, new, sentence in (
        ("count = 36", "count = 0", r"layers\.0\.count is 0; it must be at least 1"),
        ('qk_norm = "head"', 'qk_norms = "head"', r"layers\.0\.qk_norms is unknown"),
        ("n_heads = 32", "n_heads = 0", r"layers\.0\.attention\.n_heads is 0"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=sentence):
            account_model(path, None)
    with pytest.raises(ValueError, match=r"cannot read the model qwen4.*a published one: .*qwen3-8b"):
        account_model(Path("qwen4"), None)


def test_activated_parameters_are_given_as_deepseek_counts_them_too() -> None:
    """DeepSeek-V2-Lite: 2.4 B published (arXiv:2405.04434, appendix B), 2.66 B with the table of the embedding."""
    figures = account_preset("v2-lite-16b", ["mtp"], [], {}, None)
    assert round(figures["activated_parameters"] / 1e9, 2) == 2.66
    assert round(figures["activated_without_embedding"] / 1e9, 2) == 2.45
    assert "2,451,435,008 of these without the embedding, as DeepSeek counts" in render(figures)
