"""Which documents train and which are held out: decided by a hash of the name, so stable when others come and go."""

from __future__ import annotations

from ablate.data.source import Document
from ablate.randomness import fraction


def split_documents(found: list[Document], held_out_share: float) -> tuple[list[Document], list[Document]]:
    """Train and held-out documents, both in the order of `found`; no content is in both.

    With fewer documents than 1 / held_out_share a split by document would hold out far too much or too little, so each
    document is cut instead: its last share, from a line's beginning, is held out.
    Raises ValueError if there is too little text to have both.
    """
    if not 0 < held_out_share <= 0.5:
        raise ValueError(
            f"held_out_share is {held_out_share}, but it must be above 0 and at most 0.5; the default is 0.05"
        )
    if len(found) * held_out_share < 1:
        train, held_out = _by_position(found, held_out_share)
    else:
        train, held_out = _by_name(found, held_out_share)
    trained = {document.text for document in train}
    held_out = [document for document in held_out if document.text not in trained]
    if not train or not held_out:
        raise ValueError(
            f"the corpus has too little text to hold out {held_out_share:.0%} of it ({len(found)} documents); give more"
        )
    return train, held_out


def _by_name(found: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    ranks = [fraction(document.name) for document in found]
    # At least the lowest-ranked document is held out and the highest-ranked trained on, whatever the luck of the hash.
    held_out = [rank < share or rank == min(ranks) for rank in ranks]
    held_out[ranks.index(max(ranks))] = False
    train = [document for document, held in zip(found, held_out, strict=True) if not held]
    return train, [document for document, held in zip(found, held_out, strict=True) if held]


def _by_position(found: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    train, held_out = [], []
    for document in found:
        cut = _cut(document.text, share)
        head, tail = document.text[:cut], document.text[cut:]
        if head.strip() and tail.strip():
            train.append(Document(name=f"{document.name} (head)", text=head))
            held_out.append(Document(name=f"{document.name} (tail)", text=tail))
        else:
            train.append(document)
    return train, held_out


def _cut(text: str, share: float) -> int:
    """Index of the first held-out character: a line's beginning near the border, or the border where lines are long."""
    border = round(len(text) * (1 - share))
    before = text.rfind("\n", round(len(text) * (1 - 2 * share)), border) + 1
    after = text.find("\n", border, round(len(text) * (1 - share / 2))) + 1
    return before or after or border
