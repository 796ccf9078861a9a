"""Text for small corpora: a few words in a random order that a number decides."""

from __future__ import annotations

import random

WORDS = ["loss", "token", "expert", "latent", "query", "key", "value", "head", "bias", "warm", "cold", "naïve", "数"]


def paragraph(number: int, *, lines: int = 12) -> str:
    """Lines of words, different for every number."""
    draw = random.Random(number)
    return "".join(" ".join(draw.choices(WORDS, k=8)) + f" {number}\n" for _ in range(lines))
