"""Texts that come from outside, such as names, reasons and questions in a study's files, made fit to be shown."""

from __future__ import annotations

import unicodedata

MAX_TEXT = 2000  # characters of one text that came from outside


def clean(text: object) -> str:
    """The text as one printable line: control characters (terminal escapes too) and line ends become spaces."""
    kept = str(text)
    if not kept.isprintable():  # most are, and letter by letter takes a hundred times as long
        kept = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in kept)
    return shortened(" ".join(kept.split()), MAX_TEXT)


def shortened(text: str, n: int) -> str:
    """At most `n` characters, the last of them an ellipsis where something was cut."""
    return text if len(text) <= n else text[: n - 1] + "…"
