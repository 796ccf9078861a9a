"""A prepared corpus: facts, token files, tokenizer, and the documents back from the tokens."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablate.data.left_out import LeftOut
from ablate.data.source import Document
from ablate.data.tokenizer import END_OF_TEXT_ID, tokenizer_from_json, vocabulary_bytes
from ablate.data.tokens import TokenFile, open_token_file
from ablate.files import MANIFEST, damage, read_sealed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 2  # part of the corpus hash; raise it when the same documents would give other files
TRAIN = "train.bin"
HELD_OUT = "held_out.bin"
TOKENIZER = "tokenizer.json"
TOKEN_BYTES = "token_bytes.npy"
DOCUMENT_NAMES = "documents.json"
SAMPLE_TOKENS = 120
FREQUENT_TOKENS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A corpus on disk. Two corpora with one hash give the same token ids in the same places."""

    source: str  # as the user gave it; not part of the hash
    hash: str  # sha256 over format version, tokenizer, and the ordered documents of both splits
    vocab_size: int
    folder: Path
    train: TokenFile
    held_out: TokenFile
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)  # of the source; not part of the hash

    @property
    def train_tokens(self) -> int:
        return self.train.tokens

    @property
    def held_out_tokens(self) -> int:
        return self.held_out.tokens

    @property
    def train_documents(self) -> int:
        return self.train.documents

    @property
    def held_out_documents(self) -> int:
        return self.held_out.documents

    @property
    def train_bytes(self) -> int:
        return self.train.bytes

    @property
    def held_out_bytes(self) -> int:
        return self.held_out.bytes

    @property
    def bytes_per_token(self) -> float:
        """Held-out UTF-8 bytes per held-out token (<|endoftext|> included in the tokens)."""
        return self.held_out.bytes_per_token


def open_corpus(folder: Path) -> Corpus:
    """The corpus in a folder that prepare wrote, every file checked by sha256; ValueError if one is damaged."""
    wrong = damage(folder)
    if wrong is not None:
        raise ValueError(
            f"{folder} is not a whole corpus ({wrong}); run `dsv3-ablate data prepare` again to rebuild it"
        )
    manifest = read_sealed(folder / MANIFEST)
    if manifest is None or manifest.get("format") != FORMAT or "hash" not in manifest:
        raise ValueError(f"{folder} is not a corpus of format {FORMAT}; run `dsv3-ablate data prepare` to make one")
    return Corpus(
        source=manifest["source"],
        hash=manifest["hash"],
        vocab_size=manifest["vocab_size"],
        folder=folder,
        train=open_token_file(folder / TRAIN),
        held_out=open_token_file(folder / HELD_OUT),
    )


def load_tokenizer(corpus: Corpus) -> Tokenizer:
    """The corpus's tokenizer; a literal "<|endoftext|>" in a text is encoded as characters."""
    return tokenizer_from_json((corpus.folder / TOKENIZER).read_text(encoding="utf-8"))


def token_bytes(corpus: Corpus) -> np.ndarray:
    """UTF-8 bytes of each token id, int64 [vocab_size]; 0 for <|endoftext|>. Sums over a split to the split's bytes."""
    return np.load(corpus.folder / TOKEN_BYTES, allow_pickle=False)


def train_documents(corpus: Corpus) -> list[Document]:
    """The documents that train, in the order of train.bin."""
    return _documents(corpus, corpus.train)


def held_out_documents(corpus: Corpus) -> list[Document]:
    """The documents that are only evaluated on, in the order of held_out.bin."""
    return _documents(corpus, corpus.held_out)


def _documents(corpus: Corpus, stream: TokenFile) -> list[Document]:
    # Decoding is exact, so the texts are not stored a second time.
    table = vocabulary_bytes(load_tokenizer(corpus))
    names = json.loads((corpus.folder / DOCUMENT_NAMES).read_bytes())[stream.name]
    ids = stream.read()
    ends = np.flatnonzero(ids == END_OF_TEXT_ID)
    starts = [0, *(ends[:-1] + 1)]
    texts = [_decode(ids[start:end], table) for start, end in zip(starts, ends, strict=True)]
    return [Document(name=name, text=text) for name, text in zip(names, texts, strict=True)]


def _decode(ids: np.ndarray, table: list[bytes]) -> str:
    return b"".join([table[token_id] for token_id in ids.tolist()]).decode(errors="replace")


def inspect(corpus: Corpus) -> dict[str, Any]:
    """What a person asks of a corpus, as one JSON value: sizes of each split, a sample, the most frequent tokens."""
    table = vocabulary_bytes(load_tokenizer(corpus))
    ids = corpus.train.read()
    counts = np.bincount(ids, minlength=corpus.vocab_size)
    frequent = Counter(dict(enumerate(counts.tolist()))).most_common(FREQUENT_TOKENS)
    return {
        "source": corpus.source,
        "hash": corpus.hash,
        "folder": str(corpus.folder),
        "vocab_size": corpus.vocab_size,
        "left_out": corpus.left_out.facts(),
        "splits": {stream.name: _split_facts(stream) for stream in (corpus.train, corpus.held_out)},
        "sample": _decode(ids[:SAMPLE_TOKENS], table),
        "unused_tokens": int((counts == 0).sum()),
        "most_frequent_tokens": [
            {
                "id": token_id,
                "text": "<|endoftext|>" if token_id == END_OF_TEXT_ID else table[token_id].decode(errors="replace"),
                "count": count,
                "share": count / corpus.train_tokens,
            }
            for token_id, count in frequent
        ],
    }


def _split_facts(stream: TokenFile) -> dict[str, Any]:
    return {
        "documents": stream.documents,
        "bytes": stream.bytes,
        "tokens": stream.tokens,
        "bytes_per_token": stream.bytes_per_token,
        "sha256": stream.hash,
    }
