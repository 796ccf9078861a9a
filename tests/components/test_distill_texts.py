"""The texts that ship: whole, small, and what their manifests say of their teachers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ablate.components.distill.text import (
    TEXT,
    folder_of,
    held_out_texts,
    read_manifest,
    read_text,
    ready_made,
    training_texts,
    written_for,
)
from ablate.components.variants import Variant
from ablate.presets import preset
from ablate.randomness import uniform
from ablate.runs.study import Study, unavailable
from ablate.spec.decoding import canonical, encode
from ablate.sweep.distill import Request, distill
from ablate.teachers.default import default_run
from ablate.teachers.teacher import Completion, Prompt

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


class Writer:
    """A teacher in the place of the real one."""

    answers, flops_per_token = True, 2.0

    def __init__(self) -> None:
        self.seen: list[Prompt] = []

    def describe(self) -> dict[str, Any]:
        return {"kind": "fake", "model": "some model", "training_flops": 1e21, "training_tokens": 2e12}

    def complete(self, prompts: Sequence[Prompt], **options: Any) -> list[Completion]:
        first = len(self.seen)
        self.seen += prompts
        return [Completion(text=essay(n, 9), n_forward_tokens=7, ended=True) for n in range(first, len(self.seen))]


def essay(number: int, n_sentences: int) -> str:
    words = uniform(f"words of essay {number}", 8 * n_sentences) * 20_000
    named = [f"word{int(word)}" for word in words]
    return "\n\n".join(f"Some {' '.join(named[i : i + 8])} here." for i in range(0, len(named), 8)) + "\n"


def test_a_users_own_corpus_is_written_for_and_then_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    teacher, folder = Writer(), tmp_path / "texts"
    monkeypatch.setattr("ablate.teachers.smollm2.load_smollm2", lambda: teacher)
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.md").write_text(
            f"# Essay number {number}\n\n{essay(10_000 + number, 20)}", encoding="utf-8"
        )
    assert unavailable(str(folder), "nano") == ("distill",)
    said: list[str] = []
    written = distill(Request(preset="nano", source=str(folder), teacher="smollm2-135m", n_tokens=20_000), said.append)
    assert written.folder == written_for(str(folder))
    assert unavailable(str(folder), "nano") == ()
    assert set(written.manifest.n_prompts_by_kind) == {"sentence", "explain", "exercise"}
    assert all(prompt.asks == prompt.text.startswith(("Explain", "Write")) for prompt in teacher.seen)
    assert any("1.00 ZFLOP to train the teacher" in line for line in said)
    with pytest.raises(ValueError, match="exists already"):
        distill(Request(preset="nano", source=str(folder), teacher="smollm2-135m"), said.append)
    study = Study(question="", preset="nano", data=str(folder), enable=("distill",))
    node: Any = Variant.full(study.load_preset()).resolve(study.load_preset()).data.text
    assert node.text == str(written.folder)
    assert node.facts()["teacher_has_seen"] == (
        "by some model, trained on 2.00 T tokens of text from elsewhere with 1.00 ZFLOP, charged to no run"
    )
