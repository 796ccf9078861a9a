"""What a teacher's text must pass before anything is trained on it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from ablate.spec.decoding import FORBID_UNKNOWN

NAMES = ("short", "long", "repetitive", "duplicate", "held-out", "perplexity")
WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Limits of a text. `max_nats_per_token`: the teacher's own loss on it, where the teacher tells; None for no limit.

    A text is repetitive if more than `max_repeated_share` of its runs of `repeat_words` words occurred in it before,
    and a near-duplicate of held-out text if one of its runs of `overlap_words` words occurs there.
    """

    min_characters: int = 100
    max_characters: int = 20_000
    repeat_words: int = 4
    max_repeated_share: float = 0.25
    overlap_words: int = 13
    max_nats_per_token: float | None = 3.6  # drops a tenth of what the ready-made text's teacher writes

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        if self.repeat_words < 1 or self.overlap_words < 1:
            raise ValueError(
                f"repeat_words is {self.repeat_words} and overlap_words {self.overlap_words}; both must be at least 1"
            )


def words(text: str) -> list[str]:
    """Lower-case words; punctuation and spacing hide no copy."""
    return WORD.findall(text.lower())


def runs(text: str, n: int) -> list[int]:
    """Hashes of the text's runs of n words, in order; they mean nothing in another process."""
    found = words(text)
    return [hash(tuple(found[i : i + n])) for i in range(len(found) - n + 1)]


def repeated_share(text: str, n: int) -> float:
    """Share of the runs of n words that are equal to an earlier one of the same text; 0 where there are none."""
    found = runs(text, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


class Sieve:
    """The filters with what they compare against. A text is counted by the first filter that drops it."""

    def __init__(self, filters: Filters, held_out: Iterable[str]) -> None:
        self.filters = filters
        self.held_out = {run for text in held_out for run in runs(text, filters.overlap_words)}
        self.seen: set[tuple[str, ...]] = set()
        self.dropped = dict.fromkeys(NAMES, 0)

    def keeps(self, text: str, nats_per_token: float | None) -> bool:
        """Whether the text passes; the sieve then knows it, so that no second one like it does."""
        fault = self.fault(text, nats_per_token)
        if fault:
            self.dropped[fault] += 1
            return False
        self.seen.add(tuple(words(text)))
        return True

    def fault(self, text: str, nats_per_token: float | None) -> str:
        """Name of the first filter that the text does not pass, or ""."""
        limits = self.filters
        if len(text.strip()) < limits.min_characters:
            return "short"
        if len(text) > limits.max_characters:
            return "long"
        if repeated_share(text, limits.repeat_words) > limits.max_repeated_share:
            return "repetitive"
        if tuple(words(text)) in self.seen:
            return "duplicate"
        if self.overlaps(text):
            return "held-out"
        # Not a number is no good score either.
        limit = limits.max_nats_per_token
        if limit is not None and nats_per_token is not None and not nats_per_token <= limit:
            return "perplexity"
        return ""

    def overlaps(self, text: str) -> bool:
        """Whether the text shares a run of `overlap_words` words with held-out text."""
        return not self.held_out.isdisjoint(runs(text, self.filters.overlap_words))
