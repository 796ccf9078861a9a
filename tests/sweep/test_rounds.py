"""Studies whose seeds depend on what was seen: planned looks, stages, a precision, and more seeds than before."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ablate.attribution.design.planning import Noise, seeds_for
from ablate.documents import read_json
from ablate.presets.noise import FILE
from ablate.report import build
from ablate.runs.conduct import Outcome
from ablate.runs.history import History, looks, plans, unplanned
from ablate.runs.job import Job
from ablate.runs.plan import Plan
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.spec.decoding import encode
from ablate.sweep import run as sweep
from ablate.sweep.estimate import Estimate
from ablate.sweep.rounds import run_to_end
from ablate.sweep.run import Options, StudyRun
from ablate.sweep.seeds import this_round
from ablate.sweep.variants import variants

Losses = Callable[[int, int], float]  # seed, components that are on -> loss


class Told:
    """A display that keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def show_plan(self, plan: Plan, n_parallel: int, folder: Path, time: Estimate) -> None: ...

    def follow(self, plan: Plan, n_parallel: int) -> Any:
        return lambda event: None

    def end(self) -> None: ...


class Conduct:
    """Runs studies whose runs are played; `ran` has the seeds of the runs that were made."""

    def __init__(self, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.text, self.monkeypatch, self.ran, self.display = text, monkeypatch, list[int](), Told()

    def __call__(self, out: Path, losses: Losses, stop_after: int = 10**6, **fields: Any) -> StudyRun:
        self.ran.clear()

        def execute_all(jobs: Sequence[Job], store: Store, *_: Any, **__: Any) -> Outcome:
            for job in jobs:
                if store.read(job.run_id) is None and len(self.ran) < stop_after:
                    self.ran.append(job.run.seed)
                    store.commit(record(job, losses))
            return Outcome(status={}, interrupted=len(self.ran) >= stop_after)

        self.monkeypatch.setattr(sweep, "execute_all", execute_all)
        self.monkeypatch.setattr(sweep, "start_server", lambda: None)
        asked = {"question": "?", "preset": "nano", "disable": ("mtp",), "without": ("distill",), "margin_nats": 0.0}
        study = Study(**(asked | fields), data=str(self.text))
        return run_to_end(study, Options(out=out, n_parallel=2), self.display)


def record(job: Job, losses: Losses) -> RunRecord:
    on = sum(level == "on" for level in job.variant.values())
    metrics = {"nats_per_token": losses(job.run.seed, on), "tokens_per_s": 100.0, "seconds": 2.0, "step_s": 0.01}
    return RunRecord(
        run_id=job.run_id, status="finished", spec=encode(job.run), variant=dict(job.variant), metrics=metrics,
        order_hash=str(job.run.seed), initial_parameters={"w": f"1:{job.run.seed}"},
    )  # fmt: skip


@pytest.fixture
def conduct(small_text: Path, monkeypatch: pytest.MonkeyPatch) -> Conduct:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_text.parent / "cache"))
    return Conduct(small_text, monkeypatch)


def noise(seed: int, on: int) -> float:
    return 0.005 * (-1) ** (seed + on) * (1 + 0.1 * (seed % 3))


def nothing(seed: int, on: int) -> float:
    """Pairs differ by about 0.01, to one side as often as to the other."""
    return 3 + noise(seed, on)


def clear(seed: int, on: int) -> float:
    return 3 - 0.5 * on + noise(seed, on)


def late(seed: int, on: int) -> float:
    """An effect that five pairs do not show and more do."""
    return 3 - 0.01 * on + noise(seed, on)


def chance(seed: int, on: int) -> float:
    return 3 + random.Random(f"{seed} {on}").gauss(0, 0.01)


def test_a_study_stops_at_the_look_that_decides_and_a_repeated_command_looks_at_nothing(
    tmp_path: Path, conduct: Conduct
) -> None:
    done = conduct(tmp_path / "s", clear, until="resolved")
    assert sorted(conduct.ran) == sorted([*range(5)] * 2)
    assert done.plan.interval_confidence == pytest.approx(1 - 0.05 / 3)
    entries = History(tmp_path / "s").entries()
    assert [(e.n_seeds, dict(e.verdicts)) for e in looks(entries)] == [(5, {"mtp": "gain"})]
    again = conduct(tmp_path / "s", clear, until="resolved")
    assert (conduct.ran, again.plan.seeds) == ([], done.plan.seeds)
    assert History(tmp_path / "s").entries() == entries
    content = build(tmp_path / "s")
    assert [row[1] for row in content.looks.rows] == ["mtp gain", "not made", "not made"]
    assert any("look 1 of 3" in w and "95 % would be wrong" in w for w in content.warnings)
    assert not content.any_time.rows


def test_undecided_looks_go_on_to_the_last_and_no_further(tmp_path: Path, conduct: Conduct) -> None:
    done = conduct(tmp_path / "s", nothing, until="resolved", max_seeds=8)
    made = looks(History(tmp_path / "s").entries())
    assert [entry.n_seeds for entry in made] == [2, 4, 8]
    assert {entry.confidence for entry in made} == {done.plan.interval_confidence}
    assert conduct(tmp_path / "s", nothing, until="resolved", max_seeds=8).plan.seeds == tuple(range(8))
    assert not conduct.ran
    with pytest.raises(ValueError, match=r"was read at 2, 4, 8; looks at 4, 8, 16 seeds leave none .* --seeds N"):
        conduct(tmp_path / "s", nothing, until="resolved", max_seeds=16)
    assert looks(History(tmp_path / "s").entries()) == made


def test_a_study_that_is_killed_between_looks_goes_on(tmp_path: Path, conduct: Conduct) -> None:
    conduct(tmp_path / "s", late, stop_after=13, until="resolved")
    assert [e.n_seeds for e in looks(History(tmp_path / "s").entries())] == [5]
    content = build(tmp_path / "s")
    assert all(c.loss.low is None for c in content.result.comparisons), "between looks nothing can be read"
    conduct(tmp_path / "s", late, until="resolved")
    whole = conduct(tmp_path / "whole", late, until="resolved")
    made = [[(e.n_seeds, e.verdicts) for e in looks(History(tmp_path / n).entries())] for n in ("s", "whole")]
    assert made[0] == made[1]
    assert len(made[0]) > 1
    assert whole.plan.seeds == tuple(range(made[1][-1][0]))


def test_looks_cannot_be_taken_out_of_the_history(tmp_path: Path, conduct: Conduct) -> None:
    conduct(tmp_path / "s", nothing, until="resolved", max_seeds=4)
    place = tmp_path / "s" / "history"
    first = sorted(place.glob("*.json"))[1]
    kept = first.read_text()
    first.write_text(kept.replace("not resolved", "gain"))
    with pytest.raises(ValueError, match="altered after it was written"):
        conduct(tmp_path / "s", nothing, until="resolved", max_seeds=4)
    first.unlink()
    with pytest.raises(ValueError, match=r"an entry before .* is missing"):
        conduct(tmp_path / "s", nothing, until="resolved", max_seeds=4)
    shutil.rmtree(place)
    with pytest.raises(ValueError, match="the history that says which is missing"):
        conduct(tmp_path / "s", nothing, until="resolved", max_seeds=4)


def test_more_seeds_run_what_is_missing_and_the_report_says_when_they_were_added(
    tmp_path: Path, conduct: Conduct
) -> None:
    conduct(tmp_path / "s", nothing, n_seeds=3)
    assert not build(tmp_path / "s").warnings
    done = conduct(tmp_path / "s", nothing, n_seeds=6)
    assert sorted(conduct.ran) == [3, 3, 4, 4, 5, 5]
    content = build(tmp_path / "s")
    assert any("changed after results could have been seen (to 6 when 6 results" in w for w in content.warnings)
    (row,) = content.any_time.rows
    assert row[0] == "mtp"
    assert [e.n_seeds for e in plans(History(tmp_path / "s").entries())] == [3, 6]
    assert conduct(tmp_path / "s", nothing).plan == done.plan, "a command that says no number takes what is there"
    with pytest.raises(ValueError, match="holds this study with 6 seeds, and 4 were asked for"):
        conduct(tmp_path / "s", nothing, n_seeds=4)
    with pytest.raises(ValueError, match="holds another study"):
        conduct(tmp_path / "s", nothing, n_seeds=8, disable=("mla",))
    with pytest.raises(ValueError, match="holds another study"):
        conduct(tmp_path / "s", nothing, n_seeds=8, budget=1e10)


def test_more_seeds_before_any_result_are_no_peeking(tmp_path: Path, conduct: Conduct) -> None:
    conduct(tmp_path / "s", nothing, stop_after=0, n_seeds=3)
    conduct(tmp_path / "s", nothing, n_seeds=6)
    assert not unplanned(History(tmp_path / "s").entries())
    assert not build(tmp_path / "s").warnings


def test_a_pilot_plans_the_seeds_that_reach_a_precision(tmp_path: Path, conduct: Conduct) -> None:
    done = conduct(tmp_path / "s", nothing, precision="0.009")
    made = plans(History(tmp_path / "s").entries())
    assert [e.origin for e in made] == ["pilot", "pilot's noise"]
    assert (made[0].n_seeds, made[1].n_seeds) == (5, len(done.plan.seeds))
    assert len(done.plan.seeds) > 5
    effect = build(tmp_path / "s").result.comparisons[0].loss
    assert effect.low is not None
    assert effect.high is not None
    assert (effect.high - effect.low) / 2 <= 0.009
    assert effect.confidence == pytest.approx(0.975), "the pilot's runs count, so alpha is shared"
    assert not unplanned(History(tmp_path / "s").entries())
    conduct(tmp_path / "s", nothing, precision="0.009")
    assert not conduct.ran
    with pytest.raises(ValueError, match=r"half-width of 0.0001 nats takes .* seeds .*, and 100 are allowed"):
        conduct(tmp_path / "s", nothing, precision="0.0001")


def test_a_known_noise_plans_without_a_pilot(tmp_path: Path) -> None:
    def now(**fields: Any) -> Any:
        study = Study(question="?", preset="cpu", disable=("mtp",), precision="0.01", **fields)
        base = study.load_preset()
        return this_round(study, base, variants(study, base)[0], tmp_path)

    found = now(first_seed=100)
    (written,) = (noise for noise in read_json(FILE, "the noise", "") if noise["preset"] == "cpu")
    known = Noise(sd=written["pair_sd_nats"], df=4, origin="")
    n = seeds_for(0.01, known, confidence=0.95)
    assert (found.origin, found.stages, found.n_seeds) == ("known noise", 1, n)
    assert "from reports/cpu-mtp" in found.reason
    shared = now()
    assert (shared.origin, shared.stages) == ("known noise", 2), "its runs would be among those of the study"
    assert shared.n_seeds > found.n_seeds
    assert now(budget=1e9).origin == "pilot"
    assert now(trainer={"batch_size": 8}).origin == "pilot"
    with pytest.raises(ValueError, match=rf"takes {n} seeds .*--max-seeds {n}"):
        now(first_seed=100, max_seeds=n - 1)


def test_a_staged_design_goes_on_only_where_its_first_stage_leaves_something_open(
    tmp_path: Path, conduct: Conduct
) -> None:
    staged: Any = {"design": "staged", "disable": ("mla", "mtp")}
    first = conduct(tmp_path / "clear", clear, **staged)
    assert first.plan.n_runs == 28
    assert first.plan.interval_confidence == 0.975
    assert conduct(tmp_path / "clear", clear, **staged).plan == first.plan
    second = conduct(tmp_path / "open", chance, **staged)
    assert second.plan.n_runs > 28
    entries = looks(History(tmp_path / "open").entries())
    assert [e.n_runs for e in entries] == [28, second.plan.n_runs]
    assert not unplanned(History(tmp_path / "open").entries())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n_seeds": 3, "until": "resolved"}, "n_seeds and until were given"),
        ({"max_seeds": 3}, "neither was given"),
        ({"precision": "narrow"}, "precision is 'narrow'"),
        ({"until": "resolved", "design": "lattice"}, "not made of them"),
        ({"until": "resolved", "max_seeds": 1}, "at least 2"),
    ],
)
def test_what_says_how_many_seeds_is_said_once(fields: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Study(question="?", preset="nano", disable=("mtp",), **fields)
