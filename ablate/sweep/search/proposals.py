"""What a search tries next: Optuna's samplers and pruners, asked anew for every slot over what the records say.

The history is put before a sampler in memory and its generator is keyed by the slot, so that a proposal is a function
of the trials that have ended and no storage is needed to go on. Variants never see each other's trials but by warm
starts; pruning compares trials of one variant alone, by decayed runs of one share of the budget.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ablate.attribution.study.search import SearchResult, TrialResult, best
from ablate.randomness import seed_of
from ablate.runs.searching import MAXIMISED, Parameter, Search, Value
from ablate.runs.trials import SearchPlan, Trial
from ablate.spec.run import Preset
from ablate.sweep.search.fields import value_of

if TYPE_CHECKING:
    import optuna

VARIANT = "variant"  # the parameter of a search over the whole that chooses one
MEDIAN_AFTER = 4  # complete trials of a variant, before the median of fewer prunes by chance
HALVING_AFTER = 2
PER_MILLE = 1000  # Optuna's steps are whole numbers: shares of the budget in thousandths

Distributions = Mapping[str, Any]


def distributions(search: Search, base: Preset, variants: Sequence[str]) -> Distributions:
    """Optuna's distribution of every parameter. ValueError for a field that there is not, or a range it cannot have."""
    from optuna.distributions import CategoricalDistribution

    found = {
        path: _distribution(path, parameter, value_of(base, path)) for path, parameter in search.parameters.items()
    }
    if search.over == "whole":
        found[VARIANT] = CategoricalDistribution(tuple(variants))
    return found


def _distribution(path: str, given: Parameter, now: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if given.choices:
        return CategoricalDistribution(given.choices)
    assert given.low is not None
    assert given.high is not None
    if isinstance(now, bool | str):
        raise ValueError(f"search.parameters.{path} has a range, and the field holds {now!r}; give choices")
    if isinstance(now, int):
        numbers = [n for n in (given.low, given.high, given.step) if n is not None]
        if any(n != int(n) for n in numbers):
            raise ValueError(f"search.parameters.{path} is a field of whole numbers; low, high and step must be whole")
        return IntDistribution(int(given.low), int(given.high), log=given.log, step=int(given.step or 1))
    return FloatDistribution(float(given.low), float(given.high), log=given.log, step=given.step)


def grid(search: Search, found: Distributions) -> list[dict[str, Value]]:
    """Every point of the grid that the parameters span, in the order of the file; the last one varies first."""
    import numpy as np

    axes = []
    for path, distribution in found.items():
        given = search.parameters.get(path, Parameter())
        if hasattr(distribution, "choices"):
            axes.append(list(distribution.choices))
            continue
        low, high = distribution.low, distribution.high
        if given.points is None:
            values = np.arange(low, high + 1e-9 * abs(high), distribution.step)
        else:
            values = np.geomspace(low, high, given.points) if distribution.log else np.linspace(low, high, given.points)
        whole = isinstance(low, int)
        axes.append(list(dict.fromkeys(round(float(v)) if whole else float(f"{v:.6g}") for v in values)))
    return [dict(zip(found, point, strict=True)) for point in itertools.product(*axes)]


def propose(
    search: Search, known: Distributions, result: SearchResult, group: str, number: int
) -> tuple[dict[str, Value], str, dict[str, Any]]:
    """Parameters of a slot, where they come from, and what the sampler must find again with the trial."""
    if search.sampler == "grid":
        return grid(search, known)[number], "grid", {}
    if (warm := _warm(search, result, group, number)) is not None:
        return warm[0], warm[1], {}
    import optuna

    seed = seed_of(f"search, seed {result.plan.seed}, {group}, trial {number}") % 2**32
    with quiet():
        study = _memory(result.plan, _sampler(search, result.plan, group, seed))
        if search.sampler == "qmc":
            return _quasi_random(study, known, number), "sampler", {}
        for found in result.of(group):
            study.add_trial(frozen(found, result.plan, known))
        trial = study.ask(dict(known))
        kept = study.get_trials(deepcopy=False)[trial.number].system_attrs
        attributes = {key: value for key, value in kept.items() if isinstance(value, int | str)}
        assert isinstance(study, optuna.Study)
        return dict(trial.params), "sampler", attributes


def _quasi_random(study: optuna.Study, known: Distributions, number: int) -> dict[str, Value]:
    """The point of that number: the sampler counts in the study that it is asked in, and this one is new."""
    from optuna.trial import create_trial

    # It takes its space from a trial that has ended.
    first = {name: d.choices[0] if hasattr(d, "choices") else d.low for name, d in known.items()}
    values = [0.0] * len(study.directions)
    study.add_trial(create_trial(params=first, distributions=dict(known), values=values))
    asked = [study.ask(dict(known)) for _ in range(number + 1)]
    return dict(asked[-1].params)


def _warm(search: Search, result: SearchResult, group: str, number: int) -> tuple[dict[str, Value], str] | None:
    """Half-way through, the best settings of the other variants, a quarter of the trials at most; alike for all."""
    if not search.warm_start or search.over == "whole":
        return None
    place = result.plan.groups.index(group)
    others = [*result.plan.groups[place + 1 :], *result.plan.groups[:place]][: result.plan.n_trials // 4]
    position = number - result.plan.n_trials // 2
    if not 0 <= position < len(others):
        return None
    found = best(result.of(others[position]), result.plan.objectives)
    if found is None or any(found.trial.parameters == known.trial.parameters for known in result.of(group)):
        return None
    return dict(found.trial.parameters), f"best of {others[position]}"


def _sampler(search: Search, plan: SearchPlan, group: str, seed: int) -> Any:
    from optuna import samplers

    if search.sampler == "tpe":
        startup = max(3, min(10, plan.n_trials // 3))
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
    if search.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, plan.n_trials // 4)))
    if search.sampler == "qmc":
        own = seed_of(f"search, seed {plan.seed}, {group}") % 2**32
        return samplers.QMCSampler(seed=own, scramble=True, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=seed)


def should_prune(search: Search, result: SearchResult, trial: Trial, share: float, loss: float) -> bool:
    """Whether a trial is among the worse of its own variant, each judged by its decayed run of this share."""
    peers = [
        found for found in result.trials if found.trial.variant == trial.variant and found.trial.slot != trial.slot
    ]
    if search.pruner == "halving":
        others = [found.losses[share] for found in peers if share in found.losses]
        better = sum(other < loss for other in others)
        return len(others) >= HALVING_AFTER and better >= (len(others) + 1) / 2
    from optuna.pruners import MedianPruner
    from optuna.trial import TrialState, create_trial

    with quiet():
        study = _memory(result.plan, None)
        for found in peers:
            study.add_trial(frozen(found, result.plan, {}))
        step = round(PER_MILLE * share)
        asked = create_trial(state=TrialState.RUNNING, intermediate_values={step: loss})
        return MedianPruner(n_startup_trials=MEDIAN_AFTER).prune(study, asked)


def frozen(found: TrialResult, plan: SearchPlan, known: Distributions, **user_attrs: Any) -> optuna.trial.FrozenTrial:
    """A trial as Optuna keeps it. One that diverged counts as pruned without a value: worse than any other."""
    from optuna.trial import TrialState, create_trial

    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED,
              "failed": TrialState.FAIL, "open": TrialState.RUNNING}  # fmt: skip
    return create_trial(
        state=states[found.state],
        values=_values(found, plan),
        params={name: found.trial.parameters[name] for name in known},
        distributions=dict(known),
        user_attrs=user_attrs,
        system_attrs=dict(found.trial.system_attributes),
        intermediate_values=intermediate_values(found, plan),
    )


def _values(found: TrialResult, plan: SearchPlan) -> list[float] | None:
    """Of a complete trial; of a pruned one the loss that it was pruned for, as Optuna itself notes it."""
    if found.state == "pruned":
        return list(intermediate_values(found, plan).values())[-1:]
    return list(found.values) if found.state == "complete" else None


def intermediate_values(found: TrialResult, plan: SearchPlan) -> dict[int, float]:
    """Losses by share of the budget in thousandths; of a search by several objectives Optuna takes none."""
    if len(plan.objectives) > 1 or plan.pruner == "none" or found.state == "diverged":
        return {}
    return {round(PER_MILLE * share): loss for share, loss in found.losses.items()}


def directions(plan: SearchPlan) -> list[Literal["minimize", "maximize"]]:
    """Optuna's word for each objective."""
    return ["maximize" if name in MAXIMISED else "minimize" for name in plan.objectives]


def _memory(plan: SearchPlan, sampler: Any) -> optuna.Study:
    import optuna

    return optuna.create_study(directions=directions(plan), sampler=sampler)


class quiet(warnings.catch_warnings):
    """Optuna without its announcements: of studies that it makes, and of what it calls experimental."""

    def __enter__(self) -> Any:
        import optuna

        entered = super().__enter__()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message=".*(fixed|Choices for a categorical).*", category=UserWarning)
        return entered
