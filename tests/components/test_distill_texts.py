"""The texts that ship: whole, small, and what their manifests say of their teachers."""

from __future__ import annotations

import hashlib

import pytest

from ablate.components.distill.text import (
    TEXT,
    folder_of,
    held_out_texts,
    read_manifest,
    read_text,
    ready_made,
    training_texts,
)
from ablate.components.variants import Variant
from ablate.presets import preset
from ablate.spec.decoding import canonical, encode
from ablate.teachers.default import default_run

NANO = preset("nano")


class TestReadyMade:
    @pytest.mark.parametrize("name", ready_made())
    def test_it_is_small_whole_and_made_by_the_program(self, name: str) -> None:

        found = read_manifest(name)
        assert sum((folder_of(each) / TEXT).stat().st_size for each in ready_made()) < 2_000_000
        documents = read_text(name)
        assert len(documents) == found.n_kept
        assert sum(len(d.text.encode()) for d in documents) == found.n_bytes
        assert found.n_prompts == found.n_kept + sum(found.dropped.values())
        assert found.teacher["kind"] == ("checkpoint" if name == "stdlib-self-taught" else "smollm2-135m")
        assert found.writing_flops == pytest.approx(found.flops_per_token * found.n_forward_tokens)
        assert training_texts(name)
        assert held_out_texts(name)

    @pytest.mark.skipif("stdlib" not in ready_made(), reason="not written yet")
    def test_a_real_teachers_text_says_what_it_took(self) -> None:
        found = read_manifest("stdlib")
        assert found.teacher["licence"] == "Apache-2.0"
        assert found.teacher["training_flops"] == pytest.approx(1.6e21, rel=0.01)
        assert sum(found.n_prompts_by_kind.values()) == found.n_prompts
        assert sum(found.n_kept_by_kind.values()) == found.n_kept
        assert found.held_out_bits_per_byte
        assert found.held_out_hash
        assert "trained on 2.00 T tokens of text from elsewhere with 1.61 ZFLOP, charged to no run" in str(
            Variant.full(NANO).resolve(NANO).data.text.facts()
        )

    def test_its_teacher_is_the_run_that_can_be_repeated(self) -> None:
        found = read_manifest("stdlib-self-taught")
        then, again = found.teacher["spec"], default_run(found.corpus_hash, vocab_size=2048)
        # Written by version 1, whose specification had the norm and the optimizer in other fields.
        sizes = ("dim", "n_layers", "vocab_size", "n_first_layers", "rope_theta")
        assert [then["model"][name] for name in sizes] == [getattr(again.model, name) for name in sizes]
        assert then["model"]["norm_eps"] == again.model.norm.eps
        assert then["trainer"]["weight_decay"] == again.trainer.optimizer.weight_decay  # type: ignore[attr-defined]
        trainer = encode(again.trainer)
        assert {k: v for k, v in then["trainer"].items() if k in trainer} == {
            k: v for k, v in trainer.items() if k in then["trainer"]
        }
        cost = again.model.cost(again.trainer.sequence_length)
        assert found.teacher["parameters"] == cost.main.parameters
        assert found.teacher["training_flops"] == again.n_tokens * cost.training_flops_per_token
        digest = hashlib.sha256(canonical(found.teacher["spec"]).encode()).hexdigest()
        assert digest[:16] == found.teacher["run_id"]
