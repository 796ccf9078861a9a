"""The texts that a study's variants read: a corpus for each kind of tokens, and what is held out beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ablate.components.component import ON
from ablate.components.registry import COMPONENTS
from ablate.data.windows import Windows
from ablate.runs.plan import NamedVariant

if TYPE_CHECKING:
    from ablate.data.corpus import Corpus
    from ablate.data.tokens import TokenFile


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """A corpus and further held-out sets in its tokens."""

    corpus: Corpus
    held_out: dict[str, TokenFile]


def prepare_texts(named: Sequence[NamedVariant], progress: Callable[[str], None]) -> dict[str, Texts]:
    """Variant -> what it reads. Variants of one source, size and vocabulary read the same.

    ValueError for a text that is shorter than a sequence of some variant.
    """
    groups: dict[tuple[Any, ...], list[NamedVariant]] = {}
    for v in named:
        data = v.spec.data
        groups.setdefault((data.source, data.max_bytes, data.text_field, v.spec.model.vocab_size), []).append(v)
    found: dict[str, Texts] = {}
    for group in groups.values():
        corpus = _prepare(group[0], progress)
        texts = Texts(corpus=corpus, held_out=_held_out_texts(group, corpus))
        for length in {v.spec.trainer.sequence_length for v in group}:
            for text in (corpus.train, corpus.held_out, *texts.held_out.values()):
                Windows(text, length)  # a text shorter than a sequence is told now
        found |= {v.name: texts for v in group}
    return found


def other_corpora(texts: dict[str, Texts], reference: str) -> dict[str, dict[str, Any]]:
    """Variant -> hash, vocabulary and bytes per token of its corpus, of those that do not read the reference's."""
    known = texts[reference].corpus
    return {
        name: {
            "hash": each.corpus.hash,
            "vocab_size": each.corpus.vocab_size,
            "bytes_per_token": each.corpus.bytes_per_token,
        }
        for name, each in texts.items()
        if each.corpus.hash != known.hash
    }


def _prepare(v: NamedVariant, progress: Callable[[str], None]) -> Corpus:
    from ablate.data.prepare import prepare

    return prepare(
        v.spec.data.source,
        vocab_size=v.spec.model.vocab_size,
        max_bytes=v.spec.data.max_bytes,
        text_field=v.spec.data.text_field,
        progress=progress,
    )


def _held_out_texts(named: Sequence[NamedVariant], corpus: Corpus) -> dict[str, TokenFile]:
    """Further held-out sets that components bring which are on somewhere: evaluated for every variant alike."""
    from ablate.data.prepare import encode_documents

    found = {}
    for c in COMPONENTS:
        if c.held_out_texts is not None and any(v.levels[c.name] == ON for v in named):
            texts = c.held_out_texts(named[0].spec, corpus)
            found[c.name] = encode_documents(corpus, texts, name=f"{c.name} held-out")
    return found
