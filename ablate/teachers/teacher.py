"""What a teacher is: anything that continues prompts and says what that cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ablate.randomness import uniform


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What a teacher is given: text to continue, or, with `asks`, a request that a model tuned to chat answers."""

    text: str
    asks: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What a teacher wrote behind a prompt. `n_forward_tokens`: read or written, prompt included, for the FLOPs."""

    text: str
    n_forward_tokens: int
    nats_per_token: float | None = None  # its own loss on what it wrote; None if it does not tell
    ended: bool = False  # the teacher ended the text itself; else the limit on tokens cut it, or it is not known


class Teacher(Protocol):
    """Anything that continues text. `answers`: whether it was tuned to chat and is given prompts that ask."""

    @property
    def answers(self) -> bool: ...

    @property
    def flops_per_token(self) -> float | None:
        """Forward FLOPs, or None if its size is not known."""

    def complete(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float, seed: int
    ) -> list[Completion]: ...

    def describe(self) -> dict[str, Any]:
        """For the manifest: plain data, nothing secret."""


@runtime_checkable
class Scorer(Protocol):
    """A teacher that also says how likely a text is to it."""

    def nats_of(self, texts: Sequence[str]) -> list[float]:
        """Loss on each text, in nats over all its tokens."""


def draws(seed: int, prompt: str, n: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for the tokens behind a prompt: the same whatever else is in its batch."""
    return uniform(f"teacher tokens, seed {seed}, {prompt}", n)
