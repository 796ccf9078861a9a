"""From a study to its runs: matched budgets, seeds, and the price of it all before anything is spent."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from ablate.documents import read_document
from ablate.files import check_names
from ablate.parallel.layout import check_ranks
from ablate.runs.asked import Asked, ask
from ablate.runs.factors import FactorFacts
from ablate.runs.primary import Primary
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
    upper: tuple[str, ...] = ()  # the factors of two levels that are at their second one


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """How a study's runs are laid out, as far as it matters to whoever reads their results."""

    name: str
    order: int | None = None  # interactions of more components are assumed to be none; None: nothing is assumed
    stages: int = 1  # times the results are read, each time at a part of alpha
    looks: tuple[int, ...] = ()  # seeds at which they are, if that was planned; runs, of the design `staged`

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
    step_s: float | None = None  # on this machine: measured where a budget is in seconds, else estimated; None: neither
    text: Mapping[str, Any] = field(default_factory=dict)  # of a teacher's text; empty for the corpus alone
    n_branch_steps: int = 0  # of all branches together, on top of the trunk's n_steps
    upper: tuple[str, ...] = ()  # the factors of two levels that are at their second one
    corpus: Mapping[str, Any] = field(default_factory=dict)  # its hash and vocabulary, where they are not the plan's

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
    factors: tuple[FactorFacts, ...] = ()
    hypothesis: str = ""
    primary_metric: Primary = "loss"
    primary_margin: float | None = None  # in the unit of the primary metric; None: margin_nats
    asked: Asked | None = None  # None: by a version that did not write it

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
            check_names(planned.run_ids, "a run in plan.variants")
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

    def left(self, done: Collection[str]) -> dict[str, int]:
        """How many runs of each variant are not among those that are done."""
        return {v.name: sum(identity not in done for identity in v.run_ids) for v in self.variants}

    def seconds(self, n_parallel: int, done: Collection[str] = ()) -> float | None:
        """Estimated time of all runs but those that are done, with `n_parallel` at a time."""
        left = self.left(done)
        times = [v.run_s * left[v.name] for v in self.variants if v.run_s is not None]
        return sum(times) / n_parallel if len(times) == len(self.variants) else None


def widens(plan: Plan, known: Plan) -> bool:
    """Whether a plan asks for the runs of a known one and perhaps more of the same: its seeds continue theirs.

    Every variant must be there with the same levels, and its runs begin with the known ones: the same resolved
    specification, corpus and budget. Variants may be added by a further stage of a staged design alone.
    """
    now = {v.name: v for v in plan.variants}
    added = len(now) - len(known.variants)
    return (
        (plan.question, plan.design.name) == (known.question, known.design.name)
        and all(
            then.name in now
            and now[then.name].levels == then.levels
            and now[then.name].run_ids[: len(then.run_ids)] == then.run_ids
            for then in known.variants
        )
        and (added == 0 or plan.design.name == "staged")
    )


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
    other_corpora: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    step_s: Mapping[str, float] | None = None,
    bytes_per_token: float = 0.0,
    whole: Sequence[NamedVariant] = (),
) -> tuple[Plan, dict[str, RunSpec]]:
    """The plan of a study's variants on a corpus, and its runs by id.

    `flops` and `tokens` budgets default to the preset's tokens for the first variant; `seconds` needs a budget and
    `step_s`, the seconds of a step of each variant by name. `bytes_per_token` of the corpus prices text that is charged
    by length. `other_corpora`: hash, vocab_size and bytes_per_token by variant, of those that do not read `corpus`
    in its tokens. `whole`: all variants of the design, where `named` are those of a round of it; budget and warm-up
    are of the whole. Each size of a ladder has a budget and a warm-up of its own, equal for all its variants.
    ValueError
    if a budget does not reach one step, or what a match needs is missing.
    """
    check_trainable(named)
    sizes = whole or named
    budgets = dict(zip(map(_size, sizes), budgets_of(study, sizes), strict=True))
    speeds, runs = step_s or {}, dict[str, RunSpec]()
    planned = []
    shares = {
        variant.name: _planned(
            variant, study, budgets[_size(variant)], speeds.get(variant.name),
            other_corpora.get(variant.name, {}).get("bytes_per_token", bytes_per_token),
        )
        for variant in sizes
    }  # fmt: skip
    for variant in named:
        text, found = other_corpora.get(variant.name, {}), replace(shares[variant.name], seeds=variant.seeds)
        shortest = min(shares[v.name].n_steps for v in sizes if _size(v) == _size(variant))
        make = partial(
            variant.spec.run,
            corpus_hash=text.get("hash", corpus_hash),
            n_steps=found.n_steps,
            n_warmup_steps=variant.spec.trainer.warmup_steps(shortest),
        )
        own = {run_id(run): run for run in (make(seed=seed) for seed in variant.seeds)}
        runs |= own
        planned.append(
            replace(found, run_ids=tuple(own), n_branch_steps=next(iter(own.values())).n_branch_steps, corpus=text)
        )
    plan = Plan(
        question=study.question,
        preset=base.name,
        preset_title=base.title,
        design=design,
        match=study.match,
        budget=budgets[_size(sizes[0])],
        seeds=tuple(sorted({seed for variant in named for seed in variant.seeds})),
        margin_nats=study.margin_nats,
        confidence=study.confidence,
        hypothesis=study.hypothesis,
        primary_metric=study.primary_metric,
        primary_margin=study.primary_margin,
        corpus=corpus,
        variants=tuple(planned),
        factors=tuple(factor.facts() for factor in study.crossed),
    )
    return replace(plan, asked=ask(study, resolved(plan))), runs


def budgets_of(study: Study, named: Sequence[NamedVariant]) -> list[float]:
    """The budget of a run of each variant: the study's, or that of its own size, which its first variant sets."""
    if study.budget is not None:
        return [study.budget] * len(named)
    if study.match == "seconds":
        raise ValueError("match is seconds, and no budget says how many; give --budget SECONDS of one run")
    of_size: dict[tuple[str, int], float] = {}
    for variant in named:
        base = variant.spec.preset
        flops = variant.spec.model.cost(base.trainer.sequence_length).training_flops_per_token
        of_size.setdefault(_size(variant), float(base.n_tokens) * (flops if study.match == "flops" else 1.0))
    return [of_size[_size(v)] for v in named]


def _size(variant: NamedVariant) -> tuple[str, int]:
    """What variants have in common whose budgets are equal: the size, and how long it is trained."""
    return variant.spec.preset.name, variant.spec.preset.n_tokens


def resolved(plan: Plan) -> dict[str, Any]:
    """What the study's file leaves to the preset and the design, for the question as it was asked."""
    return {
        "budget": plan.budget,
        "seeds": list(plan.seeds),
        "variants": {v.name: {"levels": dict(v.levels), "seeds": list(v.seeds)} for v in plan.variants},
    }


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
        upper=named.upper,
    )


def _steps(study: Study, budget: float, flops_per_token: float, tokens_per_step: int, step_s: float | None) -> float:
    if study.match == "flops":
        return budget / (flops_per_token * tokens_per_step)
    if study.match == "tokens":
        return budget / tokens_per_step
    if step_s is None:
        raise ValueError("match is seconds, and the speed of this machine was not measured")
    return budget / step_s


def check_trainable(named: Sequence[NamedVariant]) -> None:
    """ValueError if a batch cannot be cut as asked, or a variant's objective wants longer sequences."""
    for variant in named:
        trainer = variant.spec.trainer
        variant.spec.model.objective.check_length(trainer.sequence_length)
        if trainer.micro_batch_size < 1 or trainer.batch_size % trainer.micro_batch_size:
            raise ValueError(
                f"trainer.micro_batch_size is {trainer.micro_batch_size}; it must divide trainer.batch_size, "
                f"which is {trainer.batch_size}"
            )
        check_ranks(variant.spec.model, trainer)


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
