"""What a teacher is asked for: kinds of prompts, from the kinds of documents."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from ablate.data.source import Document
from ablate.teachers.prompts import ASKED, CONTINUED, FENCE, KINDS, Start, prompts

CODE = '''"""Queues that several threads can share, and what they cost.

Length
------

Not known.
"""

class Queue(object):
    """A queue of a given maximal size, first in, first out."""

    def put(self, item, *,
            block=True):
        """Put an item into the queue, waiting for room in it."""
        return item

    async def close(self): return None


def short(x):
    """Too short."""
    return "def no(x):"
'''
PROSE = """# On the speed of ships

A ship is slower in shallow water than it is at sea. Its wave is longer.

Short. No.

The second paragraph also
begins with a sentence of two lines. It goes on.
"""


def starts(name: str, text: str, **options: Any) -> list[Start]:
    chosen = {"kinds": KINDS, "prompt_tokens": 8, "seed": 0, "n_round": 0, "n": 200} | options
    return prompts([Document(name=name, text=text)], None, **chosen)  # type: ignore[arg-type] # no lines are asked for


def given(found: list[Start], kind: str) -> set[str]:
    return {start.prompt.text for start in found if start.kind == kind}


def test_python_gives_heads_docstrings_and_requests() -> None:
    found = starts("a/queues.py", CODE)
    put = "def put(self, item, *,\n        block=True):"
    assert given(found, "head") == {FENCE + put, f"{FENCE}def short(x):"}
    assert given(found, "docstring") == {
        f'{FENCE}class Queue(object):\n    """A queue of a given maximal size, first in, first out."""',
        f'{FENCE}{put}\n    """Put an item into the queue, waiting for room in it."""',
    }
    assert given(found, "module") == {f'{FENCE}"""Queues that several threads can share, and what they cost.'}
    for kind, word in (("explain", "Explain"), ("exercise", "exercise")):
        requests = given(found, kind)
        assert len(requests) == 4, "the module, its section, the class and the function that says enough"
        assert all(word in request for request in requests)
        assert any("the function `put` of the module `a.queues`" in request for request in requests)
        assert any(request.endswith(": Length") for request in requests)


def test_prose_gives_headings_and_first_sentences() -> None:
    found = starts("essay.md", PROSE)
    first = "A ship is slower in shallow water than it is at sea."
    second = "The second paragraph also\nbegins with a sentence of two lines."
    assert given(found, "sentence") == {"# On the speed of ships", first, second}
    assert {request.rpartition(": ")[2] for request in given(found, "explain")} == {
        "On the speed of ships", first, " ".join(second.split())
    }  # fmt: skip
    assert {start.kind for start in found} == {"sentence", *ASKED}


@pytest.mark.parametrize(("name", "text"), [("a/queues.py", CODE), ("essay.md", PROSE)])
def test_texts_begin_with_what_was_given_and_every_kind_comes_as_often(name: str, text: str) -> None:
    found = starts(name, text, n=3_000)
    for start in found:
        assert start.prompt.asks == (start.kind in ASKED)
        assert start.opening == ("" if start.prompt.asks else start.prompt.text)
        assert start.opening == start.opening.rstrip(), "the teacher chooses how the next line is indented"
        assert start.document == name
    counts = Counter(start.kind for start in found)
    assert min(counts.values()) > 0.8 * max(counts.values())


def test_a_teacher_that_does_not_chat_is_asked_nothing() -> None:
    assert {start.kind for start in starts("a/queues.py", CODE, kinds=CONTINUED)} == {"head", "docstring", "module"}


def test_seeds_and_rounds_differ_and_a_broken_file_gives_no_python() -> None:
    assert starts("a.py", CODE) == starts("a.py", CODE)
    assert starts("a.py", CODE) != starts("a.py", CODE, seed=1)
    assert starts("a.py", CODE) != starts("a.py", CODE, n_round=1)

    class Lines:
        def encode(self, text: str, add_special_tokens: bool) -> Any:
            return type("Encoding", (), {"ids": [0], "offsets": [(0, 1)]})

    documents = [Document(name="a.py", text=f"(\n{CODE}")]
    found = prompts(documents, Lines(), kinds=KINDS, prompt_tokens=8, seed=0, n_round=0, n=9)  # type: ignore[arg-type]
    assert {start.kind for start in found} == {"lines"}
