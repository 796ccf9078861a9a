"""From a source of text to a prepared corpus in the cache, once: split, train the tokenizer, encode, commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ablate.data.cache import writing
from ablate.data.corpus import (
    DOCUMENT_NAMES,
    FORMAT,
    HELD_OUT,
    TOKEN_BYTES,
    TOKENIZER,
    TRAIN,
    Corpus,
    load_tokenizer,
    open_corpus,
)
from ablate.data.left_out import left_out_from
from ablate.data.source import Document, Source, documents, open_source
from ablate.data.split import split_documents
from ablate.data.tokenizer import check_vocab_size, tokenizer_from_json, train_tokenizer, vocabulary_bytes
from ablate.data.tokens import TokenFile, open_token_file, write_token_file
from ablate.files import commit_folder, damage, new_folder, read_sealed, write_sealed
from ablate.spec.machine import cache_folder

FURTHER = "tokens.bin"

Progress = Callable[[str], None]


def prepare(
    source: str,
    *,
    vocab_size: int,
    cache: Path | None = None,
    held_out_share: float = 0.05,
    max_bytes: int | None = None,
    text_field: str = "",
    progress: Progress | None = None,
) -> Corpus:
    """The corpus of a source (see source.documents) with a byte-level BPE of exactly vocab_size tokens.

    Kept in cache/<hash>/ and made only if it is not there whole; processes that prepare at once all get the same.
    What a source became is remembered: a folder is read again when a file in it has changed, and a Hugging Face
    dataset when the cache's folder `sources` is removed. held_out_share is the share of documents, or of each document
    where there are few. Raises ValueError for a source without usable text, a vocabulary that the text cannot fill, an
    unwritable cache.
    """
    check_vocab_size(vocab_size)
    say = progress or _silent
    cache = (cache_folder() if cache is None else Path(cache)).absolute()
    opened = open_source(source)
    max_bytes = opened.default_max_bytes if max_bytes is None else max_bytes
    known = _known_file(cache, opened, [vocab_size, held_out_share, max_bytes, text_field])
    corpus = _known_corpus(cache, known)
    if corpus is None:
        say(f"reading {source}")
        found = documents(opened, max_bytes=max_bytes, text_field=text_field)
        train, held_out = split_documents(found, held_out_share)
        tokenizer_json = _tokenizer(cache, [document.text for document in train], vocab_size, say)
        corpus = replace(_corpus(cache, source, train, held_out, tokenizer_json, say), left_out=opened.left_out)
        if known is not None:
            with writing(cache):
                write_sealed(known, {"hash": corpus.hash, "left_out": corpus.left_out.facts()})
    if corpus.left_out.counts:
        say(f"left out: {corpus.left_out}")
    say(f"{corpus.train_tokens:,} train and {corpus.held_out_tokens:,} held-out tokens in {corpus.folder}")
    return replace(corpus, source=source)


def _known_file(cache: Path, source: Source, asked: list[Any]) -> Path | None:
    """Where it is written which corpus this state of a source became; None if the state cannot be told yet."""
    if source.state is None:
        return None
    request = [FORMAT, version("tokenizers"), source.name, source.state, *asked]
    return cache / "sources" / f"{_sha256(map(repr, request))}.json"


def _known_corpus(cache: Path, known: Path | None) -> Corpus | None:
    """The corpus that a source is known to be, if it is there whole."""
    facts = None if known is None else read_sealed(known)
    if facts is None:
        return None
    try:
        return replace(open_corpus(cache / facts["hash"]), left_out=left_out_from(facts["left_out"]))
    except (ValueError, KeyError, TypeError):
        return None  # absent, damaged or another program's, and made again


def _silent(message: str) -> None:
    del message


def _tokenizer(cache: Path, texts: list[str], vocab_size: int, say: Progress) -> str:
    """tokenizer.json for these texts, trained once for each release of the tokenizers package."""
    key = _sha256([repr([FORMAT, vocab_size, version("tokenizers")]), *texts])
    path = cache / "tokenizers" / f"{key}.json"
    cached = read_sealed(path)
    if cached is not None:
        return cached
    with writing(cache):
        # A cache that cannot be written is found out before the minutes that training takes.
        path.parent.mkdir(parents=True, exist_ok=True)
    say(f"training a byte-level BPE of {vocab_size:,} tokens")
    trained = train_tokenizer(texts, vocab_size=vocab_size)
    with writing(cache):
        write_sealed(path, trained)
    return trained


def _corpus(
    cache: Path, source: str, train: list[Document], held_out: list[Document], tokenizer_json: str, say: Progress
) -> Corpus:
    """The committed corpus of these documents; a damaged one is built again."""
    parts = [part for split in (train, held_out) for document in split for part in (document.name, document.text)]
    digest = _sha256([repr([FORMAT, len(train), len(held_out)]), tokenizer_json, *parts])
    final = cache / digest
    if damage(final) is not None:
        say("encoding")
        tokenizer = tokenizer_from_json(tokenizer_json)
        with writing(cache), new_folder(cache) as folder:
            streams = {
                name: write_token_file(folder / name, [document.text for document in split], tokenizer, name=label)
                for name, label, split in ((TRAIN, "train", train), (HELD_OUT, "held_out", held_out))
            }
            names = {
                "train": [document.name for document in train],
                "held_out": [document.name for document in held_out],
            }
            (folder / DOCUMENT_NAMES).write_text(json.dumps(names, indent=0), encoding="utf-8")
            (folder / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
            lengths = [len(token) for token in vocabulary_bytes(tokenizer)]
            np.save(folder / TOKEN_BYTES, np.array(lengths, dtype=np.int64), allow_pickle=False)
            manifest = {
                "format": FORMAT,
                "source": source,
                "hash": digest,
                "vocab_size": tokenizer.get_vocab_size(),
                "token_files": streams,
            }
            commit_folder(folder, final, manifest)
    return open_corpus(final)


def encode_documents(corpus: Corpus, texts: Sequence[str], *, name: str) -> TokenFile:
    """Further texts (a teacher's) as a token file in this corpus's vocabulary, kept in the corpus's folder by content.

    name: what the stream is called in messages and reports. Raises ValueError if there is no text.
    """
    if not any(text.strip() for text in texts):
        raise ValueError(f"{name} has no text to encode ({len(texts)} documents); give at least one document with text")
    further = corpus.folder / "further"
    final = further / _sha256(texts)
    if damage(final) is not None:
        with writing(corpus.folder), new_folder(further) as folder:
            facts = write_token_file(folder / FURTHER, texts, load_tokenizer(corpus), name=name)
            commit_folder(folder, final, {"format": FORMAT, "corpus": corpus.hash, "token_files": {FURTHER: facts}})
    return replace(open_token_file(final / FURTHER), name=name)


def _sha256(parts: Iterable[str]) -> str:
    """Hash of a sequence of strings in which no two sequences run together."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()
