"""What trains and what is held out: whole documents by a hash of their names, or the end of each of a few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ablate.data.source import Document
from ablate.randomness import fraction

# The loss of a few documents is about what they are about. So there are to be at least this many, and none of them
# holds more than this share of the held-out text, if there are twice its inverse; of fewer, twice an even share.
MIN_HELD_OUT_DOCUMENTS = 20
MAX_SHARE_OF_ONE = 0.1


def split_documents(found: list[Document], held_out_share: float) -> tuple[list[Document], list[Document]]:
    """Train and held-out documents, both in the order of `found`; no content is in both.

    Documents are held out by a hash of their names, so that each keeps its side when others come and go. Where fewer
    than 20 would be, the end of every document is held out instead, from a line's beginning, and its head trains. So it
    is with a held-out document that would rule the others. An end that stands elsewhere too, as of a licence, trains.
    Raises ValueError if there is too little text to have both.
    """
    if not 0 < held_out_share <= 0.5:
        raise ValueError(
            f"held_out_share is {held_out_share}, but it must be above 0 and at most 0.5; the default is 0.05"
        )
    parts = _heads_and_ends(found, held_out_share)
    trained = {text for d, (head, _) in zip(found, parts, strict=True) if head for text in (head, d.text)}
    times = Counter(tail for _, tail in parts)
    train, held_out = [], []
    for document, (head, tail) in zip(found, parts, strict=True):
        if not tail.strip() or tail in trained or times[tail] > 1 or (head and not head.strip()):
            train.append(document)
        elif not head:
            held_out.append(document)
        else:
            train.append(Document(name=f"{document.name} (head)", text=head))
            held_out.append(Document(name=f"{document.name} (tail)", text=tail))
    if not train or not held_out:
        raise ValueError(
            f"the corpus has too little text to hold out {held_out_share:.0%} of it ({len(found)} documents); give more"
        )
    return train, held_out


def _heads_and_ends(found: list[Document], held_out_share: float) -> list[tuple[str, str]]:
    """Each document in two: what trains and what is held out, either of which may be empty."""
    if len(found) * held_out_share < MIN_HELD_OUT_DOCUMENTS:
        ends = [_end(document.text, round(len(document.text) * held_out_share)) for document in found]
    else:
        ends = [len(document.text) * (fraction(document.name) < held_out_share) for document in found]
    longest = _longest(ends)
    ends = [end if end <= longest else _end(d.text, longest) for d, end in zip(found, ends, strict=True)]
    return [(d.text[: len(d.text) - end], d.text[len(d.text) - end :]) for d, end in zip(found, ends, strict=True)]


def _end(text: str, n: int) -> int:
    """Characters of the text's end that begins with a line: n, or down to half of it."""
    border = len(text) - n
    line = text.find("\n", border, border + n // 2) + 1
    return len(text) - (line or border)


def _longest(ends: Iterable[int]) -> int:
    """The length above which an end is cut to it, so that none holds more than its share of all together."""
    falling = sorted((end for end in ends if end), reverse=True)
    share, rest = max(MAX_SHARE_OF_ONE, 2 / max(len(falling), 1)), sum(falling)
    for n_cut, end in enumerate(falling):
        # With the n_cut longer ones at a length x, x = share * (rest + n_cut * x).
        if end * (1 - share * n_cut) <= share * rest:
            return int(share * rest / (1 - share * n_cut))
        rest -= end
    return 0
