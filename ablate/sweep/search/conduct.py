"""A search from its study file to its trials' records, then to the study of what was found on fresh seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.attribution.study.search import SearchResult, TrialResult, best, pareto_front, read_search, trial_result
from ablate.quantities import listed, plural
from ablate.runs.attempts import at_work
from ablate.runs.conduct import Outcome, execute_all
from ablate.runs.events import Listener
from ablate.runs.executors.local import LocalExecutor
from ablate.runs.executors.signals import stopping
from ablate.runs.job import Job
from ablate.runs.plan import Design, NamedVariant, Plan, make_plan
from ablate.runs.record import RunRecord, RunStatus
from ablate.runs.searching import FIRST_SEED, Search, plain
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.runs.trials import SearchPlan, Stage, Trial, TrialFolder, held, is_worked_on
from ablate.spec.machine import this_machine
from ablate.spec.run import Preset, RunSpec
from ablate.sweep.folder import check_writable, default_folder
from ablate.sweep.run import Display, Options, StudyRun, check_memory, parallel, run_variants
from ablate.sweep.search.fields import with_fields
from ablate.sweep.search.proposals import VARIANT, Distributions, distributions, grid, propose, should_prune
from ablate.sweep.search.storage import Mirror
from ablate.sweep.texts import prepare_texts
from ablate.sweep.variants import variants

if TYPE_CHECKING:
    from ablate.data.corpus import Corpus
    from ablate.data.tokens import TokenFile

FOLDER = "search"  # in the folder of the study
WAIT_S = 1.0  # between looks at what other workers do
MAX_CONFIRMED = 6  # of a Pareto front


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What all trials of a search have in common."""

    study: Study  # with its budget, and without the search
    search: Search
    base: Preset
    known: Distributions
    corpus: Corpus
    texts: dict[str, TokenFile]

    def named(self, index: int, parameters: dict[str, object], seeds: tuple[int, ...]) -> NamedVariant:
        """A variant of the study under other settings of the preset. ValueError where these are impossible."""
        base = with_fields(self.base, {path: value for path, value in parameters.items() if path != VARIANT})
        found = variants(self.study, base)[0][index]
        return replace(found, spec=found.spec.for_machine(this_machine()), seeds=seeds)

    def plan(self, named: NamedVariant, share: float = 1.0) -> tuple[Plan, dict[str, RunSpec]]:
        """The plan of a variant's run at a share of the budget."""
        assert self.study.budget is not None
        study, base = replace(self.study, budget=share * self.study.budget), named.spec.preset
        if share < 1:
            trainer = replace(named.spec.trainer, branches=(), n_evaluations=1)
            named = replace(named, spec=replace(named.spec, trainer=trainer))
        return make_plan(
            study, base, [named], Design(name="search"), corpus_hash=self.corpus.hash, corpus={},
            bytes_per_token=self.corpus.bytes_per_token,
        )  # fmt: skip


def run_search(study: Study, options: Options, display: Display) -> StudyRun:
    """Make every trial that has not ended, then compare what was found. ValueError before anything is spent."""
    search = study.search
    assert search is not None
    base = study.load_preset()
    plainly = replace(study, search=None, n_seeds=search.confirm_seeds or study.n_seeds)
    asked, design = variants(plainly, base)
    names = tuple(v.name for v in asked)
    known = distributions(search, base, names)
    _check_grid(search, known)
    check_writable(*([options.out] if options.out else []))
    read = prepare_texts(asked, display.say)[asked[0].name]
    corpus, texts = read.corpus, read.held_out
    folder = options.out or default_folder(study, base, asked, corpus.hash)
    ground = Ground(study=plainly, search=search, base=base, known=known, corpus=corpus, texts=texts)
    budget = make_plan(plainly, base, asked, design, corpus_hash=corpus.hash, corpus={},
                       bytes_per_token=corpus.bytes_per_token)[0].budget  # fmt: skip
    ground = replace(ground, study=replace(plainly, budget=budget))
    plan = _search_plan(study, search, base, names, budget, corpus.hash)
    _check_ends(ground, names)
    display.say(_announced(plan, search, folder))
    if options.dry_run:
        return run_variants(plainly, base, asked, design, replace(options, out=folder), display)
    worker = Worker(ground, plan, TrialFolder(folder / FOLDER), options, display)
    if worker.run():
        return StudyRun(folder=folder, plan=ground.plan(asked[0])[0], outcome=Outcome(interrupted=True))
    chosen, layout = _chosen(ground, worker.result(), asked, design)
    # One worker confirms; the others find its records when it is done.
    with held(worker.folder.trials / "confirmation.claim", wait=True):
        at_budget = replace(study, budget=budget)
        return run_variants(at_budget, base, chosen, layout, replace(options, out=folder), display)


def _check_grid(search: Search, known: Distributions) -> None:
    if search.sampler == "grid" and (n := len(grid(search, known))) != search.trials:
        raise ValueError(
            f"the grid of search.parameters has {n} points, and search.trials is {search.trials}; set it to {n}"
        )


def _check_ends(ground: Ground, names: Sequence[str]) -> None:
    """ValueError if a variant is impossible at an end of a range, before anything is spent."""
    for path, d in ground.known.items():
        for value in d.choices if hasattr(d, "choices") else (d.low, d.high):
            if path == VARIANT:
                continue
            for index in range(len(names)):
                try:
                    ground.plan(ground.named(index, {path: value}, (FIRST_SEED,)), ground.search.shares[0])
                except ValueError as error:
                    raise ValueError(f"{names[index]} is impossible with {path} = {value}: {error}") from None


def _search_plan(
    study: Study, search: Search, base: Preset, names: tuple[str, ...], budget: float, corpus_hash: str
) -> SearchPlan:
    table = {key: value for key, value in plain(search).items() if key not in ("storage", "workers", "confirm_seeds")}
    return SearchPlan(
        question=study.question,
        preset=base.name,
        match=study.match,
        budget=budget,
        seed=study.first_seed + FIRST_SEED,
        corpus_hash=corpus_hash,
        n_trials=search.trials,
        groups=names if search.over == "variants" else ("whole",),
        variants=names,
        objectives=search.objectives,
        sampler=search.sampler,
        pruner=search.pruner,
        table=table,
    )


def _announced(plan: SearchPlan, search: Search, folder: Path) -> str:
    each = f" of each of {plural(len(plan.groups), 'variant')}" if search.over == "variants" else ""
    fields = listed(search.parameters)
    judged = listed(plan.objectives)
    return (
        f"search: {plural(plan.n_trials, 'trial')}{each}, by {plan.sampler}, of {fields}, judged by {judged}, on seed "
        f"{plan.seed}; then the best on fresh seeds. Trials: {folder / FOLDER}"
    )


def _chosen(
    ground: Ground, found: SearchResult, asked: Sequence[NamedVariant], design: Design
) -> tuple[list[NamedVariant], Design]:
    """What is run on fresh seeds: each variant at its best settings, or the reference as it is and the winners."""
    objectives = found.plan.objectives
    if ground.search.over == "variants":
        winners = [(i, v, best(found.of(v.name), objectives)) for i, v in enumerate(asked)]
        for _, v, winner in winners:
            if winner is None:
                raise ValueError(
                    f"no trial of {v.name} is complete, so there is nothing to confirm; the report of what the trials "
                    "came to needs one: narrow the ranges of search.parameters, and choose another folder with --out"
                )
        return [ground.named(i, dict(w.trial.parameters), v.seeds) for i, v, w in winners if w is not None], design
    front = pareto_front(found.trials, objectives)[:MAX_CONFIRMED]
    if not front:
        raise ValueError("no trial is complete, so there is nothing to confirm; narrow the ranges of search.parameters")
    names = [v.name for v in asked]
    chosen = [
        replace(ground.named(names.index(w.trial.variant), dict(w.trial.parameters), asked[0].seeds),
                name=f"{w.trial.variant} (trial {w.trial.number})")
        for w in front
    ]  # fmt: skip
    return [asked[0], *chosen], Design(name="search")


@dataclass(slots=True)
class _Place:
    """A trial that this process is at, claimed, and which of its runs goes on."""

    trial: Trial
    claim: ExitStack
    stage: int = 0

    @property
    def run_id(self) -> str:
        return self.trial.stages[self.stage].run_id


class Worker:
    """One of any number of processes that work on a search, each in a folder that all of them see."""

    def __init__(
        self, ground: Ground, plan: SearchPlan, folder: TrialFolder, options: Options, display: Display
    ) -> None:
        self.ground, self.plan, self.folder, self.display = ground, plan, folder, display
        self.store = Store(folder.folder)
        self.wandb_project = options.wandb_project
        first = ground.named(0, {}, (plan.seed,))
        costs = {first.name: first.spec.model.cost(ground.base.trainer.sequence_length)}
        self.n_parallel = parallel(costs, options.n_parallel or ground.search.workers)
        check_memory(costs, self.n_parallel, dry_run=False)
        self.mirror = Mirror(ground.search.storage, folder.folder, ground.known, display.say)
        self.tried: set[str] = set()
        self.records: dict[str, RunRecord] = {}
        self.places: list[_Place] = []
        self.given: set[str] = set()  # runs that were handed over to be executed
        self.looked = -math.inf  # for a trial to take
        self.listener: Listener = lambda event: None

    def run(self) -> bool:
        """Until every trial has ended, or failed here. True if a signal stopped it."""
        self.store.create()
        self.folder.trials.mkdir(exist_ok=True)
        self.folder.take_plan(self.plan)
        self.mirror.open(self.result())
        while True:
            if self._execute():
                return True
            self.mirror.sync(self.result())
            if not self._open_elsewhere():
                return False
            if _waited():
                return True

    def _execute(self) -> bool:
        """Trial after trial in each of this process's places, while there are any. True if a signal stopped it."""
        executor = LocalExecutor(self.store, self.n_parallel)
        self.given, self.looked = set(), -math.inf
        try:
            with at_work(self.folder.folder.parent):
                return execute_all(
                    (), self.store, executor, listener=lambda event: self.listener(event), more=self._more
                ).interrupted
        finally:
            self.display.end()
            while self.places:
                self.places.pop().claim.close()

    def _more(self, status: Mapping[str, RunStatus]) -> list[Job]:
        """What follows now that these runs have ended: the next run of a trial, or a trial in a free place."""
        jobs = []
        while True:
            ended = [place for place in self.places if place.run_id in status]
            begun = [place for place in ended if self._goes_on(place)]
            begun += self._take(at_once=bool(ended))
            for place in begun:
                if place.run_id not in self.given:  # identical specifications are one run
                    self.given.add(place.run_id)
                    jobs.append(self._job(place))
            if ended or begun:
                self.mirror.sync(self.result())
            if not any(place.run_id in status for place in self.places):
                return jobs

    def result(self) -> SearchResult:
        return read_search(self.folder, self._read)

    def _read(self, run_id: str) -> RunRecord | None:
        """A record is never changed, so it is read once."""
        if run_id not in self.records and (found := self.store.read(run_id)) is not None:
            self.records[run_id] = found
        return self.records.get(run_id)

    def _open_elsewhere(self) -> bool:
        """Whether some slot has not ended that this process has not tried."""
        ended = {found.trial.slot for found in self.result().trials if found.state not in ("open", "failed")}
        return any(slot not in ended | self.tried for slot, _, _ in self.plan.slots())

    def _take(self, *, at_once: bool) -> list[_Place]:
        """A trial for each free place, claimed: what others left unfinished, then new ones.

        Not `at_once`: where others are at all that is left, looking now and then is enough.
        """
        if len(self.places) == self.n_parallel or not (at_once or time.monotonic() >= self.looked + WAIT_S):
            return []
        self.looked, before = time.monotonic(), len(self.places)
        known = {each.trial.slot: each for each in self.result().trials}
        for slot, group, number in self.plan.slots():
            if len(self.places) == self.n_parallel:
                break
            there = known.get(slot)
            if slot in self.tried or (there is not None and there.state not in ("open", "failed")):
                continue
            claim = ExitStack()
            if not claim.enter_context(self.folder.claim(slot)):
                claim.close()
                continue
            trial = self.folder.read(slot) or self._propose(slot, group, number)
            if self._result(trial).state not in ("open", "failed") or self._worked_on(trial):
                claim.close()
                continue
            self.tried.add(slot)
            self.places.append(_Place(trial, claim))
        return self.places[before:]

    def _worked_on(self, trial: Trial) -> bool:
        return any(is_worked_on(self.store.attempts_folder(stage.run_id)) for stage in trial.stages)

    def _result(self, trial: Trial) -> TrialResult:
        failures = {failure.run_id: failure.reason for failure in self.store.failures()}
        return trial_result(trial, self.plan.objectives, self._read, self.folder.pruned(trial.slot), failures)

    def _propose(self, slot: str, group: str, number: int) -> Trial:
        parameters, origin, attributes = propose(self.ground.search, self.ground.known, self.result(), group, number)
        name = str(parameters.get(VARIANT, group))
        named = self.ground.named(self.plan.variants.index(name), dict(parameters), (self.plan.seed,))
        stages = []
        for share in self.ground.search.shares:
            plan, runs = self.ground.plan(named, share)
            stages.append(Stage(share=share, run_id=next(iter(runs))))
        planned = plan.variants[0]
        return self.folder.propose(
            Trial(
                slot=slot,
                group=group,
                number=number,
                variant=name,
                levels=dict(named.levels),
                parameters=parameters,
                origin=origin,
                stages=tuple(stages),
                flops_per_token=float(planned.cost["training_flops_per_token"]),
                n_steps=planned.n_steps,
                flops=planned.flops,
                system_attributes=attributes,
            )
        )

    def _job(self, place: _Place) -> Job:
        """The run that a trial is at."""
        trial = place.trial
        named = self.ground.named(self.plan.variants.index(trial.variant), dict(trial.parameters), (self.plan.seed,))
        plan, runs = self.ground.plan(named, trial.stages[place.stage].share)
        ((identity, run),) = runs.items()
        if identity != place.run_id:
            raise ValueError(
                f"trial {trial.slot} was proposed for run {place.run_id}, and this program makes it run {identity}: "
                "the preset, the components or the machine changed; choose another folder with --out"
            )
        shown = replace(plan.variants[0], name=f"{trial.variant} trial {trial.number}")
        self.listener = self.display.follow(replace(plan, variants=(shown,)), self.n_parallel)
        return Job(
            run=run, run_id=identity, variant=trial.levels, corpus=self.ground.corpus,
            held_out_texts=self.ground.texts, wandb_project=self.wandb_project, keep_weights=False,
        )  # fmt: skip

    def _goes_on(self, place: _Place) -> bool:
        """Whether a further run of the trial follows; if none does the place is free, and a pruned trial noted."""
        trial, share = place.trial, place.trial.stages[place.stage].share
        found = self._result(trial)
        if share < 1 and share in found.losses:
            pruned = found.state == "pruned"
            if not pruned and not should_prune(self.ground.search, self.result(), trial, share, found.losses[share]):
                place.stage += 1
                return True
            self.folder.prune(trial.slot, share)
        self.places.remove(place)
        place.claim.close()
        self._tell(trial)
        return False

    def _tell(self, trial: Trial) -> None:
        states = {found.trial.slot: found.state for found in self.result().trials}
        n_ended = sum(state != "open" for state in states.values())
        self.display.say(
            f"trial {trial.number} of {trial.group} {states[trial.slot]}; "
            f"{n_ended} of {self.plan.n_trials * len(self.plan.groups)} trials have ended"
        )


def _waited() -> bool:
    """A moment in which other workers go on. True if a signal came."""
    with stopping() as stop:
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until and not stop.requested:
            time.sleep(0.05)
    return stop.requested
