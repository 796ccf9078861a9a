"""From a source of text to a prepared corpus in the cache, once: split, train the tokenizer, encode, commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ablate.data.cache import default_cache, writing
from ablate.data.corpus import (
    DOCUMENT_NAMES,
    FORMAT,
    HELD_OUT,
    TOKEN_BYTES,
    TOKENIZER,
    TRAIN,
    Corpus,
    held_out_documents,
    inspect,
    load_tokenizer,
    open_corpus,
    token_bytes,
    train_documents,
)
from ablate.data.source import DEFAULT_STREAM_BYTES, Document, documents
from ablate.data.split import split_documents
from ablate.data.tokenizer import check_vocab_size, tokenizer_from_json, train_tokenizer, vocabulary_bytes
from ablate.data.tokens import TokenFile, open_token_file, write_token_file
from ablate.files import commit_folder, damage, new_folder, read_sealed, write_sealed

__all__ = [
    "Corpus",
    "default_cache",
    "encode_documents",
    "held_out_documents",
    "inspect",
    "load_tokenizer",
    "open_corpus",
    "prepare",
    "token_bytes",
    "train_documents",
]

FURTHER = "tokens.bin"

Progress = Callable[[str], None]


def prepare(
    source: str,
    *,
    vocab_size: int,
    cache: Path | None = None,
    held_out_share: float = 0.05,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """The corpus of a source (see source.documents) with a byte-level BPE of exactly vocab_size tokens.

    Kept in cache/<hash>/ and made only if it is not there whole; processes that prepare at once all get the same.
    A Hugging Face dataset is streamed once for each (name, cap, share, vocabulary); remove the cache's `streams` folder
    to stream it again. held_out_share is the share of documents, or of each document where there are few.
    Raises ValueError for a source without usable text, a vocabulary that the text cannot fill, an unwritable cache.
    """
    check_vocab_size(vocab_size)
    say = progress or _silent
    cache = (default_cache() if cache is None else Path(cache)).absolute()
    stream = None
    if source.startswith("hf:"):
        cap = DEFAULT_STREAM_BYTES if max_bytes is None else max_bytes
        request = [FORMAT, source, vocab_size, held_out_share, cap]
        stream = cache / "streams" / f"{_sha256(map(repr, request))}.json"
        known = read_sealed(stream)
        if known is not None and damage(cache / known["hash"]) is None:
            return replace(open_corpus(cache / known["hash"]), source=source)
    say(f"reading {source}")
    train, held_out = split_documents(documents(source, max_bytes=max_bytes), held_out_share)
    tokenizer_json = _tokenizer(cache, [document.text for document in train], vocab_size, say)
    corpus = _corpus(cache, source, train, held_out, tokenizer_json, say)
    if stream is not None:
        with writing(cache):
            write_sealed(stream, {"hash": corpus.hash, "source": source})
    say(f"{corpus.train_tokens:,} train and {corpus.held_out_tokens:,} held-out tokens in {corpus.folder}")
    return corpus


def _silent(message: str) -> None:
    del message


def _tokenizer(cache: Path, texts: list[str], vocab_size: int, say: Progress) -> str:
    """tokenizer.json for these texts, trained once for each release of the tokenizers package."""
    import tokenizers

    key = _sha256([repr([FORMAT, vocab_size, tokenizers.__version__]), *texts])
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
    return replace(open_corpus(final), source=source)


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
