"""Fixed windows over a token file, and the order in which a seed visits them: a pure function of seed and step."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

from ablate.data.tokenizer import END_OF_TEXT_ID
from ablate.data.tokens import TokenFile, open_token_file
from ablate.randomness import raw_bits

HASHED_STEPS = 64  # enough to tell two orders apart; hashing every step of a long run would cost as much as reading it


class Windows:
    """Non-overlapping windows of sequence_length + 1 tokens, taken every sequence_length tokens.

    The last target of a window is the first input of the next, so every token but the first is a target exactly once
    (a rest shorter than a window is left out). inputs = window[:-1], targets = window[1:].
    """

    def __init__(self, source: TokenFile | Path | str, sequence_length: int) -> None:
        """Raises ValueError for a sequence_length below 1 and for a stream shorter than one window."""
        self.tokens = source if isinstance(source, TokenFile) else open_token_file(Path(source))
        self.sequence_length = sequence_length
        if sequence_length < 1:
            raise ValueError(f"sequence_length is {sequence_length}, but a window has at least 1 token")
        if self.tokens.tokens < sequence_length + 1:
            raise ValueError(
                f"the {self.tokens.name} text has {self.tokens.tokens} tokens, fewer than one window of "
                f"{sequence_length + 1} (sequence_length {sequence_length} and its last target); "
                f"give more text or a sequence_length of at most {self.tokens.tokens - 1}"
            )
        self._ids = self.tokens.read()

    def __len__(self) -> int:
        return (self.tokens.tokens - 1) // self.sequence_length

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Window or windows as int64 [..., sequence_length + 1], a copy; IndexError outside 0 .. len - 1."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        indices = np.asarray(index, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"window {index} of {len(self)}")
        positions = indices[..., None] * self.sequence_length + np.arange(self.sequence_length + 1)
        return self._ids[positions].astype(np.int64)

    def documents(self, indices: np.ndarray) -> np.ndarray:
        """Number of the document that each target of these windows (W,) belongs to, int64 (W, sequence_length).

        <|endoftext|> belongs to the document that it ends.
        """
        ends = np.flatnonzero(self._ids == END_OF_TEXT_ID)
        targets = indices[:, None] * self.sequence_length + np.arange(1, self.sequence_length + 1)
        return np.searchsorted(ends, targets)

    def __reduce__(self) -> tuple[type[Windows], tuple[TokenFile, int]]:
        # A memory map pickles as a copy of the whole file; another process maps the file itself.
        return Windows, (self.tokens, self.sequence_length)


def spread_indices(n: int, n_windows: int) -> np.ndarray:
    """`n` of `n_windows` windows, or all where there are fewer, int64: the middles of n equal stretches of the text."""
    n = min(n, n_windows)
    return (2 * np.arange(n) + 1) * n_windows // (2 * n)


def batch_indices(*, n_windows: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Windows of optimizer step `step` (from 0), int64 [batch_size]; nothing but the arguments decides them.

    Each epoch is one permutation of all windows, and a step may reach over the border of two epochs.
    """
    if n_windows < 1 or batch_size < 1 or step < 0:
        raise ValueError(
            f"n_windows {n_windows} and batch_size {batch_size} must be at least 1, and step {step} at least 0"
        )
    position, end = step * batch_size, (step + 1) * batch_size
    parts = []
    while position < end:
        epoch, offset = divmod(position, n_windows)
        taken = min(n_windows - offset, end - position)
        parts.append(_epoch_order(n_windows, seed, epoch)[offset : offset + taken])
        position += taken
    return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _epoch_order(n_windows: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of 0 .. n_windows - 1, int64, by sorting raw bits."""
    bits = raw_bits(f"data order, seed {seed}, epoch {epoch}", n_windows)
    return np.argsort(bits, kind="stable").astype(np.int64, copy=False)


def order_hash(*, corpus_hash: str, n_windows: int, seed: int, batch_size: int, sequence_length: int) -> str:
    """sha256 that two runs share if they see the same tokens in the same order (by the first 64 steps)."""
    digest = hashlib.sha256(f"{corpus_hash} {n_windows} {batch_size} {sequence_length}".encode())
    for step in range(HASHED_STEPS):
        indices = batch_indices(n_windows=n_windows, seed=seed, step=step, batch_size=batch_size)
        digest.update(indices.astype("<i8").tobytes())
    return digest.hexdigest()
