"""Writing a teacher's text: prompts from training documents, completions, filters, and the manifest of it all."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ablate.components.distill.text import (
    Manifest,
    TeacherDocument,
    check_out,
    check_split,
    compress,
    write_text,
)
from ablate.data.corpus import Corpus, held_out_documents, load_tokenizer, train_documents
from ablate.data.source import Document
from ablate.data.tokenizer import encode_texts
from ablate.teachers.filters import Filters, Sieve
from ablate.teachers.saved import SavedTeacher
from ablate.teachers.teacher import Completion, Teacher, draws

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_PROMPTS, MIN_PROMPTS = 64, 16  # of a round, whose answers are kept together
EXPECTED_SHARE = 0.8  # of the tokens that are written, kept
# A round of which less than this share passes the filters will not get better by being repeated.
MIN_KEPT_SHARE = 0.02

Progress = Callable[[int, int], None]  # tokens kept, tokens wanted


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning that a teacher continues, and the training document it was taken from."""

    document: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How much is written and how; the defaults are those of the ready-made text."""

    n_tokens: int = 250_000  # kept, in the corpus's vocabulary; a little more is written
    prompt_tokens: int = 64  # at most, in the corpus's vocabulary
    max_tokens: int = 400  # a text, in the teacher's vocabulary
    temperature: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_tokens, self.prompt_tokens, self.max_tokens) < 1 or self.temperature < 0:
            raise ValueError(
                f"n_tokens is {self.n_tokens}, prompt_tokens {self.prompt_tokens}, max_tokens {self.max_tokens} and "
                f"temperature {self.temperature}; the first three must be at least 1, and the temperature 0 or more"
            )


def prompts(
    documents: Sequence[Document], tokenizer: Tokenizer, recipe: Recipe, *, n_round: int, n: int
) -> list[Prompt]:
    """Up to `n` prompts, spread evenly over the documents' text; another seed or round gives others.

    Each begins and ends with a line, where the lines are short enough, so that the teacher begins one as well.
    """
    ends = list(accumulate(len(document.text) for document in documents))
    offsets = (np.arange(n) + draws(recipe.seed, f"prompts of round {n_round}", n)) * (ends[-1] / n)
    found = []
    for offset in offsets.astype(int).tolist():
        place = min(bisect_right(ends, offset), len(documents) - 1)
        document = documents[place]
        text = _beginning(document.text, offset - (ends[place] - len(document.text)), tokenizer, recipe.prompt_tokens)
        if text.strip():
            found.append(Prompt(document.name, text))
    return found


def _beginning(text: str, offset: int, tokenizer: Tokenizer, n_tokens: int) -> str:
    """Up to `n_tokens` tokens of whole lines from the one in which the offset lies."""
    start = text.rfind("\n", 0, offset) + 1
    # More characters than so many tokens have in any vocabulary; the rest of a long document need not be encoded.
    piece = text[start : start + 16 * n_tokens]
    encoding = tokenizer.encode(piece, add_special_tokens=False)
    cut = encoding.offsets[n_tokens - 1][1] if len(encoding.ids) > n_tokens else len(piece)
    return piece[: piece.rfind("\n", 0, cut) + 1] or piece[:cut]


def write_teacher_text(
    corpus: Corpus,
    teacher: Teacher,
    *,
    recipe: Recipe,
    filters: Filters,
    out: Path,
    progress: Progress | None = None,
) -> Manifest:
    """Write a teacher's text into the new folder `out` and return its manifest.

    What it has written is kept beside `out`, in the folder OUT.parts, until the text is whole: when the writing ends
    early, the same call goes on from there.
    ValueError, with nothing left at `out`, if it exists or cannot be written, if the teacher fails, or if the filters
    leave next to nothing or too little to train and evaluate on.
    """
    check_out(out)
    check_split(f"the corpus {corpus.source}", {document.name for document in train_documents(corpus)})
    parts = out.with_name(f"{out.name}.parts")
    writer = _Writer(corpus, SavedTeacher(teacher, parts), recipe, filters)
    for n_kept in writer.rounds():
        if progress:
            progress(min(n_kept, recipe.n_tokens), recipe.n_tokens)
    check_split(f"the text for {out}, which is not kept", {document.document for document in writer.documents})
    compressed, text_hash = compress(writer.documents)
    manifest = writer.manifest(text_hash)
    write_text(out, compressed, manifest)
    shutil.rmtree(parts, ignore_errors=True)
    return manifest


class _Writer:
    """What has been written so far."""

    def __init__(self, corpus: Corpus, teacher: Teacher, recipe: Recipe, filters: Filters) -> None:
        self.corpus, self.teacher, self.recipe = corpus, teacher, recipe
        self.tokenizer = load_tokenizer(corpus)
        self.sieve = Sieve(filters, [document.text for document in held_out_documents(corpus)])
        self.documents: list[TeacherDocument] = []
        self.n_tokens = self.n_prompts = self.n_forward_tokens = 0
        self.prompt_digest = hashlib.sha256()

    def rounds(self) -> Iterator[int]:
        """Tokens kept after each round, until they are enough."""
        training, recipe, n_round = train_documents(self.corpus), self.recipe, 0
        while self.n_tokens < recipe.n_tokens:
            wanted = (recipe.n_tokens - self.n_tokens) / recipe.max_tokens / EXPECTED_SHARE
            n = round(min(MAX_PROMPTS, max(MIN_PROMPTS, wanted)))
            self._round(prompts(training, self.tokenizer, recipe, n_round=n_round, n=n))
            n_round += 1
            yield self.n_tokens

    def _round(self, chosen: list[Prompt]) -> None:
        recipe = self.recipe
        written = self.teacher.complete(
            [prompt.text for prompt in chosen],
            max_tokens=recipe.max_tokens,
            temperature=recipe.temperature,
            seed=recipe.seed,
        )
        n_before = len(self.documents)
        for prompt, completion in zip(chosen, written, strict=True):
            self._take(prompt, completion)
        n_new = len(self.documents) - n_before
        if n_new < max(1, MIN_KEPT_SHARE * len(chosen)):
            dropped = ", ".join(f"{name} {n}" for name, n in self.sieve.dropped.items() if n)
            raise ValueError(
                f"the filters keep {n_new} of the last {len(chosen)} texts (dropped so far: {dropped or 'none'}); "
                "relax the filters or choose another teacher"
            )

    def _take(self, prompt: Prompt, completion: Completion) -> None:
        self.n_prompts += 1
        self.n_forward_tokens += completion.n_forward_tokens
        self.prompt_digest.update(f"{len(prompt.text)} {prompt.text}".encode())
        text = whole_lines(completion.text)
        if self.sieve.keeps(text, completion.nats_per_token):
            self.documents.append(TeacherDocument(document=prompt.document, text=text))
            self.n_tokens += sum(map(len, encode_texts(self.tokenizer, [text])))

    def manifest(self, text_hash: str) -> Manifest:
        recipe, corpus, flops = self.recipe, self.corpus, self.teacher.flops_per_token
        return Manifest(
            teacher=self.teacher.describe(),
            corpus_source=corpus.source,
            corpus_hash=corpus.hash,
            temperature=recipe.temperature,
            seed=recipe.seed,
            prompt_tokens=recipe.prompt_tokens,
            max_tokens=recipe.max_tokens,
            filters=dataclasses.asdict(self.sieve.filters),
            n_prompts=self.n_prompts,
            prompts_hash=self.prompt_digest.hexdigest(),
            n_kept=len(self.documents),
            dropped=self.sieve.dropped,
            n_tokens=self.n_tokens,
            n_bytes=sum(len(document.text.encode()) for document in self.documents),
            n_forward_tokens=self.n_forward_tokens,
            flops_per_token=flops,
            writing_flops=None if flops is None else flops * self.n_forward_tokens,
            text_hash=text_hash,
            made_on=datetime.now(UTC).date().isoformat(),
            made_with={name: version(name) for name in ("dsv3-ablate", "torch", "tokenizers", "numpy")},
        )


def whole_lines(text: str) -> str:
    """The text without its last line if that is cut off; the whole of a text that is one line."""
    return text[: text.rfind("\n") + 1] or text
