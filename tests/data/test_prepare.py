"""Preparing: one hash for one content, exact bytes, disjoint splits, recovery, and several processes at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_text import paragraph

from ablate.data import prepare as module
from ablate.data import source
from ablate.data.corpus import (
    Corpus,
    held_out_documents,
    inspect,
    load_tokenizer,
    open_corpus,
    token_bytes,
    train_documents,
)
from ablate.data.prepare import encode_documents, prepare
from ablate.data.source import documents, open_source
from ablate.data.windows import Windows
from ablate.spec.machine import cache_folder

VOCAB = 300


@pytest.fixture
def corpus(folder: Path, cache: Path) -> Corpus:
    return prepare(str(folder), vocab_size=VOCAB, cache=cache)


def test_the_same_text_has_the_same_hash_wherever_it_lies(corpus: Corpus, folder: Path, tmp_path: Path):
    moved = folder.rename(tmp_path / "elsewhere")
    again = prepare(str(moved), vocab_size=VOCAB, cache=tmp_path / "other cache")
    assert again.hash == corpus.hash
    assert again.folder.name == again.hash
    assert (again.train.hash, again.held_out.hash) == (corpus.train.hash, corpus.held_out.hash)
    assert again.folder != corpus.folder
    assert again.source == str(moved)


def test_what_changes_the_tokens_changes_the_hash(corpus: Corpus, folder: Path, cache: Path):
    hashes = {corpus.hash, prepare(str(folder), vocab_size=VOCAB + 1, cache=cache).hash}
    hashes.add(prepare(str(folder), vocab_size=VOCAB, cache=cache, held_out_share=0.2).hash)
    hashes.add(prepare(str(folder), vocab_size=VOCAB, cache=cache, max_bytes=10_000).hash)
    (folder / "0.txt").write_text("other\n", encoding="utf-8")
    hashes.add(prepare(str(folder), vocab_size=VOCAB, cache=cache).hash)
    assert len(hashes) == 5


def test_a_second_time_nothing_is_made(corpus: Corpus, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "train_tokenizer", None)
    monkeypatch.setattr(module, "write_token_file", None)
    assert prepare(str(folder), vocab_size=VOCAB, cache=cache) == corpus
    assert open_corpus(corpus.folder) == corpus
    assert not list(cache.glob(".writing-*"))


def test_bytes_of_the_tokens_are_the_bytes_of_the_documents(corpus: Corpus, folder: Path):
    lengths = token_bytes(corpus)
    assert lengths.shape == (VOCAB,)
    assert lengths[0] == 0
    texts = {document.name: document.text for document in documents(open_source(str(folder)))}
    total = 0
    for stream, found in ((corpus.train, train_documents(corpus)), (corpus.held_out, held_out_documents(corpus))):
        ids = stream.read()
        assert len(ids) == stream.tokens
        assert int((ids == 0).sum()) == stream.documents == len(found)
        assert int(lengths[ids].sum()) == stream.bytes == sum(len(document.text.encode()) for document in found)
        assert all(texts[document.name] == document.text for document in found)
        total += stream.bytes
    assert total == sum(len(text.encode()) for text in texts.values())


def test_held_out_text_never_trains(corpus: Corpus):
    train = {document.text for document in train_documents(corpus)}
    held_out = {document.text for document in held_out_documents(corpus)}
    assert held_out
    assert not train & held_out
    assert len(train) + len(held_out) == 400


def test_tokenizer_learns_from_the_train_split_alone(corpus: Corpus, folder: Path, cache: Path):
    name = held_out_documents(corpus)[0].name
    (folder / name).write_text("unheard " * 12, encoding="utf-8")
    again = prepare(str(folder), vocab_size=VOCAB, cache=cache)
    assert again.hash != corpus.hash
    assert load_tokenizer(again).to_str() == load_tokenizer(corpus).to_str()
    assert again.train.hash == corpus.train.hash


def test_windows_open_a_path_or_a_token_file(corpus: Corpus):
    by_path = Windows(corpus.folder / "train.bin", 16)
    assert by_path.tokens == corpus.train
    assert (by_path[:] == Windows(corpus.train, 16)[:]).all()


def test_every_damaged_file_is_found_and_made_again(corpus: Corpus, folder: Path, cache: Path):
    for path in sorted(corpus.folder.iterdir()):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for torn in (bytes(flipped), whole[:-1], None):
            path.unlink() if torn is None else path.write_bytes(torn)
            with pytest.raises(ValueError, match="is not a whole corpus"):
                open_corpus(corpus.folder)
            assert prepare(str(folder), vocab_size=VOCAB, cache=cache) == corpus
            assert path.read_bytes() == whole
    assert not list(cache.glob(".writing-*"))


def test_a_damaged_cached_tokenizer_is_trained_again(corpus: Corpus, folder: Path, cache: Path):
    (cached,) = (cache / "tokenizers").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(whole.replace(b"loss", b"lost"))
    assert prepare(str(folder), vocab_size=VOCAB, cache=cache) == corpus
    assert cached.read_bytes() == whole


def test_a_failed_write_leaves_nothing(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "save", full)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\)"):
        prepare(str(folder), vocab_size=VOCAB, cache=cache)
    assert [path.name for path in cache.iterdir()] == ["tokenizers"]


def test_unwritable_cache(folder: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the cache folder .* cannot be written .* set XDG_CACHE_HOME"):
        prepare(str(folder), vocab_size=VOCAB, cache=tmp_path / "file" / "cache")


def test_default_cache_follows_the_convention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dsv3-ablate"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "dsv3-ablate"


PREPARE = """
import sys
from ablate.data.prepare import prepare
print(prepare(sys.argv[1], vocab_size=300, cache=sys.argv[2]).hash)
"""


def test_processes_that_prepare_at_once_all_get_the_same(folder: Path, cache: Path):
    command = [sys.executable, "-c", PREPARE, str(folder), str(cache)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    hashes = {process.communicate(timeout=60)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert hashes == {prepare(str(folder), vocab_size=VOCAB, cache=cache).hash}
    assert sorted(path.name for path in cache.iterdir()) == sorted(["sources", "tokenizers", *hashes])


@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONHASHSEED": "7"}])
def test_locale_and_hash_seed_change_nothing(corpus: Corpus, folder: Path, tmp_path: Path, environment: dict[str, str]):
    command = [sys.executable, "-c", PREPARE, str(folder), str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == corpus.hash


def test_further_texts_are_encoded_once_with_the_same_tokenizer(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    texts = [paragraph(1000), "a <|endoftext|> b", paragraph(1001)]
    encoded = encode_documents(corpus, texts, name="teacher")
    assert (encoded.name, encoded.documents, encoded.vocab_size) == ("teacher", 3, VOCAB)
    ids = encoded.read()
    assert int(token_bytes(corpus)[ids].sum()) == encoded.bytes == sum(len(text.encode()) for text in texts)
    tokenizer = load_tokenizer(corpus)
    assert ids.tolist() == [i for text in texts for i in [*tokenizer.encode(text).ids, 0]]
    monkeypatch.setattr(module, "write_token_file", None)
    assert encode_documents(corpus, texts, name="other") == replace(encoded, name="other")
    assert open_corpus(corpus.folder) == corpus
    with pytest.raises(ValueError, match="teacher has no text to encode"):
        encode_documents(corpus, ["", " "], name="teacher")


def test_the_border_between_two_texts_is_part_of_their_hash(corpus: Corpus):
    paths = {encode_documents(corpus, texts, name="teacher").path for texts in (["ab", "c"], ["a", "bc"], ["abc"])}
    assert len(paths) == 3


def test_a_known_source_is_not_read_again_and_a_changed_one_is(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "more.bin").write_bytes(b"?")
    time.sleep(2 * source.CLOCK_TICK_NS / 1e9)
    first = prepare(str(folder), vocab_size=VOCAB, cache=cache)
    read = []
    monkeypatch.setattr(module, "documents", lambda *a, **k: read.append(a) or documents(*a, **k))
    said: list[str] = []
    again = prepare(str(folder), vocab_size=VOCAB, cache=cache, progress=said.append)
    assert not read
    assert again == first
    assert again.left_out.facts() == first.left_out.facts() == {"of unknown kind": {"count": 1, "names": ["more.bin"]}}
    assert said[0] == "left out: 1 of unknown kind (more.bin)"
    assert inspect(again)["left_out"] == again.left_out.facts()
    text = (folder / "3.txt").read_text(encoding="utf-8")
    (folder / "3.txt").write_text(text.replace("3\n", "4\n"), encoding="utf-8")  # of the same size
    assert prepare(str(folder), vocab_size=VOCAB, cache=cache).hash != first.hash
    assert len(read) == 1
    for other in ({"max_bytes": 9_999}, {"held_out_share": 0.2}, {"text_field": "body"}, {"vocab_size": VOCAB + 1}):
        prepare(str(folder), **({"vocab_size": VOCAB, "cache": cache} | other))
    assert len(read) == 5


def test_damaged_further_texts_are_encoded_again(corpus: Corpus):
    encoded = encode_documents(corpus, [paragraph(1000)], name="teacher")
    whole = encoded.path.read_bytes()
    encoded.path.write_bytes(whole[:-2])
    assert encode_documents(corpus, [paragraph(1000)], name="teacher") == encoded
    assert encoded.path.read_bytes() == whole


def test_one_document_is_split_by_position(tmp_path: Path, cache: Path):
    (tmp_path / "one.txt").write_text(paragraph(1, lines=400), encoding="utf-8")
    corpus = prepare(str(tmp_path / "one.txt"), vocab_size=VOCAB, cache=cache)
    assert (corpus.train_documents, corpus.held_out_documents) == (1, 1)
    assert corpus.held_out_bytes / (corpus.train_bytes + corpus.held_out_bytes) == pytest.approx(0.05, abs=0.01)


def test_inspect_is_json_and_adds_up(corpus: Corpus):
    facts = json.loads(json.dumps(inspect(corpus)))
    assert facts["hash"] == corpus.hash
    assert facts["splits"]["held_out"]["bytes_per_token"] == pytest.approx(corpus.bytes_per_token)
    assert train_documents(corpus)[0].text.startswith(facts["sample"].split("\n")[0])
    counts = np.bincount(corpus.train.read(), minlength=VOCAB)
    top = facts["most_frequent_tokens"]
    assert [entry["count"] for entry in top] == sorted(counts.tolist(), reverse=True)[: len(top)]
    assert all(counts[entry["id"]] == entry["count"] for entry in top)


def test_a_dataset_is_streamed_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    streamed = []

    def load_dataset(*arguments, **options):
        streamed.append(arguments)
        return ({"text": paragraph(number)} for number in range(10**6))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    first = prepare("hf:someone/text", vocab_size=VOCAB, cache=cache, max_bytes=30_000)
    assert first.train_bytes + first.held_out_bytes == pytest.approx(30_000, abs=100)
    assert prepare("hf:someone/text", vocab_size=VOCAB, cache=cache, max_bytes=30_000) == first
    assert len(streamed) == 1
    first.train.path.unlink()
    assert prepare("hf:someone/text", vocab_size=VOCAB, cache=cache, max_bytes=30_000) == first
    assert len(streamed) == 2


def test_bad_vocabularies_are_refused_before_anything_is_read_or_written(tmp_path: Path, cache: Path):
    with pytest.raises(ValueError, match="vocab_size is 100"):
        prepare(str(tmp_path / "absent"), vocab_size=100, cache=cache)
    (tmp_path / "a.txt").write_text(paragraph(1), encoding="utf-8")
    with pytest.raises(ValueError, match="supports only"):
        prepare(str(tmp_path / "a.txt"), vocab_size=5000, cache=cache)


def test_standard_library(cache: Path):
    said: list[str] = []
    corpus = prepare("stdlib", vocab_size=1024, cache=cache, progress=said.append)
    assert said[:3] == ["reading stdlib", "training a byte-level BPE of 1,024 tokens", "encoding"]
    assert not set(corpus.left_out.counts) - {"repeating another's text", "blank", "not UTF-8", "linking to a folder"}
    assert corpus.train_tokens > 1_500_000
    assert 0.01 < corpus.held_out_bytes / corpus.train_bytes < 0.1
    assert 2.4 < corpus.bytes_per_token < 3.2
    assert int(token_bytes(corpus)[corpus.held_out.read()].sum()) == corpus.held_out_bytes
    names = [document.name for document in train_documents(corpus)]
    assert names == sorted(names)
    assert "typing.py" in names
    assert not [name for name in names if {"", "test", "tests", "encodings"}.intersection(name.split("/"))]
    # No held-out document may fill most of the held-out text, or the loss would be about that document.
    assert max(len(document.text) for document in held_out_documents(corpus)) < corpus.held_out_bytes * 0.101


@pytest.mark.parametrize("name", ["torch", "tokenizers", "pydantic", "pyarrow", "datasets"])
def test_importing_is_cheap(name: str):
    modules = ", ".join(f"ablate.data.{part}" for part in ("prepare", "windows"))
    command = [sys.executable, "-c", f"import sys, {modules}; sys.exit({name!r} in sys.modules)"]
    assert subprocess.run(command, check=False).returncode == 0
