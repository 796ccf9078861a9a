"""Random numbers that are a pure function of a sentence: whoever draws says what for, and nobody shares a stream.

The sentence names the seed and everything else that the numbers may depend on ("data order, seed 3, epoch 0"). Its
sha256 keys a generator, so that the same sentence gives the same bits in every process and on every machine.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def raw_bits(sentence: str, n: int) -> np.ndarray:
    """n random uint64: Philox's own stream, which NumPy promises to keep, and not that of a Generator's methods."""
    key = int.from_bytes(_digest(sentence)[:16], "little")
    return np.random.Philox(key=key).random_raw(n)


def uniform(sentence: str, n: int) -> np.ndarray:
    """n numbers in [0, 1), float64: 53 bits fit a float exactly, so that no draw rounds up to 1."""
    return (raw_bits(sentence, n) >> np.uint64(11)) * 2.0**-53


def seed_of(sentence: str) -> int:
    """A seed of 64 bits."""
    return int.from_bytes(_digest(sentence)[:8], "little")


def torch_generator(sentence: str) -> torch.Generator:
    """A generator on the processor; torch takes seeds of 63 bits."""
    import torch

    return torch.Generator().manual_seed(seed_of(sentence) >> 1)


def fraction(sentence: str) -> float:
    """A number in [0, 1] that depends on nothing but the sentence: for decisions about things by their names."""
    return int.from_bytes(_digest(sentence)[:8], "big") / 2**64


def _digest(sentence: str) -> bytes:
    return hashlib.sha256(sentence.encode()).digest()
