"""A study at each variant's own learning rate: screening, predicted optima, the design there and at the shared rate.

The folder of the study holds the design at the variants' own rates, `tuning/` the screening and `shared/` the same
design at the shared rate: three studies, each with its plan and records, so that every stage goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ablate.attribution.gain.learning_rate import screened_cells
from ablate.attribution.study.search import SearchResult, trial_result
from ablate.attribution.study.tuning import Tuned, tuned, tuning_lattice
from ablate.quantities import listed, plural, short
from ablate.randomness import seed_of
from ablate.runs.events import Ended, Event, Failed, Listener
from ablate.runs.plan import Design, NamedVariant, Plan
from ablate.runs.searching import FIRST_SEED, Tuning
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.runs.trials import SearchPlan, Stage, Trial
from ablate.spec.run import Preset
from ablate.sweep.estimate import Estimate
from ablate.sweep.folder import default_folder
from ablate.sweep.run import Display, Options, StudyRun, run_variants
from ablate.sweep.search.storage import Mirror
from ablate.sweep.texts import prepare_texts
from ablate.sweep.variants import variants

SCREENING, SHARED = "tuning", "shared"
RATE = "trainer.learning_rate"


def run_tuned(study: Study, options: Options, display: Display) -> StudyRun:
    """Screen, predict, and run the design at the predicted rates. ValueError before anything is spent."""
    tuning, base = study.tuning or Tuning(), study.load_preset()
    shared = replace(study, learning_rates={}, tuning=None)
    asked, design = variants(shared, base)
    folder = options.out or default_folder(
        study, base, asked, prepare_texts(asked, display.say)[asked[0].name].corpus.hash
    )
    screened = _screened(asked, tuning)
    trials = _trials(screened, tuning, base, study.first_seed + FIRST_SEED)
    display.say(_announced(tuning, screened, asked, base, folder))
    first = replace(shared, question=f"Where is the best learning rate of each variant? ({study.question})")
    first, small = _shorter(first, base, tuning)
    if options.dry_run:
        run_variants(first, small, trials, Design(name="screening"), replace(options, out=folder / SCREENING), display)
        return run_variants(study, base, asked, design, replace(options, out=folder), display)
    mirrored = _Mirrored(display, tuning, folder / SCREENING, [v.name for v in screened])
    at = replace(options, out=folder / SCREENING)
    done = run_variants(first, small, trials, Design(name="screening"), at, mirrored)
    mirrored.publish(done.plan)
    if not _finished(done):
        return done
    found = _read(folder / SCREENING, done.plan, asked, base)
    display.say(f"learning rates: {listed(f'{name} {short(rate)}' for name, rate in found.rates.items())}")
    for note in found.notes:
        display.say(note)
    if tuning.shared:
        done = run_variants(shared, base, asked, design, replace(options, out=folder / SHARED), display)
        if done.outcome is None or done.outcome.interrupted:
            return done
    own, design = variants(replace(shared, learning_rates=found.rates), base)
    return run_variants(study, base, own, design, replace(options, out=folder), display)


def _screened(asked: Sequence[NamedVariant], tuning: Tuning) -> list[NamedVariant]:
    """The variants that are screened: all of a few, of a lattice as many as its surface needs."""
    parts, cells = tuning_lattice(asked)
    rng = np.random.default_rng(seed_of("variants that are screened"))
    chosen = screened_cells(parts, [cells[v.name] for v in asked], cells=tuning.variants, rng=rng)
    return [v for v in asked if cells[v.name] in chosen]


def _trials(screened: Sequence[NamedVariant], tuning: Tuning, base: Preset, seed: int) -> list[NamedVariant]:
    """Every screened variant at every rate of the grid, on one seed; only its end is judged."""
    found = []
    for v in screened:
        for octaves in np.linspace(-tuning.octaves, tuning.octaves, tuning.trials):
            rate = float(f"{base.trainer.learning_rate * 2.0**octaves:.6g}")
            trainer = replace(v.spec.trainer, learning_rate=rate, branches=(), n_evaluations=1)
            spec = replace(v.spec, trainer=trainer)
            found.append(replace(v, name=f"{v.name} at {short(rate)}", spec=spec, seeds=(seed,)))
    return found


def _shorter(study: Study, base: Preset, tuning: Tuning) -> tuple[Study, Preset]:
    if tuning.budget_share == 1:
        return study, base
    if study.budget is not None:
        return replace(study, budget=tuning.budget_share * study.budget), base
    return study, replace(base, n_tokens=max(1, round(tuning.budget_share * base.n_tokens)))


def _announced(
    tuning: Tuning, screened: Sequence[NamedVariant], asked: Sequence[NamedVariant], base: Preset, folder: Path
) -> str:
    low, high = (base.trainer.learning_rate * 2.0**at for at in (-tuning.octaves, tuning.octaves))
    some = "" if len(screened) == len(asked) else f" of {len(asked)}, from which one surface predicts the others"
    then = "the design at the shared rate and at each variant's own" if tuning.shared else "the design at each own rate"
    return (
        f"tuning: {plural(tuning.trials, 'learning rate')} from {short(low)} to {short(high)} of each of "
        f"{plural(len(screened), 'variant')}{some}; then {then}. Screening: {folder / SCREENING}"
    )


def _finished(done: StudyRun) -> bool:
    outcome = done.outcome
    return outcome is not None and not outcome.interrupted and "failed" not in outcome.status.values()


def _read(folder: Path, plan: Plan, asked: Sequence[NamedVariant], base: Preset) -> Tuned:
    store = Store(folder)
    found = {identity: store.read(identity) for v in plan.variants for identity in v.run_ids}
    records = {identity: record for identity, record in found.items() if record is not None}
    return tuned(plan, asked, records, base.trainer.learning_rate)


@dataclass(slots=True)
class _Mirrored:
    """The display of a screening, which also keeps Optuna's storage up to date for its dashboard."""

    display: Display
    tuning: Tuning
    folder: Path
    variants: Sequence[str]
    mirror: Mirror | None = None

    def say(self, message: str) -> None:
        self.display.say(message)

    def show_plan(self, plan: Plan, n_parallel: int, folder: Path, time: Estimate) -> None:
        self.display.show_plan(plan, n_parallel, folder, time)

    def follow(self, plan: Plan, n_parallel: int) -> Listener:
        listener = self.display.follow(plan, n_parallel)
        self.publish(plan)

        def heard(event: Event) -> None:
            listener(event)
            if isinstance(event, Ended | Failed):
                self.publish(plan)

        return heard

    def end(self) -> None:
        self.display.end()

    def publish(self, plan: Plan) -> None:
        """Every screening run as a trial."""
        from optuna.distributions import FloatDistribution

        result = as_search(plan, self.variants, Store(self.folder))
        if self.mirror is None:
            rates = [v.learning_rate for v in plan.variants]
            known = {RATE: FloatDistribution(min(rates), max(rates), log=True)}
            self.mirror = Mirror(self.tuning.storage, self.folder, known, self.display.say)
            self.mirror.open(result)
        else:
            self.mirror.sync(result)


def as_search(plan: Plan, names: Sequence[str], store: Store) -> SearchResult:
    """A screening as a search of one parameter, whose trials are its runs."""
    n_each = len(plan.variants) // len(names)
    failures = {failure.run_id: failure.reason for failure in store.failures()}
    results = []
    for i, v in enumerate(plan.variants):
        group, number = divmod(i, n_each)
        trial = Trial(
            slot=f"{group:03d}-{number:04d}",
            group=names[group],
            number=number,
            variant=names[group],
            levels=v.levels,
            parameters={RATE: v.learning_rate},
            origin="grid",
            stages=(Stage(share=1.0, run_id=v.run_ids[0]),),
            flops_per_token=float(v.cost["training_flops_per_token"]),
            n_steps=v.n_steps,
            flops=v.flops,
        )
        results.append(trial_result(trial, ("loss",), store.read, None, failures))
    search = SearchPlan(
        question=plan.question,
        preset=plan.preset,
        match=plan.match,
        budget=plan.budget,
        seed=plan.seeds[0],
        corpus_hash=str(plan.corpus.get("hash", "")),
        n_trials=n_each,
        groups=tuple(names),
        variants=tuple(names),
        objectives=("loss",),
        sampler="grid",
        pruner="none",
        table={},
    )
    return SearchResult(plan=search, trials=tuple(results))
