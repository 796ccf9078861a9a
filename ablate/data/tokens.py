"""Token files: one flat array of token ids on disk, written once and memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablate.data.tokenizer import encode_texts, vocabulary_bytes
from ablate.files import MANIFEST, read_sealed

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFile:
    """A stream of documents as token ids, each document followed by <|endoftext|>."""

    path: Path
    name: str  # what the stream is called in messages and reports: "train", "held_out", "teacher"
    hash: str  # sha256 of the file
    vocab_size: int
    tokens: int
    documents: int
    bytes: int  # UTF-8 bytes of the text, <|endoftext|> counting none

    @property
    def dtype(self) -> np.dtype:
        """Type of the ids on disk: little-endian uint16 where every id fits, uint32 otherwise."""
        return token_dtype(self.vocab_size)

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens

    def read(self) -> np.ndarray:
        """All token ids [tokens] of type dtype, memory-mapped and read-only; ValueError if its size changed."""
        size = self.path.stat().st_size if self.path.is_file() else None
        if size != self.tokens * self.dtype.itemsize:
            raise ValueError(
                f"{self.path} has {size} bytes instead of {self.tokens * self.dtype.itemsize}; prepare the corpus again"
            )
        return np.memmap(self.path, dtype=self.dtype, mode="r")


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


def write_token_file(path: Path, texts: Sequence[str], tokenizer: Tokenizer, *, name: str) -> dict[str, Any]:
    """Encode texts into path and return the facts that the manifest keeps about the file."""
    vocab_size = tokenizer.get_vocab_size()
    lengths = np.array([len(token) for token in vocabulary_bytes(tokenizer)])
    tokens = covered = 0
    with path.open("wb") as file:
        for ids in encode_texts(tokenizer, texts):
            file.write(ids.astype(token_dtype(vocab_size)).tobytes())
            tokens += len(ids)
            covered += int(lengths[ids].sum())
    n_bytes = sum(len(text.encode()) for text in texts)
    # Bits per byte divides by n_bytes, so the tokens must stand for exactly those bytes.
    assert covered == n_bytes, (name, covered, n_bytes)
    return {"name": name, "vocab_size": vocab_size, "tokens": tokens, "documents": len(texts), "bytes": n_bytes}


def open_token_file(path: Path) -> TokenFile:
    """The token file at path, with its facts from the manifest beside it; ValueError if there are none."""
    manifest = read_sealed(path.parent / MANIFEST)
    if manifest is None or path.name not in manifest.get("token_files", {}):
        raise ValueError(f"{path} is not a token file that `dsv3-ablate data prepare` wrote; prepare the corpus again")
    return TokenFile(path=path, hash=manifest["files"][path.name]["sha256"], **manifest["token_files"][path.name])
