"""From a study to its runs: matched budgets, seeds, and the price of it all before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ablate.documents import read_document
from ablate.parallel.layout import check_ranks
from ablate.runs.study import Match, Study
from ablate.spec.decoding import FORBID_UNKNOWN, decode, run_id
from ablate.spec.run import Preset, RunSpec, Spec

CURE = "give the study's command again: it writes the plan anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedVariant:
    """A variant of a study: its levels, its specification, and the seeds that it runs with."""

    name: str
    levels: Mapping[str, str]
    spec: Spec
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """How a study's runs are laid out, as far as it matters to whoever reads their results."""

    name: str
    order: int | None = None  # interactions of more components are assumed to be none; None: nothing is assumed
    stages: int = 1  # times the results are read, each time at a part of alpha

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def confidence(self, together: float) -> float:
        """Confidence of the intervals read after each stage, so that all readings together keep `together`."""
        return 1 - (1 - together) / self.stages


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedVariant:
    """One variant's share of a study. `cost` is `ModelCost.summary()`; `run_ids` are in the order of the seeds."""

    name: str
    levels: Mapping[str, str]
    cost: Mapping[str, int | float]
    learning_rate: float
    n_steps: int
    n_tokens: int
    flops: int  # training FLOPs of one run, with what is charged of a teacher's
    seeds: tuple[int, ...]
    run_ids: tuple[str, ...]
    step_s: float | None = None  # measured on this machine; None if it was not
    text: Mapping[str, Any] = field(default_factory=dict)  # of a teacher's text; empty for the corpus alone
    n_branch_steps: int = 0  # of all branches together, on top of the trunk's n_steps

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    @property
    def run_s(self) -> float | None:
        """Estimated seconds of one run."""
        return None if self.step_s is None else self.step_s * self.n_all_steps

    @property
    def n_all_steps(self) -> int:
        """Of trunk and branches."""
        return self.n_steps + self.n_branch_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that a study will run, before it runs: the file plan.json, and what results are read by."""

    question: str
    preset: str
    preset_title: str
    design: Design
    match: Match
    budget: float  # of a run, in the unit of `match`
    seeds: tuple[int, ...]  # every seed that some variant runs with
    margin_nats: float
    confidence: float  # of all readings of the design together
    corpus: Mapping[str, Any]
    variants: tuple[PlannedVariant, ...]  # the reference first

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError("plan.variants is empty; a study has at least one variant")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"plan.confidence is {self.confidence}; it must lie between 0.5 and 1")
        if self.margin_nats < 0:
            raise ValueError(f"plan.margin_nats is {self.margin_nats}; it must be 0 or more")
        for planned in self.variants:
            if not set(planned.seeds) <= set(self.seeds):
                raise ValueError(f"plan.variants: {planned.name} has seeds that plan.seeds has not")
            if len(planned.run_ids) != len(planned.seeds):
                raise ValueError(
                    f"plan.variants: {planned.name} has {len(planned.run_ids)} runs for {len(planned.seeds)} seeds; "
                    "each seed has one"
                )

    @property
    def interval_confidence(self) -> float:
        """Of each interval that is read."""
        return self.design.confidence(self.confidence)

    @property
    def n_runs(self) -> int:
        return sum(len(variant.run_ids) for variant in self.variants)

    @property
    def tokens_per_step(self) -> int:
        """Equal for all variants."""
        return self.variants[0].n_tokens // self.variants[0].n_steps

    def with_speeds(self, step_s: Mapping[str, float]) -> Plan:
        """The same runs, with the seconds of a step of each variant as far as they are known."""
        return replace(self, variants=tuple(replace(v, step_s=step_s.get(v.name)) for v in self.variants))

    def seconds(self, n_parallel: int) -> float | None:
        """Estimated time of all runs with `n_parallel` at a time."""
        times = [v.run_s * len(v.run_ids) for v in self.variants if v.run_s is not None]
        return sum(times) / n_parallel if len(times) == len(self.variants) else None


def other_study(known: Plan, plan: Plan) -> str:
    """What `known`, whose runs are not those of `plan`, is beside it, and what to do."""
    asked, known_asked = (
        (
            *(p.question, p.preset, p.design, p.match, p.budget, p.seeds),
            [(v.name, v.levels, v.seeds) for v in p.variants],
            [p.corpus.get(key) for key in ("source", "vocab_size", "max_bytes", "text_field")],
        )
        for p in (plan, known)
    )
    then, now = known.corpus.get("hash", ""), plan.corpus.get("hash", "")
    if asked != known_asked or then == now:
        return f"another study ({known.question!r}); choose another folder with --out"
    return (
        f"this study on another text: {plan.corpus.get('source')} has changed since (hash {then[:12]} then, {now[:12]} "
        "now), and runs on the two are not comparable; put the text back as it was, or choose another folder with --out"
    )


def make_plan(
    study: Study,
    base: Preset,
    named: Sequence[NamedVariant],
    design: Design,
    *,
    corpus_hash: str,
    corpus: Mapping[str, Any],
    step_s: Mapping[str, float] | None = None,
    bytes_per_token: float = 0.0,
) -> tuple[Plan, dict[str, RunSpec]]:
    """The plan of a study's variants on a corpus, and its runs by id.

    `flops` and `tokens` budgets default to the preset's tokens for the first variant; `seconds` needs a budget and
    `step_s`, the seconds of a step of each variant by name. `bytes_per_token` of the corpus prices text that is charged
    by length. ValueError if a budget does not reach one step, or what a match needs is missing.
    """
    check_trainable(base, named)
    budget = study.budget
    if budget is None:
        if study.match == "seconds":
            raise ValueError("match is seconds, and no budget says how many; give --budget SECONDS of one run")
        budget = float(base.n_tokens)
        if study.match == "flops":
            budget *= named[0].spec.model.cost(base.trainer.sequence_length).training_flops_per_token
    speeds, runs = step_s or {}, dict[str, RunSpec]()
    planned = []
    shares = [_planned(variant, study, budget, speeds.get(variant.name), bytes_per_token) for variant in named]
    shortest = min(found.n_steps for found in shares)
    for variant, found in zip(named, shares, strict=True):
        n_warmup_steps = variant.spec.trainer.warmup_steps(shortest)
        own = {
            run_id(run): run
            for run in (
                variant.spec.run(
                    corpus_hash=corpus_hash, seed=seed, n_steps=found.n_steps, n_warmup_steps=n_warmup_steps
                )
                for seed in variant.seeds
            )
        }
        runs |= own
        planned.append(replace(found, run_ids=tuple(own), n_branch_steps=next(iter(own.values())).n_branch_steps))
    plan = Plan(
        question=study.question,
        preset=base.name,
        preset_title=base.title,
        design=design,
        match=study.match,
        budget=budget,
        seeds=tuple(sorted({seed for variant in named for seed in variant.seeds})),
        margin_nats=study.margin_nats,
        confidence=study.confidence,
        corpus=corpus,
        variants=tuple(planned),
    )
    return plan, runs


def _planned(
    named: NamedVariant, study: Study, budget: float, step_s: float | None, bytes_per_token: float
) -> PlannedVariant:
    """The variant's share, but for the names of its runs."""
    trainer, text = named.spec.trainer, named.spec.data.text
    cost = named.spec.model.cost(trainer.sequence_length)
    flops_per_token = cost.training_flops_per_token * (1 + trainer.control.extra_flops_share)
    flops_per_token += text.charged_flops_per_token(bytes_per_token)
    steps = _steps(study, budget, flops_per_token, trainer.tokens_per_step, step_s)
    n_steps = round(steps)
    if n_steps < 1:
        raise ValueError(
            f"the budget, {budget:.6g} {study.match}, is {steps:.3g} optimizer steps of {named.name}; "
            f"it must be at least one step ({trainer.tokens_per_step:,} tokens): give a larger --budget"
        )
    n_tokens = n_steps * trainer.tokens_per_step
    return PlannedVariant(
        name=named.name,
        levels=dict(named.levels),
        cost=cost.summary(),
        learning_rate=trainer.learning_rate,
        n_steps=n_steps,
        n_tokens=n_tokens,
        flops=round(n_tokens * flops_per_token),
        seeds=named.seeds,
        run_ids=(),
        step_s=step_s,
        text=text.facts(),
    )


def _steps(study: Study, budget: float, flops_per_token: float, tokens_per_step: int, step_s: float | None) -> float:
    if study.match == "flops":
        return budget / (flops_per_token * tokens_per_step)
    if study.match == "tokens":
        return budget / tokens_per_step
    if step_s is None:
        raise ValueError("match is seconds, and the speed of this machine was not measured")
    return budget / step_s


def check_trainable(base: Preset, named: Sequence[NamedVariant]) -> None:
    """ValueError if the batch cannot be cut as asked, or a variant's objective wants longer sequences."""
    trainer = base.trainer
    for variant in named:
        variant.spec.model.objective.check_length(trainer.sequence_length)
    if trainer.micro_batch_size < 1 or trainer.batch_size % trainer.micro_batch_size:
        raise ValueError(
            f"trainer.micro_batch_size is {trainer.micro_batch_size}; it must divide trainer.batch_size, "
            f"which is {trainer.batch_size}"
        )
    for variant in named:
        check_ranks(variant.spec.model, variant.spec.trainer)


def decode_plan(data: Any) -> Plan:
    """A plan as it was written; ValueError says what is wrong in it. Version 1 had the design's name alone."""
    if isinstance(data, Mapping) and isinstance(data.get("design"), str):
        data = {**data, "design": {"name": data["design"]}}
    return decode(Plan, data, "plan")


def read_plan(path: Path) -> Plan:
    """The plan in a study's folder; ValueError names the file and what to do."""
    data = read_document(path, "the plan", CURE)
    try:
        return decode_plan(data)
    except ValueError as error:
        raise ValueError(f"cannot read the plan {path}: {error}; {CURE}") from None
