"""A small corpus and nano-sized jobs, prepared once for all tests of runs."""

from __future__ import annotations

import email
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablate.components.variants import Variant
from ablate.data.corpus import Corpus
from ablate.data.prepare import prepare
from ablate.presets import preset
from ablate.runs.job import Job
from ablate.spec.decoding import run_id
from ablate.spec.machine import this_machine


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for path in sorted(Path(email.__file__).parent.glob("*.py")):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def corpus(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(str(text_folder), vocab_size=320, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def make_job(corpus: Corpus) -> Callable[..., Job]:
    """A job of the nano preset without what is `disabled`; further arguments replace trainer fields."""

    def make(
        *disabled: str, seed: int = 0, n_steps: int = 12, n_warmup_steps: int | None = None, **trainer: Any
    ) -> Job:
        base = preset("nano")
        base = replace(base, trainer=replace(base.trainer, **trainer))
        variant = Variant.full(base).without(disabled)
        spec = variant.resolve(base).for_machine(this_machine())
        run = spec.run(corpus_hash=corpus.hash, seed=seed, n_steps=n_steps, n_warmup_steps=n_warmup_steps)
        return Job(run=run, run_id=run_id(run), variant=variant.levels, corpus=corpus)

    return make
