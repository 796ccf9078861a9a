"""A teacher's text from a corpus: choose or train the teacher, let it write, filter, commit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.data.prepare import prepare
from ablate.quantities import duration
from ablate.runs.job import Job
from ablate.runs.store import Store
from ablate.spec.decoding import run_id

if TYPE_CHECKING:
    from ablate.components.distill.text import Manifest
    from ablate.data.corpus import Corpus

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What `dsv3-ablate distill` was asked for.

    `teacher`: the folder of a run's weights, an endpoint's URL, smollm2-135m, hf:NAME, or nothing.
    """

    out: Path
    source: str = "stdlib"
    teacher: str = ""  # empty: train the small dense one of `ablate.teachers.default`
    model: str = ""  # of an endpoint
    key_variable: str = ""  # environment variable that holds an endpoint's key
    n_tokens: int = 250_000
    temperature: float = 0.8
    seed: int = 0


def distill(request: Request, say: Say) -> Manifest:
    """Write a teacher's text into the new folder `request.out`; ValueError for whatever makes it impossible."""
    from ablate.components.distill.text import check_out
    from ablate.teachers.checkpoint import CheckpointTeacher
    from ablate.teachers.default import default_preset
    from ablate.teachers.filters import Filters
    from ablate.teachers.generate import Recipe, write_teacher_text

    check_out(request.out)
    teacher = _foreign_teacher(request)
    corpus = prepare(request.source, vocab_size=default_preset().model.vocab_size, progress=say)
    if teacher is None:
        teacher = CheckpointTeacher(request.teacher or str(_trained(request, corpus, say)), corpus)
    say(f"writing; until the text is whole its rounds are kept in {request.out}.parts: the same command goes on there")
    return write_teacher_text(
        corpus,
        teacher,
        recipe=Recipe(n_tokens=request.n_tokens, temperature=request.temperature, seed=request.seed),
        filters=Filters(),
        out=request.out,
        progress=progress_of(say),
    )


def _foreign_teacher(request: Request) -> Any:
    """A teacher that knows nothing of this program's corpora, or None for one of its runs."""
    name = request.teacher
    if "://" in name:
        return _endpoint(request)
    if "@" in name and not Path(name).exists():
        raise ValueError(
            "--teacher, not shown since it may hold a password, is neither a folder nor an address; give the folder of "
            "a run's weights, hf:NAME, or an endpoint's bare address such as https://host/v1"
        )
    if name == "smollm2-135m":
        from ablate.teachers.smollm2 import load_smollm2

        return load_smollm2()
    if name.startswith("hf:"):
        from ablate.teachers.huggingface import load_named

        return load_named(name.removeprefix("hf:"))
    return None


def _endpoint(request: Request) -> Any:
    try:
        from ablate.teachers.endpoint import EndpointTeacher
    except ModuleNotFoundError as error:
        if error.name not in ("openai", "httpx2"):
            raise
        raise ValueError(
            "an endpoint is asked through the openai client, which is absent: pip install 'dsv3-ablate[endpoint]'"
        ) from None
    if not request.model:
        raise ValueError("--teacher is an endpoint, and --model does not say which of its models writes")
    return EndpointTeacher(base_url=request.teacher, model=request.model, key_variable=request.key_variable)


def _trained(request: Request, corpus: Corpus, say: Say) -> Path:
    """Weights of the small dense teacher, trained beside `out` unless they are there already."""
    from ablate.components.variants import Variant
    from ablate.runs.conduct import execute_all
    from ablate.runs.executors.local import LocalExecutor
    from ablate.teachers.default import default_run

    run = default_run(corpus.hash, seed=request.seed)
    store = Store(request.out.parent / f"{request.out.name}-teacher")
    store.create()
    say(f"training a teacher on {run.n_tokens:,} tokens in {store.folder}")
    job = Job(run=run, run_id=run_id(run), variant=Variant.none().levels, corpus=corpus)
    outcome = execute_all([job], store, LocalExecutor(store, 1), listener=lambda event: None)
    if outcome.interrupted:
        raise KeyboardInterrupt
    status = outcome.status[job.run_id]
    if status != "finished":
        reasons = [failure.reason for failure in store.failures()] or [status]
        raise ValueError(f"the teacher could not be trained: {reasons[0]}")
    return store.run_folder(job.run_id) / "weights"


def progress_of(say: Say) -> Callable[[int, int], None]:
    """Says after each round what is kept, how fast the round was, and how long the rest takes at that speed."""
    kept_before, before = 0, time.monotonic()

    def progress(kept: int, wanted: int) -> None:
        nonlocal kept_before, before
        now = time.monotonic()
        n_new, seconds = kept - kept_before, now - before
        kept_before, before = kept, now
        rest = f", {duration((wanted - kept) * seconds / n_new)} left" if n_new else ""
        say(f"{kept:,} of {wanted:,} tokens kept, {n_new / seconds:,.0f} a second{rest}")

    return progress
