"""A trained model as a folder that `transformers` loads: DeepseekV3ForCausalLM or LlamaForCausalLM, logits equal."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.data.tokenizer import END_OF_TEXT, END_OF_TEXT_ID
from ablate.documents import read_document
from ablate.export.config import SPECIAL_IDS, hf_config
from ablate.export.weights import hf_weights
from ablate.spec.model import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


def export_hf(
    model: ModelSpec, state_dict: Mapping[str, Tensor], tokenizer_json: Path, out: Path, sequence_length: int
) -> list[str]:
    """Write config.json, model.safetensors and the tokenizer into the new folder `out`.

    `state_dict`: a Transformer's, in the dtype to be written (FP8 runs keep master weights in float32).
    Returns sentences about what could not be taken along. ValueError, and nothing written, where `transformers`
    has no class with equal logits or `out` is in use.
    """
    from safetensors.torch import save_file

    config = hf_config(model, sequence_length)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; choose another place for the export")
    weights, notes = hf_weights(model, state_dict)
    config["dtype"] = str(weights["lm_head.weight"].dtype).removeprefix("torch.")
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        files = {"config": config, "generation_config": SPECIAL_IDS | {"pad_token_id": END_OF_TEXT_ID}}
        files["tokenizer_config"] = tokenizer_config(sequence_length)
        for name, content in files.items():
            (partial / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _copy_tokenizer(tokenizer_json, partial / "tokenizer.json", model.vocab_size)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes


def tokenizer_config(sequence_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": sequence_length,
    }


def _copy_tokenizer(source: Path, target: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer

    cure = "give the study's command again: it writes it anew"
    text = json.dumps(read_document(source, "the tokenizer", cure), ensure_ascii=False, indent=2)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"cannot read the tokenizer {source}: {error}; {cure}") from None
    if tokenizer.get_vocab_size() != vocab_size or tokenizer.token_to_id(END_OF_TEXT) != END_OF_TEXT_ID:
        raise ValueError(
            f"{source} has {tokenizer.get_vocab_size()} tokens and the model {vocab_size}, or token {END_OF_TEXT_ID} "
            f"is not {END_OF_TEXT}; give the tokenizer that the run was trained with"
        )
    target.write_text(text, encoding="utf-8")
