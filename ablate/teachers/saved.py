"""A teacher's answers kept as they come, so that writing that was interrupted goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablate.files import read_sealed, write_sealed
from ablate.teachers.teacher import Completion, Teacher


class SavedTeacher:
    """A teacher whose answers to each call are kept in `folder`; the same call again is answered from there.

    The same: of the same teacher as it describes itself, with the same prompts in their order, limits and seed. A file
    that is torn or altered counts as absent.
    """

    def __init__(self, teacher: Teacher, folder: Path) -> None:
        self.teacher, self.folder = teacher, folder

    @property
    def flops_per_token(self) -> float | None:
        return self.teacher.flops_per_token

    def describe(self) -> dict[str, Any]:
        return self.teacher.describe()

    def complete(self, prompts: Sequence[str], *, max_tokens: int, temperature: float, seed: int) -> list[Completion]:
        options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        call = json.dumps([self.describe(), list(prompts), options], sort_keys=True)
        path = self.folder / f"{hashlib.sha256(call.encode()).hexdigest()}.json"
        saved = read_sealed(path)
        if saved is not None:
            return [Completion(**answer) for answer in saved]
        written = self.teacher.complete(prompts, **options)
        write_sealed(path, [dataclasses.asdict(answer) for answer in written])
        return written
