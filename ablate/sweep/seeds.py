"""How many seeds a study is planned with now: as given, for a precision, or up to its next planned look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablate.attribution.design.designs import Design
from ablate.attribution.design.exchange import FIRST_STAGE
from ablate.attribution.design.planning import ASSURANCE, Noise, require_precision, seeds_for
from ablate.attribution.design.sequential import looks_up_to, planned_looks
from ablate.attribution.study.compare import compare
from ablate.attribution.study.gains import component_gains
from ablate.attribution.verdicts import NOT_RESOLVED
from ablate.presets.noise import KnownNoise, known_noise, of_components
from ablate.quantities import percent, plural, significant
from ablate.runs.history import Entry, History, Origin, looks, plans
from ablate.runs.plan import NamedVariant, Plan, budgets_of, read_plan
from ablate.runs.precision import Precision, parse_precision
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.spec.run import Preset

N_PILOT = 5  # seeds that tell the noise where nothing is known of it
MOST_SEEDS = 100  # that a precision may take where max_seeds does not say
MOST_LOOKS = 3  # more would each be too strict
STAGES = 2  # of a staged design; and readings that share alpha where runs that count also told the noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """The runs that are planned now, and why so many."""

    n_seeds: int
    origin: Origin
    reason: str
    stages: int = 1  # readings that share alpha
    looks: tuple[int, ...] = ()
    stage: int | None = None  # of a staged design: the last that is run now; None: the design has none
    precision: str = ""


def this_round(study: Study, base: Preset, named: Sequence[NamedVariant], folder: Path) -> Round:
    """What is to be run now in a folder. ValueError where a precision takes more seeds than allowed; it says how many.

    named: the variants of the whole design.
    """
    entries, held = History(folder).entries(), _held(folder)
    if held is not None and held.design.looks and not entries:
        raise ValueError(
            f"{folder} has been read at planned looks, and the history that says which is missing; put it back from a "
            "copy, or choose another folder with --out"
        )
    n_held = len(held.seeds) if held else 0
    if study.design == "staged":
        return _staged(entries, held, sum(len(v.seeds) for v in named))
    if study.until:
        return _look(study, entries, n_held)
    if study.precision and study.design in ("one", "leave-one-out"):
        return _precise(study, base, named, folder, entries, held)
    before = plans(entries)[-1] if entries else None
    asked = study.n_seeds or n_held or base.n_seeds
    if before and asked == n_held:
        return Round(n_seeds=n_held, origin=before.origin, reason=before.reason, stages=before.stages,
                     looks=before.looks, precision=before.precision)  # fmt: skip
    whose = "as given" if study.n_seeds else "the preset's" if asked == base.n_seeds else "as before"
    return Round(n_seeds=asked, origin="given", reason=f"{plural(asked, 'seed')}, {whose}",
                 stages=before.stages if before else 1, looks=before.looks if before else ())  # fmt: skip


def is_open(look: Entry) -> bool:
    """Whether more runs may decide something that a reading left open."""
    return NOT_RESOLVED in look.verdicts.values()


def _held(folder: Path) -> Plan | None:
    """The plan in the folder; None where there is none that can be read, which is told when it is claimed."""
    store = Store(folder)
    try:
        return read_plan(store.plan_file) if store.plan_file.is_file() else None
    except ValueError:
        return None


def _staged(entries: tuple[Entry, ...], held: Plan | None, n_runs: int) -> Round:
    """The first stage, and the second where the reading of the first left something open."""
    made = looks(entries)
    # A study of a version that ran both stages at once is one of both.
    second = is_open(made[0]) if made else held is not None and not entries
    stage = 1 if second else 0
    reason = "the second stage: the first left effects open" if stage else "the first of two stages"
    return Round(n_seeds=0, origin="look", reason=f"{reason}; each is read at half of alpha", stages=STAGES,
                 looks=(FIRST_STAGE, n_runs), stage=stage)  # fmt: skip


def _look(study: Study, entries: tuple[Entry, ...], n_held: int) -> Round:
    """Seeds up to the next planned look; those of the last one made where that decided, or was the last."""
    made = [entry.n_seeds for entry in looks(entries)]
    planned = _looks(study, entries, made, n_held)
    still = [n for n in planned if not made or n > made[-1]]
    over = bool(made) and (not is_open(looks(entries)[-1]) or not still)
    n = max(made[-1], n_held) if over else still[0]
    which = planned.index(made[-1] if over else n) + 1
    stages = max(len(planned), *(entry.stages for entry in plans(entries)[-1:]), 1)
    at = ", ".join(map(str, planned))
    return Round(n_seeds=n, origin="look", stages=stages, looks=planned,
                 reason=f"look {which} of {len(planned)}, at {at} seeds")  # fmt: skip


def _looks(study: Study, entries: tuple[Entry, ...], made: list[int], n_held: int) -> tuple[int, ...]:
    """The looks planned here before, if nothing else is asked for; else those made and as many as are left of three.

    Seeds that are there already, with no look on record, count as a look.
    """
    before = plans(entries)[-1].looks if entries else ()
    if before and study.max_seeds in (None, before[-1]):
        return before
    wanted = looks_up_to(study.max_seeds)
    spent = tuple(made) or ((n_held,) if n_held else ())
    later = [n for n in wanted if n > (spent[-1] if spent else 0)]
    left = min(MOST_LOOKS - len(spent), len(later))
    if (made and left < 1) or (spent and spent[-1] > wanted[-1]):
        raise ValueError(
            f"the study in this folder has {n_held} seeds and was read at {', '.join(map(str, made)) or 'none of them'}"
            f"; looks at {', '.join(map(str, wanted))} seeds leave none that is paid for. Widen it with --seeds N, "
            "whose report gives the interval that holds however often one looks, or choose another folder with --out"
        )
    found = (*spent, *later[len(later) - left :])
    planned_looks(found, confidence=study.confidence)
    return found


def _precise(
    study: Study, base: Preset, named: Sequence[NamedVariant], folder: Path, entries: tuple[Entry, ...],
    held: Plan | None,
) -> Round:  # fmt: skip
    """Seeds for a precision: those planned before, else from the noise of runs that are there, or known, or a pilot."""
    asked, n_held = parse_precision(study.precision), len(held.seeds) if held else 0
    last = plans(entries)[-1] if entries else None
    if last and last.precision == str(asked) and last.origin != "pilot":
        return Round(n_seeds=last.n_seeds, origin=last.origin, reason=last.reason, stages=last.stages,
                     precision=last.precision)  # fmt: skip
    if held is not None and n_held >= N_PILOT and (noise := _noise_here(folder, held, asked)):
        n, reason = _enough(study, asked, noise, STAGES)
        return Round(n_seeds=max(n, n_held), origin="pilot's noise", reason=reason, stages=STAGES, precision=str(asked))
    known = _known(study, base, named, asked)
    if known is not None:
        noise, stages = known
        n, reason = _enough(study, asked, noise, stages)
        return Round(n_seeds=max(n, n_held), origin="known noise", reason=reason, stages=stages, precision=str(asked))
    n = max(N_PILOT, n_held)
    reason = f"{n} seeds first, which count: they tell the noise, and so how many seeds reach {asked}"
    return Round(n_seeds=n, origin="pilot", reason=reason, stages=STAGES, precision=str(asked))


def _enough(study: Study, asked: Precision, noise: Noise, stages: int) -> tuple[int, str]:
    """The number of seeds with its reason; ValueError says the number where it is more than allowed."""
    confidence = 1 - (1 - study.confidence) / stages
    n = seeds_for(asked.half_width, noise, confidence=confidence)
    most = study.max_seeds or MOST_SEEDS
    known = f"sd of a pair {significant(noise.sd)} with {plural(round(noise.df), 'degree')} of freedom, {noise.origin}"
    if n is None or n > most:
        needed = "more than any practical number of seeds" if n is None else f"{n:,} seeds"
        cure = "" if n is None else f", or allow them with --max-seeds {n}"
        raise ValueError(
            f"a half-width of {asked} takes {needed} ({known}), and {most} are allowed; ask for less precision{cure}"
        )
    shared = "; alpha is shared, since runs that told the noise count too" if stages > 1 else ""
    return n, (
        f"{n} seeds: a half-width of at most {asked} with a chance of {percent(ASSURANCE)} ({known}; "
        f"{percent(confidence)} intervals{shared})"
    )


def _noise_here(folder: Path, plan: Plan, asked: Precision) -> Noise | None:
    """The noise of the study's own runs, of its widest comparison; None where some run has not finished."""
    store = Store(folder)
    result = compare(plan, list(store), store.failures())
    if any(run.status != "finished" for run in result.runs):
        return None
    sds = [(c.loss.sd, c.loss.df) for c in result.comparisons]
    if asked.unit == "compute":
        sds = [(g.tokens.standard_error and g.tokens.standard_error * g.tokens.n**0.5, g.tokens.df)
               for g in component_gains(result)[0]]  # fmt: skip
    known = [(sd, df) for sd, df in sds if sd and df]
    if not known or len(known) < len(result.comparisons):
        return None
    sd, df = max(known)
    return Noise(sd=sd, df=df, origin=f"from the {len(plan.seeds)} seeds that are here")


def _known(
    study: Study, base: Preset, named: Sequence[NamedVariant], asked: Precision
) -> tuple[Noise, int] | None:  # fmt: skip
    """The preset's noise of pairs like these, and the readings that share alpha: two where its seeds run here again."""
    if study.design != "one" or study.match == "seconds" or study.learning_rates or study.alternatives:
        return None
    levels = [v.levels for v in named]
    differing = [name for name in levels[0] if levels[0][name] != levels[1].get(name)]
    found = of_components(known_noise(base, study.match, budgets_of(study, named)[0]), differing)
    sd = found and (found.pair_sd_nats if asked.unit == "nats" else found.pair_sd_log_cost)
    if not found or not sd:
        return None
    again = study.first_seed <= max(found.seeds)
    return Noise(sd=sd, df=found.pair_df, origin=f"from {found.origin}"), STAGES if again else 1


def require_planned_precision(study: Study, base: Preset, named: Sequence[NamedVariant], design: Design) -> None:
    """ValueError unless a designed experiment reaches the study's precision with the preset's known noise."""
    asked = parse_precision(study.precision)
    known: tuple[KnownNoise, ...] = known_noise(base, study.match, budgets_of(study, named)[0])
    if asked.unit == "compute" or not known:
        why = "in nats alone" if known else "where the preset's noise is known, which it is not at this budget"
        raise ValueError(
            f"precision is {study.precision!r}: the design {study.design} is planned for a precision {why}; run a "
            "comparison or leave-one-out with it, or say n_seeds or n_runs"
        )
    widest = max(known, key=lambda noise: noise.run_sd_nats)
    sigma = widest.run_sd_nats
    if design.layout != "independent":
        sigma = max(noise.pair_sd_nats for noise in known) / 2**0.5
    require_precision(design, precision=asked.half_width, sigma=sigma, confidence=study.confidence)
