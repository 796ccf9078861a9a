"""A teacher's answers kept as they come, so that writing that was interrupted goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablate.files import read_sealed, write_sealed
from ablate.teachers.teacher import Completion, Prompt, Teacher


class SavedTeacher:
    """A teacher whose answers to each call are kept in `folder`; the same call again is answered from there.

    The same: of the same teacher as it describes itself, with the same prompts in their order, limits and seed. A file
    that is torn or altered counts as absent. `seconds`: what the calls so far took when they were answered first.
    """

    def __init__(self, teacher: Teacher, folder: Path) -> None:
        self.teacher, self.folder = teacher, folder
        self.seconds = 0.0

    @property
    def answers(self) -> bool:
        return self.teacher.answers

    @property
    def flops_per_token(self) -> float | None:
        return self.teacher.flops_per_token

    def describe(self) -> dict[str, Any]:
        return self.teacher.describe()

    def complete(
        self, prompts: Sequence[Prompt], *, max_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        """ValueError if the folder has no room for what was written."""
        options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        asked = [[prompt.text, prompt.asks] for prompt in prompts]
        call = json.dumps([self.describe(), asked, options], sort_keys=True)
        path = self.folder / f"{hashlib.sha256(call.encode()).hexdigest()}.json"
        saved = read_sealed(path)
        if saved is None:
            before = time.monotonic()
            written = [dataclasses.asdict(answer) for answer in self.teacher.complete(prompts, **options)]
            saved = {"seconds": time.monotonic() - before, "answers": written}
            write_sealed(path, saved, "a round of the teacher's text")
        self.seconds += saved["seconds"]
        return [Completion(**answer) for answer in saved["answers"]]
