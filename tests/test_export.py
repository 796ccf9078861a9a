"""Exported weights in transformers' own classes: an oracle for latent attention, experts and modules ahead."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from variants import FULL, NANO, spec_of, tokens, with_ordinary_products

from ablate.components.variants import Variant
from ablate.data.tokenizer import train_tokenizer
from ablate.export import export_hf
from ablate.model.transformer import Transformer, build
from ablate.spec.model import ModelSpec

transformers = pytest.importorskip("transformers")
SEQUENCE = 32


def exportable(model: ModelSpec) -> ModelSpec:
    """With groups of four experts and two activated ones for each group that a token may reach."""
    node: Any = model.feed_forward
    node = replace(node, n_routed_experts=16, n_expert_groups=4, n_limited_groups=2, n_activated_experts=4)
    return replace(model, feed_forward=replace(node, route_scale=2.5))


def variant(**levels: str) -> ModelSpec:
    """In ordinary arithmetic, which is what transformers computes with."""
    return with_ordinary_products(spec_of(FULL | {n.replace("_", "-"): level for n, level in levels.items()}).model)


def compressed_queries_off(model: ModelSpec) -> ModelSpec:
    attention: Any = model.attention
    return replace(model, attention=replace(attention, q_lora_rank=0))


def depth_2(model: ModelSpec) -> ModelSpec:
    objective: Any = model.objective
    return replace(model, objective=replace(objective, mtp_depth=2))


def wider_first_layer(model: ModelSpec) -> ModelSpec:
    dense: Any = model.first_feed_forward
    return replace(model, first_feed_forward=replace(dense, hidden_dim=72))


DENSE_OFF = {"moe": "dense", "aux_free": "sequence-aux", "alltoall": "flat"}
MODELS = {
    "full": exportable(variant()),
    "full, depth 2": depth_2(exportable(variant())),
    "queries not compressed": compressed_queries_off(exportable(variant())),
    "no group limit": variant(moe="unlimited"),
    "no shared expert": exportable(variant(moe="no-shared")),
    "coarse": variant(moe="coarse"),
    "auxiliary loss": exportable(variant(aux_free="sequence-aux", mtp="next-token")),
    "parallel heads": exportable(variant(mtp="parallel-heads")),
    "mla, dense": variant(**DENSE_OFF),
    "mla, first layer wider": wider_first_layer(variant(**DENSE_OFF)),
    "none": spec_of(Variant.none()).model,
    "mha, mtp": variant(mla="mha", **DENSE_OFF),
    "mqa, first layer wider": wider_first_layer(variant(mla="mqa", **DENSE_OFF)),
}


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = "".join(f"the loss of variant {i} falls with the logarithm of compute {i * i}\n" for i in range(400))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_tokenizer([text], vocab_size=NANO.model.vocab_size), encoding="utf-8")
    return path


def random_model(spec: ModelSpec) -> Transformer:
    """Every norm's weight and selection bias is random too, large enough to change what is selected."""
    model = build(spec, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            around = 0.0 if name.endswith("bias_E") else 1.0
            tensor.copy_(around + 0.3 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def load(folder: Path) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32
        )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not [str(w.message) for w in caught if "zero-element" not in str(w.message)]
    return model.eval(), info


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_equal(name: str, tmp_path: Path, tokenizer_json: Path) -> None:
    ours = random_model(MODELS[name])
    export_hf(ours.spec, ours.state_dict(), tokenizer_json, tmp_path / "hf", SEQUENCE)
    theirs, info = load(tmp_path / "hf")
    wanted = "DeepseekV3ForCausalLM" if ours.spec.attention.kind == "mla" else "LlamaForCausalLM"
    assert type(theirs).__name__ == wanted
    last = ours.spec.n_layers
    assert all(int(key.split(".")[2]) >= last for key in info["unexpected_keys"])
    window = tokens(3, SEQUENCE)
    with torch.no_grad():
        torch.testing.assert_close(theirs(window).logits, ours(window), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["full", "none"])
def test_generation_with_the_exported_tokenizer(name: str, tmp_path: Path, tokenizer_json: Path) -> None:
    ours = random_model(MODELS[name])
    export_hf(ours.spec, ours.state_dict(), tokenizer_json, tmp_path / "hf", SEQUENCE)
    theirs, _ = load(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "the loss falls\n"
    inputs = tokenizer(text, return_tensors="pt")
    assert tokenizer.decode(inputs.input_ids[0]) == text
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == 0
    assert len(tokenizer) == ours.spec.vocab_size
    generated = theirs.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
    expected = inputs.input_ids
    with torch.no_grad():
        for _ in range(5):
            expected = torch.cat([expected, ours(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, expected)


@pytest.mark.parametrize("name", ["full", "full, depth 2"])
def test_modules_ahead_have_deepseeks_names(name: str, tmp_path: Path, tokenizer_json: Path) -> None:
    ours = random_model(MODELS[name])
    export_hf(ours.spec, ours.state_dict(), tokenizer_json, tmp_path / "hf", SEQUENCE)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    objective: Any = ours.spec.objective
    assert config["num_nextn_predict_layers"] == objective.mtp_depth
    own = ["embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head", "input_layernorm"]
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        for k in range(objective.mtp_depth):
            layer = f"model.layers.{ours.spec.n_layers + k}"
            assert {f"{layer}.{part}.weight" for part in own} <= names
            assert torch.equal(file.get_tensor(f"{layer}.embed_tokens.weight"), ours.embedding.weight)
            assert torch.equal(file.get_tensor(f"{layer}.shared_head.head.weight"), ours.head.weight)
        assert file.get_tensor("model.layers.1.mlp.gate.e_score_correction_bias").abs().max() > 0


def test_the_module_ahead_computes_what_transformers_does(tmp_path: Path, tokenizer_json: Path) -> None:
    """transformers drafts with these modules; its positions are those of the joined tokens, one further on."""
    layers = pytest.importorskip("transformers.modeling_layers")
    ours = random_model(MODELS["full"])
    export_hf(ours.spec, ours.state_dict(), tokenizer_json, tmp_path / "hf", SEQUENCE)
    theirs, _ = load(tmp_path / "hf")
    # transformers finds such modules by the layer number of the published model alone.
    theirs._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{ours.spec.n_layers}.*"]
    module = layers.MtpModel.from_pretrained(theirs).eval()
    window = tokens(1, 12)
    with torch.no_grad():
        expected = ours.predict(window).future.hidden_BTD[0]
        trunk = theirs.model(window).last_hidden_state
        positions = torch.arange(1, 12)[None]
        got = module.forward_layer(0, trunk[:, :-1], positions, None, input_ids=window[:, 1:])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_what_was_left_out_is_said(tmp_path: Path, tokenizer_json: Path) -> None:
    for name, said in (("full", 0), ("parallel heads", 1), ("mla, dense", 1), ("none", 0), ("mha, mtp", 1)):
        ours = random_model(MODELS[name])
        notes = export_hf(ours.spec, ours.state_dict(), tokenizer_json, tmp_path / name, SEQUENCE)
        assert len(notes) == said, (name, notes)


def test_fp8_runs_export_their_master_weights(tmp_path: Path, tokenizer_json: Path) -> None:
    ordinary = MODELS["full"]
    rounded = replace(ordinary, linear=spec_of(FULL).model.linear)
    assert rounded.linear != ordinary.linear
    ours = random_model(rounded)
    (note,) = export_hf(rounded, ours.state_dict(), tokenizer_json, tmp_path / "rounded", SEQUENCE)
    assert "master weights of fp8" in note
    assert not export_hf(ordinary, random_model(ordinary).state_dict(), tokenizer_json, tmp_path / "same", SEQUENCE)
    a, b = (tmp_path / name / "model.safetensors" for name in ("rounded", "same"))
    assert a.read_bytes() == b.read_bytes()


def test_weights_in_bfloat16_stay_so(tmp_path: Path, tokenizer_json: Path) -> None:
    ours = random_model(MODELS["full"]).to(torch.bfloat16)
    export_hf(ours.spec, ours.state_dict(), tokenizer_json, tmp_path / "hf", SEQUENCE)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        assert file.get_tensor("lm_head.weight").dtype == torch.bfloat16


def refused(spec: ModelSpec, out: Path, tokenizer_json: Path, match: str, **changed: Any) -> None:
    model = build(spec, seed=0)
    with pytest.raises(ValueError, match=match):
        export_hf(spec, model.state_dict() | changed, tokenizer_json, out, SEQUENCE)
    assert not list(out.parent.glob("hf*")), "nothing is written"


def test_what_would_change_the_logits_is_refused(tmp_path: Path, tokenizer_json: Path) -> None:
    out = tmp_path / "hf"
    refused(variant(moe="no-shared"), out, tokenizer_json, "ranked by their best 3 .* moe=unlimited")
    refused(variant(mla="gqa"), out, tokenizer_json, "no class for gqa .* what can be exported: mla with moe")
    refused(
        replace(MODELS["full"], norm=replace(MODELS["full"].norm, eps=1e-5)), out, tokenizer_json, "norm.eps is 1e-05"
    )
    stranger = {"layers.0.attention.q.weight": torch.zeros(1)}
    refused(MODELS["full"], out, tokenizer_json, "belong to no part .*attention.q.weight", **stranger)
    dense = MODELS["none"]
    model = build(dense, seed=0).state_dict()
    del model["layers.1.attention.k.weight"]
    with pytest.raises(ValueError, match=r"no layers\.1\.attention\.k\.weight"):
        export_hf(dense, model, tokenizer_json, out, SEQUENCE)
    larger = Variant.none().resolve(replace(NANO, model=replace(NANO.model, vocab_size=512))).model
    refused(larger, out, tokenizer_json, "has 320 tokens and the model 512")


def test_a_folder_in_use_is_left_alone(tmp_path: Path, tokenizer_json: Path) -> None:
    ours = random_model(MODELS["none"])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        export_hf(ours.spec, ours.state_dict(), tokenizer_json, tmp_path, SEQUENCE)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
