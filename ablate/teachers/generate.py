"""Writing a teacher's text: prompts from training documents, completions, filters, and the manifest of it all."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ablate.components.distill.text import (
    Manifest,
    TeacherDocument,
    check_out,
    check_split,
    compress,
    held_out_hash,
    write_text,
)
from ablate.data.corpus import Corpus, held_out_documents, load_tokenizer, train_documents
from ablate.data.tokenizer import encode_texts
from ablate.teachers.filters import Filters, Sieve
from ablate.teachers.prompts import ASKED, KINDS, Start, prompts
from ablate.teachers.saved import SavedTeacher
from ablate.teachers.teacher import Completion, Scorer, Teacher

MAX_PROMPTS, MIN_PROMPTS = 128, 16  # of a round, whose answers are kept together
EXPECTED_SHARE = 0.8  # of the tokens that are written, kept
# A round of which less than this share passes the filters will not get better by being repeated.
MIN_KEPT_SHARE = 0.02

Progress = Callable[[int, int], None]  # tokens kept, tokens wanted


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How much is written and how. `kinds`: of prompts, see `prompts`; a teacher that does not chat answers none."""

    n_tokens: int = 250_000  # kept, in the corpus's vocabulary; a little more is written
    kinds: tuple[str, ...] = KINDS
    prompt_tokens: int = 64  # of whole lines, at most, in the corpus's vocabulary
    max_tokens: int = 320  # a text, in the teacher's vocabulary
    temperature: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_tokens, self.prompt_tokens, self.max_tokens) < 1 or self.temperature < 0:
            raise ValueError(
                f"n_tokens is {self.n_tokens}, prompt_tokens {self.prompt_tokens}, max_tokens {self.max_tokens} and "
                f"temperature {self.temperature}; the first three must be at least 1, and the temperature 0 or more"
            )


def write_teacher_text(
    corpus: Corpus,
    teacher: Teacher,
    *,
    recipe: Recipe,
    filters: Filters,
    out: Path,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
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
    bits_per_byte = None
    if isinstance(teacher, Scorer):
        if say:
            say("the text is whole; the teacher reads the corpus's held-out text, for its own bits per byte")
        bits_per_byte = _bits_per_byte(teacher, corpus)
    manifest = writer.manifest(text_hash, bits_per_byte)
    write_text(out, compressed, manifest)
    shutil.rmtree(parts, ignore_errors=True)
    return manifest


class _Writer:
    """What has been written so far."""

    def __init__(self, corpus: Corpus, teacher: SavedTeacher, recipe: Recipe, filters: Filters) -> None:
        self.corpus, self.teacher, self.recipe = corpus, teacher, recipe
        self.tokenizer = load_tokenizer(corpus)
        self.sieve = Sieve(filters, [document.text for document in held_out_documents(corpus)])
        self.documents: list[TeacherDocument] = []
        self.asked: Counter[str] = Counter()  # prompts by kind
        self.n_tokens = self.n_forward_tokens = self.n_left_out = self.n_opening_bytes = 0
        self.prompt_digest = hashlib.sha256()

    def rounds(self) -> Iterator[int]:
        """Tokens kept after each round, until they are enough."""
        training, recipe, n_round = train_documents(self.corpus), self.recipe, 0
        # Not of what is still missing: a text that is ended sooner begins with the rounds of the longer one.
        wanted = recipe.n_tokens / recipe.max_tokens / EXPECTED_SHARE
        n = round(min(MAX_PROMPTS, max(MIN_PROMPTS, wanted)))
        while self.n_tokens < recipe.n_tokens:
            chosen = prompts(
                training,
                self.tokenizer,
                kinds=[kind for kind in recipe.kinds if kind not in ASKED or self.teacher.answers],
                prompt_tokens=recipe.prompt_tokens,
                seed=recipe.seed,
                n_round=n_round,
                n=n,
            )
            self._round([start for start in chosen if self._may_be_given(start)])
            n_round += 1
            yield self.n_tokens

    def _may_be_given(self, start: Start) -> bool:
        """Not what stands in held-out text too: the teacher would be led to go on with that."""
        overlaps = self.sieve.overlaps(start.prompt.text)
        self.n_left_out += overlaps
        return not overlaps

    def _round(self, chosen: list[Start]) -> None:
        recipe = self.recipe
        written = self.teacher.complete(
            [start.prompt for start in chosen],
            max_tokens=recipe.max_tokens,
            temperature=recipe.temperature,
            seed=recipe.seed,
        )
        n_before = len(self.documents)
        for start, completion in zip(chosen, written, strict=True):
            self._take(start, completion)
        n_new = len(self.documents) - n_before
        if n_new < max(1, MIN_KEPT_SHARE * len(chosen)):
            dropped = ", ".join(f"{name} {n}" for name, n in self.sieve.dropped.items() if n)
            raise ValueError(
                f"the filters keep {n_new} of the last {len(chosen)} texts (dropped so far: {dropped or 'none'}); "
                "choose another teacher or a temperature at which it writes what passes them"
            )

    def _take(self, start: Start, completion: Completion) -> None:
        self.asked[start.kind] += 1
        self.n_forward_tokens += completion.n_forward_tokens
        self.prompt_digest.update(f"{len(start.prompt.text)} {start.prompt.text}".encode())
        text = start.opening + (completion.text if completion.ended else whole_lines(completion.text))
        if self.sieve.keeps(text, completion.nats_per_token):
            self.documents.append(TeacherDocument(document=start.document, text=text, kind=start.kind))
            self.n_opening_bytes += len(start.opening.encode())
            self.n_tokens += sum(map(len, encode_texts(self.tokenizer, [text])))

    def manifest(self, text_hash: str, held_out_bits_per_byte: float | None) -> Manifest:
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
            n_prompts=self.asked.total(),
            n_prompts_by_kind=dict(self.asked),
            n_prompts_left_out=self.n_left_out,
            prompts_hash=self.prompt_digest.hexdigest(),
            n_kept=len(self.documents),
            n_kept_by_kind=dict(Counter(document.kind for document in self.documents)),
            n_opening_bytes=self.n_opening_bytes,
            dropped=self.sieve.dropped,
            n_tokens=self.n_tokens,
            n_bytes=sum(len(document.text.encode()) for document in self.documents),
            n_forward_tokens=self.n_forward_tokens,
            flops_per_token=flops,
            writing_flops=None if flops is None else flops * self.n_forward_tokens,
            writing_s=self.teacher.seconds,
            held_out_bits_per_byte=held_out_bits_per_byte,
            held_out_hash=held_out_hash(corpus),
            text_hash=text_hash,
            made_on=datetime.now(UTC).date().isoformat(),
            made_with={name: version(name) for name in ("dsv3-ablate", "torch", "tokenizers", "numpy")},
        )


def _bits_per_byte(teacher: Scorer, corpus: Corpus) -> float:
    """Of the teacher on all held-out text of the corpus, whose bytes have the bits of its own tokens."""
    texts = [document.text for document in held_out_documents(corpus)]
    return sum(teacher.nats_of(texts)) / math.log(2) / sum(len(text.encode()) for text in texts)


def whole_lines(text: str) -> str:
    """The text without its last line if that is cut off; the whole of a text that is one line."""
    return text[: text.rfind("\n") + 1] or text
