"""A teacher's text from a corpus: choose or train the teacher, let it write, filter, commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.data.prepare import prepare
from ablate.runs.job import Job
from ablate.runs.store import Store
from ablate.spec.decoding import run_id

if TYPE_CHECKING:
    from ablate.components.distill.text import Manifest
    from ablate.data.corpus import Corpus

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What `dsv3-ablate distill` was asked for. `teacher`: a run's weights, an endpoint's URL, hf:NAME, or nothing."""

    out: Path
    source: str = "stdlib"
    teacher: str = ""  # empty: train the small dense one of the ready-made text
    model: str = ""  # of an endpoint
    key_variable: str = ""  # environment variable that holds an endpoint's key
    n_tokens: int = 250_000
    temperature: float = 0.8
    seed: int = 0


def distill(request: Request, say: Say) -> Manifest:
    """Write a teacher's text into the new folder `request.out`; ValueError for whatever makes it impossible."""
    from ablate.components.distill.text import check_out
    from ablate.teachers.filters import Filters
    from ablate.teachers.generate import Recipe, write_teacher_text
    from ablate.teachers.ready import teacher_preset

    check_out(request.out)
    corpus = prepare(request.source, vocab_size=teacher_preset().model.vocab_size, progress=say)
    teacher = _teacher(request, corpus, say)
    say("writing")
    return write_teacher_text(
        corpus,
        teacher,
        recipe=Recipe(n_tokens=request.n_tokens, temperature=request.temperature, seed=request.seed),
        filters=Filters(),
        out=request.out,
        progress=_every_tenth(say),
    )


def _teacher(request: Request, corpus: Corpus, say: Say) -> Any:
    name = request.teacher
    if name.startswith(("http://", "https://")):
        from ablate.teachers.endpoint import EndpointTeacher

        if not request.model:
            raise ValueError(f"the teacher {name} is an endpoint, and --model does not say which of its models writes")
        return EndpointTeacher(base_url=name, model=request.model, key_variable=request.key_variable)
    if name.startswith("hf:"):
        from ablate.teachers.huggingface import HuggingFaceTeacher

        return HuggingFaceTeacher(name.removeprefix("hf:"))
    from ablate.teachers.teacher import CheckpointTeacher

    return CheckpointTeacher(name or str(_trained(request, corpus, say)), corpus)


def _trained(request: Request, corpus: Corpus, say: Say) -> Path:
    """Weights of the small dense teacher, trained beside `out` unless they are there already."""
    from ablate.components.variants import Variant
    from ablate.runs.executors.local import execute_all
    from ablate.teachers.ready import teacher_run

    run = teacher_run(corpus.hash, seed=request.seed)
    store = Store(request.out.parent / f"{request.out.name}-teacher")
    store.create()
    say(f"training a teacher on {run.n_tokens:,} tokens in {store.folder}")
    job = Job(run=run, run_id=run_id(run), variant=Variant.none().levels, corpus=corpus)
    outcome = execute_all([job], store, n_parallel=1, listener=lambda event: None)
    if outcome.interrupted:
        raise KeyboardInterrupt
    status = outcome.status[job.run_id]
    if status != "finished":
        reasons = [failure.reason for failure in store.failures()] or [status]
        raise ValueError(f"the teacher could not be trained: {reasons[0]}")
    return store.run_folder(job.run_id) / "weights"


def _every_tenth(say: Say) -> Callable[[int, int], None]:
    told = [-1]

    def progress(kept: int, wanted: int) -> None:
        tenth = 10 * kept // wanted
        if tenth != told[0]:
            told[0] = tenth
            say(f"{kept:,} of {wanted:,} tokens")

    return progress
