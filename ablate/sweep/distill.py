"""A teacher's text from a corpus: choose or train the teacher, let it write, filter, commit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.data.prepare import prepare
from ablate.data.tokenizer import SmallVocabulary
from ablate.presets import preset as named_preset
from ablate.presets import preset_file
from ablate.quantities import duration, listed, scaled
from ablate.runs.events import Event, Listener, Progress
from ablate.runs.job import Job
from ablate.runs.store import Store
from ablate.spec.decoding import run_id

if TYPE_CHECKING:
    from ablate.components.distill.text import Manifest
    from ablate.data.corpus import Corpus
    from ablate.spec.run import Preset, RunSpec
    from ablate.teachers.filters import Filters

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What `dsv3-ablate distill` was asked for.

    `teacher`: the folder of a run's weights, an endpoint's URL, smollm2-135m, hf:NAME, or nothing.
    """

    preset: str  # of the study that will read the text: its vocabulary counts the tokens
    out: Path | None = None  # None: where `run --data` finds it, see `components.distill.text.written_for`
    source: str = "stdlib"
    teacher: str = ""  # empty: train the small dense one of `ablate.teachers.default`
    model: str = ""  # of an endpoint
    key_variable: str = ""  # environment variable that holds an endpoint's key
    n_tokens: int = 250_000
    temperature: float = 0.6
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    folder: Path
    manifest: Manifest


def distill(request: Request, say: Say) -> Written:
    """Write a teacher's text into a new folder; ValueError for whatever makes it impossible."""
    from ablate.components.distill.text import check_out, written_for
    from ablate.teachers.checkpoint import CheckpointTeacher
    from ablate.teachers.generate import Recipe, write_teacher_text
    from ablate.teachers.prompts import KINDS

    out = written_for(request.source) if request.out is None else request.out
    check_out(out)
    teacher = _foreign_teacher(request, say)
    corpus = _corpus(request, say)
    kinds: tuple[str, ...] = KINDS
    if teacher is None:
        # A teacher that has seen this corpus alone continues what it has seen.
        folder = request.teacher or str(_trained(request, out, corpus, say))
        teacher, kinds = CheckpointTeacher(folder, corpus), ("lines",)
    say(
        f"writing {request.n_tokens:,} tokens of a vocabulary of {corpus.vocab_size:,}; until the text is whole its "
        f"rounds are kept in {out}.parts: the same command goes on there, and one with fewer --tokens ends with them"
    )
    recipe = Recipe(n_tokens=request.n_tokens, kinds=kinds, temperature=request.temperature, seed=request.seed)
    manifest = write_teacher_text(
        corpus, teacher, recipe=recipe, filters=_filters(request), out=out, progress=progress_of(say), say=say
    )
    say(_summary(manifest))
    return Written(folder=out, manifest=manifest)


def _filters(request: Request) -> Filters:
    """The default limits; on the loss on its own text that of a teacher for which it was measured."""
    from ablate.teachers.filters import Filters
    from ablate.teachers.smollm2 import MAX_NATS_PER_TOKEN, NAME

    return Filters(max_nats_per_token=MAX_NATS_PER_TOKEN) if request.teacher == NAME else Filters()


def _corpus(request: Request, say: Say) -> Corpus:
    """With the vocabulary of the preset, or the largest that the corpus supports."""
    vocab_size = _preset(request.preset).model.vocab_size
    try:
        return prepare(request.source, vocab_size=vocab_size, progress=say)
    except SmallVocabulary as error:
        say(f"the corpus supports {error.reached:,} tokens, not the {vocab_size:,} of the preset: taking those")
        return prepare(request.source, vocab_size=error.reached, progress=say)


def _preset(name: str) -> Preset:
    return preset_file(Path(name)) if name.endswith(".toml") else named_preset(name)


def _summary(manifest: Manifest) -> str:
    dropped = listed(f"{name} {n}" for name, n in manifest.dropped.items() if n) or "nothing"
    kinds = listed(f"{name} {n}" for name, n in sorted(manifest.n_prompts_by_kind.items()))
    flops, training = manifest.writing_flops, manifest.teacher.get("training_flops")
    said = [
        f"kept {manifest.n_kept} of {manifest.n_prompts} texts, {manifest.n_tokens:,} tokens in {manifest.n_bytes:,} "
        f"bytes; prompts: {kinds}; the filters took: {dropped}",
        f"{manifest.n_forward_tokens / manifest.writing_s:,.0f} of the teacher's tokens a second"
        if manifest.writing_s
        else "",
        f"{scaled(flops, 'FLOP')} to write" if flops else "FLOPs of the writing not known",
        f"{scaled(training, 'FLOP')} to train the teacher" if training else "FLOPs of the teacher's training not known",
        f"{manifest.held_out_bits_per_byte:.3f} bits per byte of the teacher on the corpus's held-out text"
        if manifest.held_out_bits_per_byte
        else "",
    ]
    return "; ".join(part for part in said if part)


def _foreign_teacher(request: Request, say: Say) -> Any:
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

        say("loading SmolLM2-135M-Instruct, about half a minute")
        return load_smollm2()
    if name.startswith("hf:"):
        from ablate.teachers.huggingface import load_named

        say(f"loading {name}")
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


def _trained(request: Request, out: Path, corpus: Corpus, say: Say) -> Path:
    """Weights of the small dense teacher, trained beside `out` unless they are there already."""
    from ablate.components.variants import Variant
    from ablate.runs.conduct import execute_all
    from ablate.runs.executors.local import LocalExecutor, measure_all
    from ablate.teachers.default import default_run

    run = default_run(corpus.hash, vocab_size=corpus.vocab_size, seed=request.seed)
    store = Store(out.parent / f"{out.name}-teacher")
    store.create()
    job = Job(run=run, run_id=run_id(run), variant=Variant.none().levels, corpus=corpus)
    if store.read(job.run_id) is None:
        (step_s,) = measure_all({"teacher": job}, n_parallel=1, n_rounds=1, seconds=1.0).values()
        cost = run.model.cost(run.trainer.sequence_length)
        say(
            f"training a teacher of {cost.trained_parameters:,} parameters on {run.n_tokens:,} tokens of the corpus, "
            f"about {duration(run.n_steps * step_s)}, in {store.folder}"
        )
    outcome = execute_all([job], store, LocalExecutor(store, 1), listener=_training_progress(run, say))
    if outcome.interrupted:
        raise KeyboardInterrupt
    status = outcome.status[job.run_id]
    if status != "finished":
        reasons = [failure.reason for failure in store.failures()] or [status]
        raise ValueError(f"the teacher could not be trained: {reasons[0]}")
    return store.run_folder(job.run_id) / "weights"


def _training_progress(run: RunSpec, say: Say) -> Listener:
    """Says at each twentieth of the training how far it is, and how long the rest takes at that speed."""
    said = 0

    def listener(event: Event) -> None:
        nonlocal said
        if isinstance(event, Progress) and event.step * 20 // run.n_steps > said:
            said = event.step * 20 // run.n_steps
            left = (run.n_steps - event.step) * run.trainer.tokens_per_step / event.tokens_per_s
            loss = "" if event.loss is None else f", loss {event.loss:.3f}"
            say(f"step {event.step:,} of {run.n_steps:,}{loss}, {duration(left)} left")

    return listener


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
