"""How long a study will take: from runs like its own on this very machine, else guessed from their FLOPs; a range."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ablate.files import CannotWrite, read_sealed, write_sealed
from ablate.quantities import duration
from ablate.runs.plan import Plan, PlannedVariant
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.spec.decoding import data_id, encode
from ablate.spec.machine import cache_folder, this_machine
from ablate.spec.run import RunSpec

KEPT = 20  # runs of one kind that are remembered
SPREAD = 1.25  # runs of one kind differ by about this factor from day to day
NEAR = 4.0  # times the FLOPs of a step, up to which runs of another kind say something
SCALING = 2.0  # FLOP/s of one kind of run say those of another to about this factor
# Training FLOP/s of one run where nothing was timed yet: from small models, whose steps are mostly overhead, to large.
GUESSED_FLOPS_PER_S = {"cpu": (2e9, 6e10), "cuda": (1e11, 4e14)}
START_S = (1.0, 10.0)  # of a run's process, where nothing was timed yet


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTime:
    """Seconds that one run may take."""

    low: float
    middle: float
    high: float
    origin: str  # in words


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Time of the runs of a plan that have no record yet."""

    runs: Mapping[str, RunTime]  # variant -> of one of its runs
    n_left: int
    low_s: float
    high_s: float
    origin: str

    def __str__(self) -> str:
        if not self.n_left:
            return "none is left to run"
        low, high = duration(self.low_s), duration(self.high_s)
        return f"about {low}, {self.origin}" if low == high else f"between {low} and {high}, {self.origin}"


def estimate(plan: Plan, runs: Mapping[str, RunSpec], store: Store, n_parallel: int) -> Estimate:
    """What is left of a plan in time, each variant's from the nearest that is known of it on this machine."""
    done = ended(store)
    here = list(_finished(store, done))
    known = _remembered()
    times = {v.name: _run_time(v, runs, [r for r in here if r.run_id in v.run_ids], known) for v in plan.variants}
    left = plan.left(done)
    ends = [sum(left[name] * end(time) for name, time in times.items()) / n_parallel for end in (_low, _high)]
    # A machine is not used fully at the end, when fewer runs than `n_parallel` are left.
    longest = max((time.high for name, time in times.items() if left[name]), default=0.0)
    return Estimate(
        runs=times, n_left=sum(left.values()), low_s=ends[0], high_s=max(ends[1], longest),
        origin=max((time.origin for time in times.values()), key=ORIGINS.index),
    )  # fmt: skip


def with_estimates(plan: Plan, found: Estimate) -> Plan:
    """The plan with the seconds of a step of each variant, evaluation in its share, where they were not measured."""
    return replace(
        plan,
        variants=tuple(replace(v, step_s=found.runs[v.name].middle / v.n_all_steps) for v in plan.variants),
    )


def ended(store: Store) -> set[str]:
    """The runs of a folder that have a record."""
    return {path.stem for path in store.records.glob("*.json")}


def _finished(store: Store, identities: Iterable[str]) -> Iterator[RunRecord]:
    """Records of finished runs; a damaged one is told by whoever needs it, and says nothing of time."""
    for identity in sorted(identities):
        with suppress(ValueError):
            record = store.read(identity)
            if record is not None and record.status == "finished":
                yield record


def remember(plan: Plan, runs: Mapping[str, RunSpec], store: Store, earlier: Collection[str]) -> None:
    """Keep how long the runs took that were not there earlier, for the estimates of later studies on this machine.

    A disk that takes no file loses only that.
    """
    known = dict(_remembered())
    flops = {identity: _all_flops(v) for v in plan.variants for identity in v.run_ids}
    for record in _finished(store, ended(store) - set(earlier)):
        seconds, step_s = record.metrics.get("seconds"), record.metrics.get("step_s")
        if not seconds or not step_s or record.run_id not in flops:
            continue
        run = runs[record.run_id]
        n_steps = run.n_steps + run.n_branch_steps
        other_s, flops_per_s = max(seconds - step_s * n_steps, 0.0), flops[record.run_id] / seconds
        a_step = flops[record.run_id] / n_steps
        entry = {"step_s": step_s, "other_s": other_s, "flops_per_s": flops_per_s, "flops_a_step": a_step}
        known[_kind(run)] = [*known.get(_kind(run), []), entry][-KEPT:]
    try:
        write_sealed(_file(), known, "how long runs took")
    except CannotWrite:
        return


HERE = "from the runs that have ended here"
SAME = "from runs like these on this machine"
OTHER = "from other runs on this machine, by FLOPs"
GUESS = "a guess from the FLOPs, since nothing was timed on this machine yet"
ORIGINS = (HERE, SAME, OTHER, GUESS)  # the least certain last


def _run_time(
    v: PlannedVariant, runs: Mapping[str, RunSpec], here: list[RunRecord], known: Mapping[str, Any]
) -> RunTime:
    took = [record.metrics["seconds"] for record in here if "seconds" in record.metrics]
    if took:
        return _spread(took, SPREAD if len(took) < 3 else 1.1, HERE)
    kind = known.get(_kind(runs[v.run_ids[0]]), [])
    if kind:
        return _spread([e["step_s"] * v.n_all_steps + e["other_s"] for e in kind], SPREAD, SAME)
    flops = _all_flops(v)
    near = [e for entries in known.values() for e in entries if _is_near(e, flops / v.n_all_steps)]
    rates = [e["flops_per_s"] for e in near]
    if rates:
        return _spread([flops / rate for rate in rates], SCALING, OTHER)
    low, high = GUESSED_FLOPS_PER_S[this_machine().kind]
    ends = flops / high + START_S[0], flops / low + START_S[1]
    return RunTime(low=ends[0], middle=(ends[0] * ends[1]) ** 0.5, high=ends[1], origin=GUESS)


def _is_near(entry: Mapping[str, Any], flops_a_step: float) -> bool:
    """Whether the FLOP/s of other runs say those of this one: small steps are mostly overhead, large ones not."""
    return 1 / NEAR <= entry.get("flops_a_step", 0.0) / flops_a_step <= NEAR


def _spread(seconds: list[float], factor: float, origin: str) -> RunTime:
    return RunTime(
        low=min(seconds) / factor, middle=statistics.median(seconds), high=max(seconds) * factor, origin=origin
    )


def _all_flops(v: PlannedVariant) -> float:
    """Training FLOPs of one run with its branches."""
    return v.flops / v.n_steps * v.n_all_steps


def _kind(run: RunSpec) -> str:
    """What runs that take the same time a step have in common: all but seed, length and corpus."""
    plain = encode(run)
    return data_id({key: plain[key] for key in ("model", "text", "trainer")})


def _file() -> Any:
    machine = f"{platform.node() or 'machine'}-{this_machine().slug}"
    return cache_folder() / "times" / f"{''.join(c if c.isalnum() or c in '-.' else '-' for c in machine)}.json"


def _remembered() -> Mapping[str, Any]:
    found = read_sealed(_file())
    return found if isinstance(found, dict) else {}


def _low(time: RunTime) -> float:
    return time.low


def _high(time: RunTime) -> float:
    return time.high
