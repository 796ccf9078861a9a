"""A study from its question to its records: prepare the text, measure the speed, plan, show the plan, run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ablate.components.component import ON
from ablate.components.registry import COMPONENTS
from ablate.data.windows import Windows
from ablate.documents import read_json
from ablate.files import replace_file, sealed
from ablate.runs.events import Listener
from ablate.runs.executors.local import Outcome, execute_all, measure_all
from ablate.runs.job import Job
from ablate.runs.plan import NamedVariant, Plan, check_trainable, make_plan, read_plan
from ablate.runs.store import Store
from ablate.runs.study import Study, to_toml
from ablate.spec.cost import ModelCost
from ablate.spec.decoding import canonical, encode
from ablate.spec.machine import has_gpu, this_machine
from ablate.spec.run import Preset, RunSpec
from ablate.sweep.variants import variants

if TYPE_CHECKING:
    from ablate.data.corpus import Corpus
    from ablate.data.tokens import TokenFile

TRAINING_BYTES_PER_PARAMETER = 16  # float32 weight, gradient and two moments
SMALL_PARAMETERS = (
    20_000_000  # below, one thread a run and a run a core is the faster way (benchmarks/parallel_runs.py)
)


class Display(Protocol):
    """Where a study says what it does."""

    def say(self, message: str) -> None: ...
    def show_plan(self, plan: Plan, n_parallel: int, folder: Path) -> None: ...
    def follow(self, plan: Plan, n_parallel: int) -> Listener: ...
    def end(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a study is run on this machine: nothing here changes a result."""

    out: Path | None = None  # default: results/<what is compared>-<hash of the plan>
    n_parallel: int | None = None
    dry_run: bool = False
    wandb_project: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRun:
    folder: Path
    plan: Plan
    outcome: Outcome | None  # None after a dry run


def run_study(study: Study, options: Options, display: Display) -> StudyRun:
    """Run what of a study has no record yet. ValueError for whatever makes it impossible, before anything is spent."""
    base = study.load_preset()
    asked, design = variants(study, base)
    named = [replace(v, spec=v.spec.for_machine(this_machine())) for v in asked]
    check_trainable(base, named)
    costs = {v.name: v.spec.model.cost(base.trainer.sequence_length) for v in named}
    n_parallel, n_threads = parallel(costs, options.n_parallel)
    fits = _check_memory(costs, n_parallel, dry_run=options.dry_run)
    for name in study.without:
        display.say(f"{name} is off in every variant of this study")
    corpus = _prepare(base.data.source, base.data.max_bytes, base.model.vocab_size, display)
    texts = _held_out_texts(named, corpus)
    for text in (corpus.train, corpus.held_out, *texts.values()):
        Windows(text, base.trainer.sequence_length)  # a text shorter than a sequence is told now
    folder = options.out or Path("results") / _slug(study, base, named, corpus.hash)
    step_s = _known_speeds(Store(folder), study)
    if step_s is None:
        step_s = _measure(named, corpus, n_threads, display) if fits else {}
    plan, runs = make_plan(
        study,
        base,
        named,
        design,
        corpus_hash=corpus.hash,
        corpus=_facts(base.data.source, corpus, texts),
        step_s=step_s,
        bytes_per_token=corpus.bytes_per_token,
    )
    display.show_plan(plan, n_parallel, folder)
    if options.dry_run:
        return StudyRun(folder=folder, plan=plan, outcome=None)
    store = Store(folder)
    _claim(store, study, plan, corpus)
    jobs = _jobs(plan, runs, corpus, texts, n_threads, options.wandb_project)
    listener = display.follow(plan, n_parallel)
    try:
        outcome = execute_all(jobs, store, n_parallel=n_parallel, listener=listener)
    finally:
        display.end()
    return StudyRun(folder=folder, plan=plan, outcome=outcome)


def parallel(costs: Mapping[str, ModelCost], asked: int | None) -> tuple[int, int]:
    """Runs at a time, and threads of each. Small models on a CPU run side by side, one thread each."""
    if asked is not None and asked < 1:
        raise ValueError(f"--jobs is {asked}; it must be at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if has_gpu():
        return asked or 1, max(1, cores // (asked or 1))
    small = max(cost.trained_parameters for cost in costs.values()) < SMALL_PARAMETERS
    n_parallel = asked or (cores if small else 1)
    return n_parallel, max(1, cores // n_parallel)


def _check_memory(costs: Mapping[str, ModelCost], n_parallel: int, *, dry_run: bool) -> bool:
    """Whether the largest variant can be trained here; ValueError if it is to be and cannot."""
    name, cost = max(costs.items(), key=lambda item: item[1].trained_parameters)
    needed = TRAINING_BYTES_PER_PARAMETER * cost.trained_parameters * n_parallel
    if has_gpu():
        import torch

        available = torch.cuda.get_device_properties(0).total_memory
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed <= available:
        return True
    if dry_run:
        return False
    raise ValueError(
        f"training {name} needs at least {needed / 2**30:.1f} GiB for its weights, gradients and moments, and this "
        f"machine has {available / 2**30:.1f}; choose a smaller --preset or fewer --jobs"
    )


def _prepare(source: str, max_bytes: int | None, vocab_size: int, display: Display) -> Corpus:
    from ablate.data.prepare import prepare

    return prepare(source, vocab_size=vocab_size, max_bytes=max_bytes, progress=display.say)


def _held_out_texts(named: Sequence[NamedVariant], corpus: Corpus) -> dict[str, TokenFile]:
    """Further held-out sets that components bring which are on somewhere: evaluated for every variant alike."""
    from ablate.data.prepare import encode_documents

    found = {}
    for c in COMPONENTS:
        if c.held_out_texts is not None and any(v.levels[c.name] == ON for v in named):
            texts = c.held_out_texts(named[0].spec.preset.settings[c.name])
            found[c.name] = encode_documents(corpus, texts, name=f"{c.name} held-out")
    return found


def _measure(named: list[NamedVariant], corpus: Corpus, n_threads: int, display: Display) -> dict[str, float]:
    display.say("measuring the speed of each variant on this machine")
    jobs = {}
    for v in named:
        run = v.spec.run(corpus_hash=corpus.hash, seed=0, n_steps=1)
        jobs[v.name] = Job(run=run, variant=v.levels, corpus=corpus, n_threads=n_threads)
    return measure_all(jobs)


def _jobs(
    plan: Plan,
    runs: Mapping[str, RunSpec],
    corpus: Corpus,
    texts: Mapping[str, TokenFile],
    n_threads: int,
    wandb_project: str,
) -> list[Job]:
    """Seed by seed over all variants, so that a study that is stopped has whole pairs."""
    jobs = [
        Job(
            run=runs[identity],
            variant=v.levels,
            corpus=corpus,
            held_out_texts=texts,
            n_threads=n_threads,
            wandb_project=wandb_project,
        )
        for v in plan.variants
        for identity in v.run_ids
    ]
    return sorted(jobs, key=lambda job: job.run.seed)


def _facts(source: str, corpus: Corpus, texts: Mapping[str, TokenFile]) -> dict[str, Any]:
    """What the plan says of the text."""
    return {
        "source": source,
        "hash": corpus.hash,
        "vocab_size": corpus.vocab_size,
        "train_tokens": corpus.train_tokens,
        "held_out_tokens": corpus.held_out_tokens,
        "held_out_texts": {name: text.hash for name, text in texts.items()},
    }


def _claim(store: Store, study: Study, plan: Plan, corpus: Corpus) -> None:
    """Write study and plan into the folder; ValueError if another study lives there."""
    if store.plan_file.exists():
        known = read_plan(store.plan_file)
        if {v.run_ids for v in known.variants} != {v.run_ids for v in plan.variants}:
            raise ValueError(
                f"{store.folder} holds another study ({known.question!r}); choose another folder with --out"
            )
    store.create()
    replace_file(store.study_file, to_toml(study), "the study")
    replace_file(store.plan_file, sealed(encode(plan)), "the plan")
    tokenizer = read_json(corpus.folder / "tokenizer.json", "the tokenizer", "prepare the corpus again")
    replace_file(store.tokenizer_file, sealed(tokenizer), "the tokenizer")


def _known_speeds(store: Store, study: Study) -> dict[str, float] | None:
    """Speeds that the same study was planned with before: a budget in seconds then means the same steps again."""
    if not store.plan_file.exists() or not store.study_file.exists():
        return None
    if store.study_file.read_text(encoding="utf-8") != to_toml(study):
        return None
    return {v.name: v.step_s for v in read_plan(store.plan_file).variants if v.step_s is not None}


def _slug(study: Study, base: Preset, named: list[NamedVariant], corpus_hash: str) -> str:
    """A folder's name that the same command finds again, and another study does not."""
    parts = [[encode(v.spec.model), encode(v.spec.data.text), encode(v.spec.trainer)] for v in named]
    digest = hashlib.sha256(canonical([to_toml(study), corpus_hash, base.n_tokens, parts]).encode()).hexdigest()[:8]
    names = "-".join(v.name for v in named[1:3]).replace(" ", "").replace("=", "-").strip("-+")
    kept = "".join(c for c in names if c.isalnum() or c in "-_+")[:40]
    return f"{base.name}-{kept}-{digest}"
