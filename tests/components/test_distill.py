"""Distillation: teacher windows take their slots and no others, soft targets, teachers, and what a run may refuse."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_checkpoint import write_weights
from torch.nn import functional as F

from ablate.components.codec import decode_run
from ablate.components.component import ON
from ablate.components.distill import COMPONENT
from ablate.components.distill.batches import (
    SoftTargetBatches,
    TeacherTextBatches,
    soft_target_loss,
    soft_targets,
    teacher_indices,
    teacher_slots,
)
from ablate.components.distill.spec import RawText, Settings, TeacherLogits, TeacherText, further_held_out
from ablate.components.distill.text import (
    HELD_OUT_SHARE,
    TEXT,
    Manifest,
    TeacherDocument,
    compress,
    held_out_hash,
    held_out_texts,
    is_held_out,
    read_manifest,
    read_text,
    training_texts,
    write_text,
    written_for,
)
from ablate.components.variants import Variant
from ablate.data.corpus import Corpus
from ablate.data.prepare import prepare
from ablate.model.transformer import build
from ablate.model.weights import read_weights
from ablate.presets import preset
from ablate.runs.record import pairing_fault
from ablate.runs.study import unavailable
from ablate.spec.decoding import run_id
from ablate.spec.machine import this_machine
from ablate.spec.run import RunSpec, Spec
from ablate.teachers.load import load_model

NANO = preset("nano")
WORDS = [
    a + b + c for a in ("lo", "to", "ex", "qu", "va") for b in ("ss", "ken", "per", "er") for c in ("", "ia", "um")
]


def paragraph(number: int, n_words: int = 90) -> str:
    draw = np.random.Generator(np.random.Philox(number))
    words = [WORDS[i] for i in draw.integers(0, len(WORDS), n_words)]
    return "".join(word + ("\n" if k % 9 == 8 else " ") for k, word in enumerate(words))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        (folder / f"{number}.txt").write_text(paragraph(number) + f"document {number}\n", encoding="utf-8")
    return prepare(str(folder), vocab_size=NANO.model.vocab_size, cache=tmp_path_factory.mktemp("cache"))


def manifest(text_hash: str, **changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "teacher": {"kind": "test"},
        "corpus_source": "stdlib",
        "corpus_hash": "",
        "temperature": 0.8,
        "seed": 0,
        "prompt_tokens": 8,
        "max_tokens": 8,
        "filters": {},
        "n_prompts": 1,
        "prompts_hash": "",
        "n_kept": 1,
        "dropped": {},
        "n_tokens": 100,
        "n_bytes": 1000,
        "n_forward_tokens": 200,
        "flops_per_token": 5.0,
        "writing_flops": 1000.0,
        "text_hash": text_hash,
        "made_on": "2026-01-01",
        "made_with": {},
    }
    return Manifest(**facts | changes)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's text of 60 documents whose words do not occur in the corpus."""
    out = tmp_path_factory.mktemp("teacher") / "text"
    documents = [TeacherDocument(document=f"{i}.txt", text=paragraph(i).upper()) for i in range(60)]
    compressed, text_hash = compress(documents)
    write_text(out, compressed, manifest(text_hash))
    return out


def run_of(node: Any, corpus: Corpus, seed: int = 3) -> RunSpec:
    spec = Variant.none().resolve(NANO).for_machine(this_machine())
    return RunSpec(
        model=spec.model,
        text=node,
        trainer=spec.trainer,
        corpus_hash=corpus.hash,
        seed=seed,
        n_steps=50,
        n_warmup_steps=spec.trainer.warmup_steps(50),
    )


def teacher_node(text: Path, share: float) -> TeacherText:
    return TeacherText(share=share, temperature=0.8, text=str(text), text_hash=read_manifest(str(text)).text_hash)


def settings(folder: Path, **changes: Any) -> Settings:
    return replace(Settings(share=0.3, text=str(folder), temperature=0.8), **changes)


def nano_with(chosen: Settings) -> Spec:
    preset_with = replace(NANO, settings={**NANO.settings, "distill": chosen})
    return Variant.none().resolve(preset_with)


class TestMixing:
    def test_slots_are_a_pure_function_and_the_share_is_right(self) -> None:
        place = {"seed": 5, "batch_size": 64}
        taken = np.stack([teacher_slots(**place, step=step, share=0.2) for step in range(400)])
        again = np.stack([teacher_slots(**place, step=step, share=0.2) for step in reversed(range(400))])[::-1]
        assert (taken == again).all()
        # Five standard deviations of a binomial share.
        assert abs(taken.mean() - 0.2) < 5 * (0.2 * 0.8 / taken.size) ** 0.5
        assert abs(taken.mean(0) - 0.2).max() < 5 * (0.2 * 0.8 / 400) ** 0.5, "no slot is preferred"
        other = np.stack([teacher_slots(seed=6, batch_size=64, step=step, share=0.2) for step in range(400)])
        assert (taken != other).any()
        assert (taken[0] != taken[1]).any()

    def test_a_larger_share_adds_slots(self) -> None:
        for step in range(50):
            some, more = (teacher_slots(seed=0, step=step, batch_size=32, share=share) for share in (0.2, 0.6))
            assert (more | ~some).all()

    def test_ends_of_the_share(self) -> None:
        assert not any(teacher_slots(seed=0, step=s, batch_size=64, share=0.0).any() for s in range(50))
        assert all(teacher_slots(seed=0, step=s, batch_size=64, share=1.0).all() for s in range(50))

    def test_other_slots_are_the_raw_variants_in_the_same_place(self, corpus: Corpus, text: Path) -> None:
        raw = RawText().datamodule(run_of(RawText(), corpus), corpus, load_model)
        node = teacher_node(text, 0.3)
        mixed = node.datamodule(run_of(node, corpus), corpus, load_model)
        assert isinstance(mixed, TeacherTextBatches)
        teacher_windows = {row.tobytes() for row in mixed.teacher_windows[:]}
        n_taken = 0
        for step in range(50):
            taken = teacher_slots(seed=3, step=step, batch_size=4, share=0.3)
            windows, before = mixed.read(step), raw.read(step)
            assert (windows[~taken] == before[~taken]).all()
            assert all(row.tobytes() in teacher_windows for row in windows[taken])
            assert (windows == mixed.read(step)).all()
            n_taken += taken.sum()
        assert n_taken > 20
        assert not teacher_windows & {row.tobytes() for row in raw.windows[:]}

    def test_no_share_is_the_raw_variant_and_a_whole_one_is_all_teacher(self, corpus: Corpus, text: Path) -> None:
        raw = RawText().datamodule(run_of(RawText(), corpus), corpus, load_model)
        none, whole = (
            node.datamodule(run_of(node, corpus), corpus, load_model)
            for node in (teacher_node(text, s) for s in (0, 1))
        )
        n = len(whole.teacher_windows)
        for step in range(30):
            assert (none.read(step) == raw.read(step)).all()
            indices = teacher_indices(n_windows=n, seed=3, step=step, batch_size=4)
            assert (whole.read(step) == whole.teacher_windows[indices]).all()

    def test_teacher_order_visits_every_window_and_is_not_the_raw_order(self, corpus: Corpus) -> None:
        from ablate.data.windows import batch_indices

        steps = [teacher_indices(n_windows=20, seed=3, step=s, batch_size=4) for s in range(5)]
        assert sorted(np.concatenate(steps)) == list(range(20))
        assert any((batch_indices(n_windows=20, seed=3, step=s, batch_size=4) != steps[s]).any() for s in range(5))


class TestText:
    def test_split_by_the_prompts_document(self, text: Path) -> None:
        trained, held_out = training_texts(str(text)), held_out_texts(str(text))
        assert trained
        assert held_out
        assert not set(trained) & set(held_out)
        assert len(trained) + len(held_out) == len(read_text(str(text)))
        share = np.mean([is_held_out(f"document {i}") for i in range(4000)])
        assert abs(share - HELD_OUT_SHARE) < 5 * (HELD_OUT_SHARE / 4000) ** 0.5

    def test_a_text_without_held_out_documents_is_refused(self, tmp_path: Path) -> None:
        name = next(f"{i}.txt" for i in range(99) if not is_held_out(f"{i}.txt"))
        compressed, text_hash = compress([TeacherDocument(document=name, text=paragraph(1))])
        write_text(tmp_path / "text", compressed, manifest(text_hash))
        for part in (training_texts, held_out_texts):
            with pytest.raises(ValueError, match=r"0 are held out .* but both kinds are needed"):
                part(str(tmp_path / "text"))

    def test_equal_documents_give_equal_bytes(self) -> None:
        documents = [TeacherDocument(document="a", text="x\n" * 100)]
        assert compress(documents) == compress(list(documents))

    def copy(self, text: Path, tmp_path: Path) -> Path:
        out = tmp_path / "copy"
        out.mkdir()
        for part in text.iterdir():
            (out / part.name).write_bytes(part.read_bytes())
        return out

    def test_another_text_under_the_same_manifest_is_refused(self, text: Path, tmp_path: Path) -> None:
        copy = self.copy(text, tmp_path)
        compressed, _ = compress([TeacherDocument(document="a", text="held-out text, smuggled in")])
        (copy / TEXT).write_bytes(compressed)
        with pytest.raises(ValueError, match=r"is not the one its manifest describes.*write it again"):
            training_texts(str(copy))

    def test_a_torn_text_is_refused(self, text: Path, tmp_path: Path) -> None:
        copy = self.copy(text, tmp_path)
        (copy / TEXT).write_bytes((copy / TEXT).read_bytes()[:-20])
        with pytest.raises(ValueError, match="cannot be read"):
            training_texts(str(copy))

    def test_an_altered_manifest_is_refused(self, text: Path, tmp_path: Path) -> None:
        copy = self.copy(text, tmp_path)
        path = copy / "manifest.json"
        path.write_text(path.read_text().replace('"temperature": 0.8', '"temperature": 0.9'))
        with pytest.raises(ValueError, match="damaged, altered"):
            read_manifest(str(copy))

    def test_a_run_planned_with_another_text_is_refused(self, corpus: Corpus, text: Path) -> None:
        node = replace(teacher_node(text, 0.5), text_hash="0" * 64)
        with pytest.raises(ValueError, match="planned with another teacher text"):
            node.datamodule(run_of(node, corpus), corpus, load_model)

    def test_charged_flops(self, text: Path) -> None:
        node = teacher_node(text, 0.5)
        assert node.charged_flops_per_token(4.0) == 0
        # 1,000 FLOPs for 1,000 bytes are one a byte: four a token, for half of the tokens.
        assert replace(node, charge_teacher=True).charged_flops_per_token(4.0) == 2.0


class TestSwitch:
    def test_on_names_the_text_by_content(self, text: Path) -> None:
        spec = nano_with(settings(text))
        node: Any = COMPONENT.on(spec).data.text
        assert node == replace(teacher_node(text, 0.3))
        assert COMPONENT.on(COMPONENT.on(spec)) == COMPONENT.on(spec)
        assert COMPONENT.off(COMPONENT.on(spec), "raw") == spec
        assert spec.data.text == RawText()

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"text": "nowhere"}, "there is no teacher text 'nowhere'.*dsv3-ablate distill"),
            ({"temperature": 1.0}, "written at 0.8"),
        ],
    )
    def test_on_refuses(self, text: Path, changes: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            COMPONENT.on(nano_with(settings(text, **changes)))

    def test_on_refuses_another_corpus(self, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = nano_with(settings(text))
        monkeypatch.chdir(tmp_path)
        of_mine = replace(spec, data=replace(spec.data, source="mine"))
        with pytest.raises(ValueError, match="'mine' is neither a file nor a folder"):
            COMPONENT.on(of_mine)
        (tmp_path / "mine").write_text("a text")
        with pytest.raises(ValueError, match="continues documents of stdlib, and this corpus is mine"):
            COMPONENT.on(of_mine)

    def test_self_taught_is_the_text_of_the_other_teacher(self, text: Path) -> None:
        spec = COMPONENT.off(nano_with(settings(text, self_taught="stdlib-self-taught")), "self-taught")
        node: Any = spec.data.text
        assert (node.text, node.share, node.temperature) == ("stdlib-self-taught", 0.3, 0.8)
        with pytest.raises(ValueError, match=r"distill=self-taught needs a text .*distill.self_taught names none"):
            COMPONENT.off(nano_with(settings(text)), "self-taught")
        with_own = nano_with(settings(text, self_taught="stdlib-self-taught"))
        with pytest.raises(ValueError, match=r"distill=self-taught needs a text"):
            COMPONENT.off(replace(with_own, data=replace(with_own.data, source="mine")), "self-taught")

    def test_the_text_written_for_another_corpus_stands_in(
        self, corpus: Corpus, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Found by its source, whatever temperature the preset names; and not beside other held-out text."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        chosen, source = settings(text, temperature=0.1), corpus.source
        spec = nano_with(chosen)
        spec = replace(spec, data=replace(spec.data, source=source))
        assert unavailable(source, "nano") == ("distill",)
        compressed, text_hash = compress(read_text(str(text)))
        facts = {"corpus_source": source, "temperature": 0.6, "held_out_hash": held_out_hash(corpus)}
        write_text(written_for(source), compressed, manifest(text_hash, **facts))
        assert unavailable(source, "nano") == ()
        monkeypatch.chdir(Path(source).parent)
        assert written_for(Path(source).name) == written_for(source), "as whatever path the source is named"
        node: Any = COMPONENT.on(spec).data.text
        assert (node.text, node.temperature) == (str(written_for(source)), 0.6)
        assert further_held_out(spec, corpus) == held_out_texts(str(text))
        shutil.rmtree(written_for(source))
        write_text(written_for(source), compressed, manifest(text_hash, **facts | {"held_out_hash": "0" * 64}))
        with pytest.raises(ValueError, match=r"has other held-out text than when the teacher text .*may overlap"):
            further_held_out(spec, corpus)

    @pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
    def test_impossible_shares(self, text: Path, share: float) -> None:
        with pytest.raises(ValueError, match=r"distill\.share is .*; it must be above 0 and at most 1"):
            settings(text, share=share)

    def test_logits_refuses_without_a_teacher_and_with_another_vocabulary(self, text: Path, tmp_path: Path) -> None:
        variant = Variant.full(NANO) | {"distill": "logits"}
        with pytest.raises(ValueError, match=r"needs a teacher model.*distill\.teacher"):
            variant.resolve(NANO)
        model = replace(Variant.none().resolve(NANO).model, vocab_size=400)
        weights = write_weights(tmp_path / "weights", model=model)
        with_teacher = {**NANO.settings, "distill": settings(text, teacher=str(weights))}
        with pytest.raises(ValueError, match="vocabulary of 400 tokens"):
            variant.resolve(replace(NANO, settings=with_teacher))
        assert variant["mla"] == ON


class TestSoftTargets:
    logits = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    teacher = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2

    def batch(self, temperature: float, n: int) -> dict[str, Any]:
        return soft_targets(self.teacher, temperature, n)

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_all_tokens_are_the_divergence(self, temperature: float) -> None:
        found = soft_target_loss(self.logits, self.batch(temperature, 30), temperature)
        expected = F.kl_div(
            (self.logits / temperature).log_softmax(-1),
            (self.teacher / temperature).log_softmax(-1),
            log_target=True,
            reduction="none",
        ).sum(-1)
        assert float(found) == pytest.approx(temperature**2 * float(expected.mean()), rel=1e-5)

    def test_fewer_tokens_are_a_bound_from_below_that_an_equal_model_meets(self) -> None:
        losses = [float(soft_target_loss(self.logits, self.batch(1.0, n), 1.0)) for n in (1, 4, 16, 29, 30)]
        assert all(more > (1 - 1e-6) * fewer for fewer, more in pairwise(losses))
        assert losses[0] > 0
        assert losses[-2] == pytest.approx(losses[-1], rel=1e-5)
        for n in (1, 4, 30, 64):
            assert float(soft_target_loss(self.teacher, self.batch(1.0, n), 1.0)) == pytest.approx(0, abs=1e-6)

    def test_descent_finds_the_teacher(self) -> None:
        logits = self.logits.clone().requires_grad_()
        batch = self.batch(1.0, 8)
        for _ in range(300):
            (gradient,) = torch.autograd.grad(soft_target_loss(logits, batch, 1.0), logits)
            logits = (logits - 20 * gradient).detach().requires_grad_()
        probability = logits.softmax(-1).gather(-1, batch["soft_ids_BTK"])
        assert torch.allclose(probability, batch["soft_logp_BTK"].exp().double(), atol=1e-2)

    def test_a_certain_teacher_gives_finite_gradients(self) -> None:
        logits = self.logits.clone().requires_grad_()
        loss = soft_target_loss(logits, soft_targets(self.teacher * 1e4, 1.0, 4), 1.0)
        loss.backward()
        assert torch.isfinite(loss)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()

    @pytest.mark.parametrize("of_teacher", [0.3, 1e-9])
    def test_the_rest_of_a_distribution_is_exact_however_small(self, of_teacher: float) -> None:
        """Model: its first token e^40 times the likeliest other. Teacher: a share `of_teacher` on other tokens."""
        logits = torch.zeros(1, 1, 30)
        logits[..., 0] = 40.0
        teacher = torch.full((1, 1, 30), of_teacher / 29, dtype=torch.float64).log()
        teacher[..., 0] = math.log1p(-of_teacher)
        given = logits.requires_grad_()
        loss = soft_target_loss(given, soft_targets(teacher, 1.0, 1), 1.0)
        (gradient,) = torch.autograd.grad(loss, given)
        rest = math.log(29) - 40
        expected = of_teacher * (math.log(of_teacher) - rest) + (1 - of_teacher) * math.log1p(-of_teacher)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4, abs=2e-9)
        assert float(gradient[0, 0, 5]) == pytest.approx(-of_teacher / 29, rel=1e-2)

    def test_the_batch_carries_the_teachers_distribution(self, corpus: Corpus, tmp_path: Path) -> None:
        weights = write_weights(tmp_path / "weights", corpus_hash=corpus.hash)
        node = logits_node(weights)
        data = node.datamodule(run_of(node, corpus), corpus, load_model)
        assert isinstance(data, SoftTargetBatches)
        raw = RawText().datamodule(run_of(RawText(), corpus), corpus, load_model)
        assert (data.read(7) == raw.read(7)).all(), "the text itself is the raw variant's"
        batch = data.on_after_batch_transfer(data.batch(data.read(0)), 0)
        inputs = batch["window_BT1"][:, :-1]
        teacher = build(Variant.none().resolve(NANO).model, 0)
        expected = teacher(inputs).log_softmax(-1)
        assert torch.allclose(expected.gather(-1, batch["soft_ids_BTK"]), batch["soft_logp_BTK"], atol=1e-6)
        assert not batch["soft_logp_BTK"].requires_grad
        logits, plain = torch.randn(4, 32, 320), torch.tensor(5.0)
        mixed = node.loss(plain, logits, batch)
        assert float(mixed) == pytest.approx(0.75 * 5.0 + 0.25 * float(soft_target_loss(logits, batch, 1.0)), rel=1e-5)
        assert RawText().loss(plain, logits, batch) is plain

    def test_a_teacher_of_another_corpus_or_other_weights_is_refused(self, corpus: Corpus, tmp_path: Path) -> None:
        foreign = logits_node(write_weights(tmp_path / "foreign", corpus_hash="another"))
        with pytest.raises(ValueError, match="trained on another corpus"):
            foreign.datamodule(run_of(foreign, corpus), corpus, load_model)
        changed = replace(foreign, teacher_hash="0" * 64)
        with pytest.raises(ValueError, match="planned with another teacher"):
            changed.datamodule(run_of(changed, corpus), corpus, load_model)


def logits_node(weights: Path) -> TeacherLogits:
    return TeacherLogits(
        teacher=str(weights),
        teacher_hash=read_weights(weights).hash,
        weight=0.25,
        temperature=1.0,
        n_soft_tokens=16,
    )


def test_runs_train_on_every_node_and_no_share_is_the_raw_run(corpus: Corpus, text: Path, tmp_path: Path) -> None:
    from ablate.runs.execute import execute
    from ablate.runs.job import Job
    from ablate.runs.store import Store

    store = Store(tmp_path / "study")
    store.create()
    weights = write_weights(tmp_path / "weights", corpus_hash=corpus.hash, seed=9)
    nodes = [RawText(), teacher_node(text, 0), teacher_node(text, 1), logits_node(weights)]
    records = []
    for node in nodes:
        run = replace(run_of(node, corpus), n_steps=3)
        record = execute(
            Job(run=run, run_id=run_id(run), variant={}, corpus=corpus, keep_weights=False), store, lambda *_: None
        )
        assert record is not None
        assert record.status == "finished"
        records.append(record)
    raw, none, whole, soft = (record.final_parameters_hash for record in records)
    assert raw == none
    assert len({raw, whole, soft}) == 3
    assert not pairing_fault(records[0], records[2]), "the raw order is what pairs them"


class TestWeights:
    def test_a_finished_runs_weights_are_a_teachers(self, tmp_path: Path) -> None:
        weights = read_weights(write_weights(tmp_path / "weights", corpus_hash="c", seed=4))
        run = decode_run(weights.manifest.run)
        loaded, model = load_model(weights.folder), build(run.model, 4)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
        assert not any(p.requires_grad for p in loaded.parameters())
        cost = run.model.cost(run.trainer.sequence_length)
        facts = weights.manifest
        assert (facts.corpus_hash, facts.vocab_size, facts.run_id) == ("c", run.model.vocab_size, run_id(run))
        assert facts.training_flops == run.n_tokens * cost.training_flops_per_token

    @pytest.mark.parametrize("part", ["tensors.safetensors", "manifest.json"])
    def test_torn_ones_are_refused(self, tmp_path: Path, part: str) -> None:
        weights = write_weights(tmp_path / "weights")
        (weights / part).write_bytes((weights / part).read_bytes()[:-9])
        with pytest.raises(ValueError, match="are torn"):
            read_weights(weights)

    def test_a_folder_without_them_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"holds no weights.*folder `weights` of a finished run"):
            read_weights(tmp_path)
