"""What a teacher is asked for: beginnings and requests made of training documents, of the kinds that each has.

Python gives heads of functions and classes, with and without the first paragraph of their docstrings, and what
modules' docstrings begin with; prose gives headings and first sentences; any other text gives whole lines. A teacher
that was tuned to chat is also asked to explain what they are about and to write exercises with solutions on it
(the kinds of text of arXiv:2306.11644).
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from ablate.data.source import Document
from ablate.teachers.teacher import Prompt, draws

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTINUED = ("head", "docstring", "module", "sentence")
ASKED = ("explain", "exercise")
KINDS = (*CONTINUED, *ASKED, "lines")
MIN_TOPIC, MAX_TOPIC = 24, 320  # characters of a docstring's first paragraph or a sentence
MAX_HEAD = 240  # characters
FENCE = "```python\n"  # what code begins with in the text of a model that was tuned to chat
HEADING = re.compile(r"^(?:#{1,6} +(.{4,80}?)#*|(.{4,80})\n(?:=+|-+|~+))$", re.MULTILINE)
SENTENCE = re.compile(rf"[^\s].{{{MIN_TOPIC},{MAX_TOPIC}}}?[.!?](?=\s|$)", re.DOTALL)

EXPLAIN_CODE = (
    "Explain to a student what {what} in Python does and how it works, with a short example of code that uses it. "
    "Its documentation says: {topic}"
)
EXERCISE_CODE = (
    "Write an exercise for a Python textbook, and then its solution in Python with a short explanation. "
    "The exercise is about what {what} does: {topic}"
)
EXPLAIN = "Explain the following to a student in a few paragraphs, with an example: {topic}"
EXERCISE = "Write an exercise for a textbook, and then its solution, step by step. It is about the following: {topic}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One text to be written: the training document it comes from, what the teacher is given, and of what kind.

    `opening`: what the text begins with, being the whole prompt; a request has none. It ends before a line's end, so
    that the teacher itself chooses the token that holds that end and the next line's indentation.
    """

    document: str
    kind: str
    place: int  # characters from the document's beginning
    prompt: Prompt
    opening: str = ""


def prompts(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    *,
    kinds: Sequence[str],
    prompt_tokens: int,
    seed: int,
    n_round: int,
    n: int,
) -> list[Start]:
    """Up to `n` starts, spread evenly over the documents' text; another seed or round gives others.

    Of a document's kinds each is as likely as another. `lines` stands in for a document that has none of `kinds`.
    """
    ends = list(accumulate(len(document.text) for document in documents))
    drawn = draws(seed, f"prompts of round {n_round}", n)
    chosen = draws(seed, f"kinds of prompts of round {n_round}", n)
    offsets = (np.arange(n) + drawn) * (ends[-1] / n)
    found = []
    for offset, draw in zip(offsets.astype(int).tolist(), chosen.tolist(), strict=True):
        number = min(bisect_right(ends, offset), len(documents) - 1)
        document = documents[number]
        place = offset - (ends[number] - len(document.text))
        by_kind = {kind: found for kind, found in _starts(document).items() if kind in kinds}
        if by_kind:
            names = sorted(by_kind)
            found.append(min(by_kind[names[int(draw * len(names))]], key=lambda start: abs(start.place - place)))
            continue
        text = _lines(document.text, place, tokenizer, prompt_tokens)
        if text.strip():
            found.append(Start(document=document.name, kind="lines", place=place, prompt=Prompt(text=text)))
    return found


@lru_cache(maxsize=4096)
def _starts(document: Document) -> dict[str, list[Start]]:
    """Kind -> starts in the document's order; no kind without one."""
    found: dict[str, list[Start]] = {}
    make = _python if document.name.removesuffix(" (head)").endswith((".py", ".pyi")) else _prose
    for start in make(document):
        found.setdefault(start.kind, []).append(start)
    return found


def _python(document: Document) -> Iterator[Start]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in the corpus's strings
            tree = ast.parse(document.text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = document.text.split("\n")
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    module = document.name.removesuffix(" (head)").removesuffix("i").removesuffix(".py").replace("/", ".")
    module = module.removesuffix(".__init__")
    given = _maker(document)
    if topic := _topic(tree):
        yield given("module", 0, f'{FENCE}"""{topic}')
        yield from _requests(given, 0, f"the module `{module}`", topic, EXPLAIN_CODE, EXERCISE_CODE)
    for heading in HEADING.finditer(ast.get_docstring(tree) or ""):
        title = (heading[1] or heading[2]).strip()
        place = max(document.text.find(heading[0]), 0)
        yield from _requests(given, place, f"the module `{module}`", title, EXPLAIN_CODE, EXERCISE_CODE)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _definition(node, lines, starts[node.lineno - 1], module, given)


def _definition(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
    lines: list[str],
    place: int,
    module: str,
    given: Callable[..., Start],
) -> Iterator[Start]:
    head = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])).strip()
    if not head.endswith(":") or len(head) > MAX_HEAD:
        return
    topic = _topic(node)
    if not isinstance(node, ast.ClassDef):
        yield given("head", place, f"{FENCE}{head}")
    if topic:
        quoted = textwrap.indent(f'"""{topic}"""', "    ")
        yield given("docstring", place, f"{FENCE}{head}\n{quoted}")
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        what = f"the {kind} `{node.name}` of the module `{module}`"
        yield from _requests(given, place, what, topic, EXPLAIN_CODE, EXERCISE_CODE)


def _topic(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    """The first paragraph of a docstring, or "" where it says too little or too much."""
    paragraph = (ast.get_docstring(node) or "").split("\n\n")[0].strip()
    return paragraph if MIN_TOPIC <= len(paragraph) <= MAX_TOPIC and '"""' not in paragraph else ""


def _prose(document: Document) -> Iterator[Start]:
    given = _maker(document)
    for found in HEADING.finditer(document.text):
        title = (found[1] or found[2]).strip()
        yield given("sentence", found.start(), found[0])
        yield from _requests(given, found.start(), "", title, EXPLAIN, EXERCISE)
    place = 0
    for paragraph in re.split(r"(\n\s*\n)", document.text):
        sentence = SENTENCE.match(paragraph)
        if sentence is not None:
            topic = " ".join(sentence[0].split())
            yield given("sentence", place, sentence[0])
            yield from _requests(given, place, "", topic, EXPLAIN, EXERCISE)
        place += len(paragraph)


def _maker(document: Document) -> Callable[..., Start]:
    def given(kind: str, place: int, opening: str) -> Start:
        return Start(document=document.name, kind=kind, place=place, prompt=Prompt(text=opening), opening=opening)

    return given


def _requests(
    given: Callable[..., Start], place: int, what: str, topic: str, explain: str, exercise: str
) -> Iterator[Start]:
    document = given("", place, "").document
    topic = " ".join(topic.split())
    for kind, request in (("explain", explain), ("exercise", exercise)):
        prompt = Prompt(text=request.format(what=what, topic=topic), asks=True)
        yield Start(document=document, kind=kind, place=place, prompt=prompt)


def _lines(text: str, offset: int, tokenizer: Tokenizer, n_tokens: int) -> str:
    """Up to `n_tokens` tokens of whole lines from the one in which the offset lies; of a line, where it is long."""
    start = text.rfind("\n", 0, offset) + 1
    # More characters than so many tokens have in any vocabulary; the rest of a long document need not be encoded.
    piece = text[start : start + 16 * n_tokens]
    encoding = tokenizer.encode(piece, add_special_tokens=False)
    cut = encoding.offsets[n_tokens - 1][1] if len(encoding.ids) > n_tokens else len(piece)
    return piece[: piece.rfind("\n", 0, cut) + 1] or piece[:cut]
