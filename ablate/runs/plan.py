"""From a study to its runs: matched budgets, seeds, and the price of it all before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablate.runs.study import Study
from ablate.spec.cost import ModelCost
from ablate.spec.decoding import run_id
from ablate.spec.run import Preset, RunSpec, Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedVariant:
    """A variant of a study: its levels, its specification, and the seeds that it runs with."""

    name: str
    levels: Mapping[str, str]
    spec: Spec
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedVariant:
    """One variant with its share of the study. `step_s`: measured on this machine; None if it was not."""

    name: str
    levels: Mapping[str, str]
    cost: ModelCost
    learning_rate: float
    n_steps: int
    n_tokens: int
    flops: int  # training FLOPs of one run, with what is charged of a teacher's
    seeds: tuple[int, ...]
    runs: tuple[RunSpec, ...]  # one a seed
    step_s: float | None = None

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(run_id(run) for run in self.runs)

    @property
    def run_s(self) -> float | None:
        return None if self.step_s is None else self.step_s * self.n_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that a study will run, before it runs."""

    study: Study
    preset: Preset
    corpus_hash: str
    variants: tuple[PlannedVariant, ...]  # the reference first
    budget: float  # of a run, in the unit of study.match

    @property
    def reference(self) -> PlannedVariant:
        return self.variants[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that some variant runs with."""
        return tuple(sorted({seed for variant in self.variants for seed in variant.seeds}))

    @property
    def n_runs(self) -> int:
        return sum(len(variant.runs) for variant in self.variants)

    def seconds(self, n_parallel: int) -> float | None:
        """Estimated time of all runs with `n_parallel` at a time."""
        times = [v.run_s * len(v.runs) for v in self.variants if v.run_s is not None]
        return sum(times) / n_parallel if len(times) == len(self.variants) else None


def make_plan(
    study: Study,
    base: Preset,
    named: Sequence[NamedVariant],
    corpus_hash: str,
    *,
    step_s: Mapping[str, float] | None = None,
    bytes_per_token: float = 0.0,
) -> Plan:
    """The plan of a study's variants on a corpus. `step_s`: seconds of a step of each variant, by name.

    `flops` and `tokens` budgets default to the preset's tokens for the first variant; `seconds` needs a budget and
    `step_s`. `bytes_per_token` of the corpus prices text that is charged by length. ValueError if a budget does not
    reach one step, or what a match needs is missing.
    """
    check_trainable(base, named)
    budget = study.budget
    if budget is None:
        if study.match == "seconds":
            raise ValueError("match is seconds, and no budget says how many; give --budget SECONDS of one run")
        budget = float(base.n_tokens)
        if study.match == "flops":
            budget *= named[0].spec.model.cost(base.trainer.sequence_length).training_flops_per_token
    speeds = step_s or {}
    planned = tuple(_planned(v, study, budget, corpus_hash, speeds.get(v.name), bytes_per_token) for v in named)
    return Plan(study=study, preset=base, corpus_hash=corpus_hash, variants=planned, budget=budget)


def _planned(
    named: NamedVariant, study: Study, budget: float, corpus_hash: str, step_s: float | None, bytes_per_token: float
) -> PlannedVariant:
    trainer = named.spec.trainer
    cost = named.spec.model.cost(trainer.sequence_length)
    flops_per_token = cost.training_flops_per_token * (1 + trainer.control.extra_flops_share)
    flops_per_token += named.spec.data.text.charged_flops_per_token(bytes_per_token)
    steps = _steps(study, budget, flops_per_token, trainer.tokens_per_step, step_s)
    n_steps = round(steps)
    if n_steps < 1:
        raise ValueError(
            f"the budget, {budget:.6g} {study.match}, is {steps:.3g} optimizer steps of {named.name}; "
            f"it must be at least one step ({trainer.tokens_per_step:,} tokens): give a larger --budget"
        )
    runs = tuple(
        RunSpec(
            model=named.spec.model,
            text=named.spec.data.text,
            trainer=trainer,
            corpus_hash=corpus_hash,
            seed=seed,
            n_steps=n_steps,
        )
        for seed in named.seeds
    )
    n_tokens = n_steps * trainer.tokens_per_step
    return PlannedVariant(
        name=named.name,
        levels=named.levels,
        cost=cost,
        learning_rate=trainer.learning_rate,
        n_steps=n_steps,
        n_tokens=n_tokens,
        flops=round(n_tokens * flops_per_token),
        seeds=named.seeds,
        runs=runs,
        step_s=step_s,
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


def summary(plan: Plan, corpus: Mapping[str, object]) -> dict[str, object]:
    """The plan as the file beside the records: what was held equal, and which run belongs to which variant."""
    return {
        "question": plan.study.question,
        "preset": plan.preset.name,
        "preset_title": plan.preset.title,
        "design": plan.study.design,
        "match": plan.study.match,
        "budget": plan.budget,
        "seeds": list(plan.seeds),
        "margin_nats": plan.study.margin_nats,
        "confidence": plan.study.confidence,
        "corpus": dict(corpus),
        "variants": [
            {
                "name": v.name,
                "levels": dict(v.levels),
                "cost": v.cost.summary(),
                "learning_rate": v.learning_rate,
                "n_steps": v.n_steps,
                "n_tokens": v.n_tokens,
                "flops": v.flops,
                "step_s": v.step_s,
                "text": v.runs[0].text.facts(),
                "seeds": list(v.seeds),
                "run_ids": list(v.run_ids),
            }
            for v in plan.variants
        ],
    }
