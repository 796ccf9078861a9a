"""A study from its question to its records: prepare the text, measure the speed, plan, show the plan, run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ablate.presets.rank_memory import rank_memory
from ablate.presets.training_memory import RESERVE, training_memory
from ablate.quantities import memory, plural
from ablate.runs.attempts import at_work
from ablate.runs.conduct import Outcome, execute_all
from ablate.runs.earlier import with_checkpoints_of
from ablate.runs.events import Listener
from ablate.runs.executors.cluster_file import Cluster, read_cluster
from ablate.runs.executors.local import LocalExecutor, measure_all, start_server
from ablate.runs.executors.protocol import Executor
from ablate.runs.executors.slurm import SlurmExecutor
from ablate.runs.job import Job, threads
from ablate.runs.plan import Design, NamedVariant, Plan, check_trainable, make_plan
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.schedules.timeline import middle
from ablate.spec.cost import ModelCost
from ablate.spec.decoding import run_id
from ablate.spec.machine import Machine, has_gpu, this_machine
from ablate.spec.run import DataSpec, Preset, RunSpec, Spec
from ablate.sweep.equality import check_equality
from ablate.sweep.estimate import Estimate, ended, estimate, remember, with_estimates
from ablate.sweep.folder import RESULTS, Claim, Planned, check_writable, default_folder
from ablate.sweep.seeds import Round, this_round
from ablate.sweep.texts import Texts, other_corpora, prepare_texts
from ablate.sweep.variants import variants

if TYPE_CHECKING:
    from ablate.data.corpus import Corpus
    from ablate.data.tokens import TokenFile

TRAINING_BYTES_PER_PARAMETER = 16  # float32 weight, gradient and two moments
PROBE_ROUNDS, PROBE_S = 3, 2.0  # of each variant, where a budget in seconds is turned into steps


class Display(Protocol):
    """Where a study says what it does."""

    def say(self, message: str) -> None: ...
    def show_plan(self, plan: Plan, n_parallel: int, folder: Path, time: Estimate) -> None: ...
    def follow(self, plan: Plan, n_parallel: int) -> Listener: ...
    def end(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a study is run on this machine: nothing here changes a result."""

    out: Path | None = None  # default: results/<what is compared>-<hash of the plan>
    n_parallel: int | None = None
    dry_run: bool = False
    wandb_project: str = ""
    checkpoints: Path | None = None  # a study of the same runs on other ranks, from whose checkpoints they go on
    cluster: str = ""  # a Slurm cluster's name; "": this machine
    timeline: int = 0  # optimizer steps of each run, of which it is recorded what the ranks do


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRun:
    folder: Path
    plan: Plan
    outcome: Outcome | None  # None after a dry run
    n_parallel: int = 1


def run_study(study: Study, options: Options, display: Display) -> StudyRun:
    """Run what of a study has no record yet, as far as it is planned now (`ablate.sweep.seeds`).

    ValueError for whatever makes it impossible, before anything is spent.
    """
    assert study.search is None, "a search is conducted by ablate.sweep.conduct"
    assert study.learning_rates != "tuned", "rates are tuned by ablate.sweep.conduct"
    base = study.load_preset()
    asked, design = variants(study, base)
    return run_variants(study, base, asked, design, options, display, by_rounds=True)


def run_variants(
    study: Study, base: Preset, asked: Sequence[NamedVariant], design: Design, options: Options, display: Display,
    *, by_rounds: bool = False,
) -> StudyRun:  # fmt: skip
    """Run what of these variants has no record yet; of the study everything else: budget, match, margin, text.

    `by_rounds`: the seeds are those of the round that the study is in; else all that the variants have.
    """
    cluster, machine = _where(study, options)
    whole = [replace(v, spec=v.spec.for_machine(machine)) for v in asked]
    check_trainable(whole)
    folder = options.out or RESULTS
    check_writable(folder, folder / "records", folder / "runs")
    costs = {v.name: v.spec.model.cost(v.spec.trainer.sequence_length) for v in whole}
    n_ranks = base.trainer.ranks.world
    if options.timeline and n_ranks == 1:
        raise ValueError("--timeline records what the ranks of a run do, and these have one; give --ranks too")
    n_parallel = min(parallel(costs, options.n_parallel, cluster, n_ranks), sum(len(v.seeds) for v in whole))
    shared = n_ranks == 1 or not has_gpu()  # else each rank has a device of its own
    fits = cluster is None and (not shared or check_memory(costs, n_parallel, dry_run=options.dry_run))
    fits = fits and (not has_gpu() or check_device(whole, dry_run=options.dry_run))
    for name in study.without:
        display.say(f"{name} is off in every variant of this study")
    texts = prepare_texts(whole, display.say)
    corpus = texts[whole[0].name].corpus
    folder = options.out or default_folder(study, base, whole, corpus.hash)
    now, named = Round(n_seeds=max(len(v.seeds) for v in whole), origin="given", reason="as laid out"), whole
    if by_rounds:
        now = this_round(study, base, whole, folder)
        display.say(now.reason)
        asked, design = variants(study, base, now)
        named = [replace(v, spec=v.spec.for_machine(machine)) for v in asked]
    make = partial(
        make_plan, study, base, named, design,
        corpus_hash=corpus.hash,
        corpus=_facts(base.data, corpus, texts[named[0].name].held_out),
        other_corpora=other_corpora(texts, named[0].name),
        bytes_per_token=corpus.bytes_per_token,
        whole=whole,
    )  # fmt: skip
    claim = Claim(Store(folder), study, now, _planning(study, make))
    planned = claim.earlier()
    if planned is None:
        measured = fits and study.match == "seconds"
        planned = claim.make(_measure(whole, texts, n_parallel, display) if measured else {})
    plan, runs = planned
    if cluster is None and not options.dry_run:
        start_server()  # while the plan is priced, written and shown; not before everything that may be refused
    time = estimate(plan, runs, claim.store, n_parallel)
    if study.match != "seconds":
        plan = with_estimates(plan, time)
    if options.timeline:
        _check_timeline(options.timeline, plan, claim.store, display)
    if not options.dry_run:
        plan, runs = claim.take((plan, runs), corpus, [text.corpus for text in texts.values()])
    display.show_plan(plan, n_parallel, folder, time)
    if options.dry_run:
        return StudyRun(folder=folder, plan=plan, outcome=None, n_parallel=n_parallel)
    jobs = _jobs(plan, runs, texts, options, group=folder.absolute().name)
    if options.checkpoints:
        jobs = with_checkpoints_of(jobs, options.checkpoints)
    if n_ranks > 1:
        check_equality(named, display.say, folder)
    executor: Executor = LocalExecutor(claim.store, n_parallel)
    if cluster:
        executor = SlurmExecutor(claim.store, cluster, options.cluster, options.n_parallel)
    listener, earlier = display.follow(plan, n_parallel), ended(claim.store)
    try:
        with at_work(folder):
            outcome = execute_all(jobs, claim.store, executor, listener=listener)
    finally:
        display.end()
    remember(plan, runs, claim.store, earlier)
    return StudyRun(folder=folder, plan=plan, outcome=outcome, n_parallel=n_parallel)


def _where(study: Study, options: Options) -> tuple[Cluster | None, Machine]:
    """The cluster, if it is one, and what the runs' backends are chosen for."""
    if not options.cluster:
        return None, this_machine()
    if study.match == "seconds":
        raise ValueError(
            "match is seconds, which are measured on the machine that submits and not on the cluster; give a budget of "
            "flops or tokens, or run the study in a job of one node"
        )
    cluster = read_cluster(options.cluster)
    return cluster, cluster.machine(this_machine())


def _planning(study: Study, make: Callable[..., Planned]) -> Callable[[Mapping[str, float]], Planned]:
    """What plans a study with the speeds of its variants.

    Only a budget in seconds needs them: what is wrong with any other is told here, before they are measured.
    """
    if study.match == "seconds" and study.budget is not None:
        return lambda step_s: make(step_s=step_s)
    plan, runs = make()
    return lambda step_s: (plan.with_speeds(step_s), runs)


def parallel(
    costs: Mapping[str, ModelCost], asked: int | None, cluster: Cluster | None = None, n_ranks: int = 1
) -> int:
    """Runs at a time: as many as there are cores for their threads, and memory; one on a GPU; a cluster says itself."""
    if asked is not None:
        if asked < 1:
            raise ValueError(f"--jobs is {asked}; it must be at least 1")
        return asked
    if cluster:
        return cluster.max_array
    if has_gpu():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    largest = max(cost.trained_parameters for cost in costs.values())
    fitting = _available_bytes() // (TRAINING_BYTES_PER_PARAMETER * largest)
    return max(1, min(cores // (threads(largest) * n_ranks), fitting))


def check_memory(costs: Mapping[str, ModelCost], n_parallel: int, *, dry_run: bool) -> bool:
    """Whether the largest variant can be trained here; ValueError if it is to be and cannot."""
    name, cost = max(costs.items(), key=lambda item: item[1].trained_parameters)
    needed = TRAINING_BYTES_PER_PARAMETER * cost.trained_parameters * n_parallel
    available = _available_bytes()
    if needed <= available:
        return True
    if dry_run:
        return False
    raise ValueError(
        f"training {name} needs at least {needed / 2**30:.1f} GiB for its weights, gradients and moments, and this "
        f"machine has {available / 2**30:.1f}; choose a smaller --preset or fewer --jobs"
    )


def check_device(asked: Sequence[NamedVariant], *, dry_run: bool) -> bool:
    """Whether every variant's step fits the GPU, activations and logits included; ValueError if not, but in a dry run.

    The closed forms of `ablate.presets.training_memory` and `rank_memory`; a variant of which it knows nothing passes.
    """
    available = _available_bytes()
    for variant in asked:
        trainer = variant.spec.trainer
        needed = _needed_bytes(variant.spec)
        if needed <= (1 - RESERVE) * available:
            continue
        if dry_run:
            return False
        raise ValueError(
            f"training {variant.name} needs about {memory(needed)} at {trainer.micro_batch_size} sequences a "
            f"micro-batch, and this GPU has {memory(available)}; choose a smaller --preset, --recompute full, or a "
            "preset file with a smaller trainer.micro_batch_size"
        )
    return True


def _needed_bytes(spec: Spec) -> float:
    """Of a step on one device, of the fullest rank where there are several; 0 where nobody knows."""
    if spec.trainer.ranks.world > 1:
        return max((place.total for place in rank_memory(spec.model, spec.trainer)), default=0.0)
    found = training_memory(spec.model, spec.trainer)
    return 0.0 if found is None else found.peak


def _available_bytes() -> int:
    """Memory of the GPU, or without one of the machine."""
    if has_gpu():
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _measure(
    named: list[NamedVariant], texts: Mapping[str, Texts], n_parallel: int, display: Display
) -> dict[str, float]:  # fmt: skip
    """Seconds of a step of each variant, with which steps are bought; of runs on several ranks nothing is measured."""
    if named[0].spec.trainer.ranks.world > 1:
        return {}
    display.say("a budget in seconds: measuring the speed of each variant on this machine")
    jobs = {}
    for v in named:
        corpus = texts[v.name].corpus
        run = v.spec.run(corpus_hash=corpus.hash, seed=0, n_steps=1)
        jobs[v.name] = Job(run=run, run_id=run_id(run), variant=v.levels, corpus=corpus)
    return measure_all(jobs, n_parallel=n_parallel, n_rounds=PROBE_ROUNDS, seconds=PROBE_S)


def _jobs(
    plan: Plan,
    runs: Mapping[str, RunSpec],
    texts: Mapping[str, Texts],
    options: Options,
    group: str,
) -> list[Job]:
    """Seed by seed over all variants, so that a study that is stopped has whole pairs."""
    jobs = [
        Job(
            run=runs[identity],
            run_id=identity,
            variant=v.levels,
            corpus=texts[v.name].corpus,
            held_out_texts=texts[v.name].held_out,
            wandb_project=options.wandb_project,
            wandb_group=group,
            timeline=options.timeline,
        )
        for v in plan.variants
        for identity in v.run_ids
    ]
    return sorted(jobs, key=lambda job: job.run.seed)


def _check_timeline(n_recorded: int, plan: Plan, store: Store, display: Display) -> None:
    """ValueError where a run has too few steps; that what has ended without a timeline gets none is said."""
    for v in plan.variants:
        middle(v.n_steps, n_recorded)
    ids = [identity for v in plan.variants for identity in v.run_ids]
    late = sum(store.status(i) is not None and not store.timeline_file(i).exists() for i in ids)
    if late:
        display.say(
            f"{plural(late, 'run')} ended without a timeline and will not be repeated for one; choose a new --out"
        )


def _facts(data: DataSpec, corpus: Corpus, texts: Mapping[str, TokenFile]) -> dict[str, Any]:
    """What the plan says of the text."""
    asked = {"source": data.source, "max_bytes": data.max_bytes, "text_field": data.text_field}
    return {key: value for key, value in asked.items() if value} | {
        "hash": corpus.hash,
        "vocab_size": corpus.vocab_size,
        "train_tokens": corpus.train_tokens,
        "held_out_tokens": corpus.held_out_tokens,
        "left_out": corpus.left_out.counts,
        "held_out_texts": {name: text.hash for name, text in texts.items()},
    }
