"""A search: every slot is filled once, the records alone say what was done, and the storage is a mirror of them."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

import ablate.report as reports
import ablate.sweep.search.conduct as conducting
from ablate.attribution.study.search import SearchResult, TrialResult, pareto_front, read_search
from ablate.runs.asked import ask
from ablate.runs.searching import Parameter, Search, without_password
from ablate.runs.store import Store
from ablate.runs.study import Study, read_study, to_toml
from ablate.runs.trials import SearchPlan, Stage, Trial, TrialFolder, held, is_worked_on
from ablate.spec.run import Preset
from ablate.sweep.search.fields import value_of, with_fields
from ablate.sweep.search.proposals import should_prune

FULL = "full without distill"


def stored(out: Path) -> list[Any]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{out}/search/optuna.db")
    try:
        names = optuna.get_all_study_names(storage)
        return [t for name in names for t in optuna.load_study(study_name=name, storage=storage).get_trials()]
    finally:
        storage.engine.dispose()


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "search" / "trials").glob("*.trial.json")}


def mirrored(out: Path) -> bool:
    """Whether the storage holds every trial once, ended, with its values and the way to its record."""
    result, found = read_search(TrialFolder(out / "search")), stored(out)
    by_slot = {trial.user_attrs["slot"]: trial for trial in found}
    return len(found) == len(by_slot) == len(result.trials) and all(
        by_slot[one.trial.slot].state.is_finished()
        and by_slot[one.trial.slot].params == one.trial.parameters
        and (one.state != "complete" or tuple(by_slot[one.trial.slot].values) == one.values)
        and Path(by_slot[one.trial.slot].user_attrs["record"]).is_file()
        for one in result.trials
    )


def test_a_search_from_its_file_to_its_report(played: Any) -> None:
    played.conduct(played.searching(pruner="median"))
    result = read_search(TrialFolder(played.out / "search"))
    assert result.ended
    assert result.equal
    assert {group: sum(result.counts(group).values()) for group in result.plan.groups} == {FULL: 6, "-mtp": 6}
    assert any(one.trial.origin == f"best of {FULL}" for one in result.of("-mtp"))
    assert mirrored(played.out)
    before = files(played.out), played.attempts(), played.attempts(".")
    played.conduct(played.searching(pruner="median"))
    assert (files(played.out), played.attempts(), played.attempts(".")) == before
    content = reports.build(played.out)
    reports.write(content)
    text = (played.out / "report.md").read_text()
    assert "Every variant had the same number of trials" in text
    assert all(f"| {slot} |" in text for slot, _, _ in result.plan.slots())
    assert "Search</h2>" in (played.out / "report.html").read_text()
    document = reports.to_json(content)["search"]
    assert [one["slot"] for one in document["trials"]] == [slot for slot, _, _ in result.plan.slots()]
    assert document["groups"][FULL]["best"] in {one["slot"] for one in document["trials"] if one["group"] == FULL}
    winner = {v.name: v.planned.learning_rate for v in content.result.variants}
    assert winner[FULL] == pytest.approx(0.006, rel=0.5)
    assert set(content.result.plan.seeds).isdisjoint({result.plan.seed})


def test_what_a_killed_worker_left_is_taken_up_once(played: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study, real = played.searching(warm_start=False), conducting.execute_all
    for n in range(3):

        def killed(jobs: Any, *rest: Any, n: int = n, more: Any, **named: Any) -> Any:
            begun = more({})
            if n:
                real(begun[:1], *rest, **named)  # its record is committed, and told to nobody
            raise KeyboardInterrupt

        monkeypatch.setattr(conducting, "execute_all", killed)
        with pytest.raises(KeyboardInterrupt):
            played.conduct(study)
    left = files(played.out)
    assert 2 <= len(left) < 12
    assert any(trial.state == optuna.trial.TrialState.RUNNING for trial in stored(played.out))
    monkeypatch.setattr(conducting, "execute_all", real)
    played.conduct(study)
    assert left.items() <= files(played.out).items()
    assert mirrored(played.out)
    assert played.attempts() == 12  # none was made twice


def test_a_free_place_gets_the_next_trial_while_the_other_is_still_at_its_own(
    played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_work(jobs: Any, store: Store, *rest: Any, more: Any, **named: Any) -> Any:
        one, other = more({})
        assert more({}) == []
        store.commit(played.runs.record(other, seconds=0.0))
        assert [job.run_id not in (one.run_id, other.run_id) for job in more({other.run_id: "finished"})] == [True]
        raise KeyboardInterrupt

    monkeypatch.setattr(conducting, "execute_all", at_work)
    with pytest.raises(KeyboardInterrupt):
        played.conduct(played.searching())
    assert len(files(played.out)) == 3


def test_a_storage_that_is_lost_torn_or_half_empty_is_filled_again(played: Any) -> None:
    study = played.searching(trials=3)
    played.conduct(study)
    path = played.out / "search" / "optuna.db"
    path.unlink()
    assert any("6 trials filled in again" in said for said in played.conduct(study))
    assert mirrored(played.out)
    path.write_bytes(path.read_bytes()[:1000] + b"\0" * 5000)
    assert any("was damaged" in said and "optuna.db.damaged-0" in said for said in played.conduct(study))
    assert mirrored(played.out)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    optuna.delete_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)
    storage.engine.dispose()
    assert any("3 trials filled in again" in said for said in played.conduct(study))
    assert mirrored(played.out)


def test_a_search_is_not_run_here_in_silence_where_a_cluster_was_asked_for(played: Any) -> None:
    with pytest.raises(ValueError, match="not through a queue"):
        played.conduct(played.searching(), cluster="mine")


@pytest.mark.slow
def test_a_torn_journal_is_put_aside(played: Any, tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    study = played.searching(trials=3, storage=f"journal:{journal}")
    played.conduct(study)
    journal.write_text(journal.read_text()[:-20])
    assert any("was damaged" in said or "filled in again" in said for said in played.conduct(study))
    assert any("journal.log" in said for said in played.conduct(study)) is False


@pytest.mark.slow
def test_a_locked_storage_stops_nothing(played: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablate.sweep.search.storage.LOCK_WAIT_S", 0.05)
    study = played.searching(trials=3)
    played.conduct(replace(study, search=replace(study.search, trials=3)))
    lock = sqlite3.connect(played.out / "search" / "optuna.db", isolation_level=None)
    lock.execute("begin exclusive")
    said = played.conduct(study)
    lock.execute("commit")
    lock.close()
    assert sum("is locked by another program" in each for each in said) == 1
    assert not list((played.out / "search").glob("*.damaged*"))


@pytest.mark.slow
def test_identical_specifications_are_one_run(played: Any) -> None:
    two = {"trainer.learning_rate": Parameter(choices=(0.004, 0.006))}
    played.conduct(played.searching(parameters=two, sampler="random", trials=4, warm_start=False))
    result = read_search(TrialFolder(played.out / "search"))
    assert [one.state for one in result.trials] == ["complete"] * 8
    assert played.attempts() == len({one.trial.stages[-1].run_id for one in result.trials}) <= 4


@pytest.mark.slow
def test_a_search_over_the_whole_names_no_effect_of_a_component(played: Any) -> None:
    played.conduct(
        played.searching(
            over="whole", sampler="nsga2", objectives=("loss", "flops_per_token", "tokens_per_s"), trials=8
        )
    )
    content = reports.build(played.out)
    assert content.result.comparisons == ()
    assert content.answer[0].startswith("Best by loss of 8 trials: ")
    assert content.search is not None
    assert len(content.search.front.rows) >= 1
    assert len(content.search.confirmed.rows) == len(content.result.variants)
    assert mirrored(played.out)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["qmc", "grid"])
def test_every_sampler_spreads_its_points(played: Any, sampler: Any) -> None:
    rate = {"trainer.learning_rate": Parameter(low=1e-3, high=2e-2, log=True, points=4 if sampler == "grid" else None)}
    played.conduct(played.searching(parameters=rate, sampler=sampler, trials=4, warm_start=False))
    for group in (FULL, "-mtp"):
        found = read_search(TrialFolder(played.out / "search")).of(group)
        tried = {one.trial.parameters["trainer.learning_rate"] for one in found}
        assert len(tried) == 4


def trial(slot: str, variant: str = "full", run_id: str = "") -> Trial:
    stages = (Stage(share=0.25, run_id=f"short-{slot}"), Stage(share=1.0, run_id=run_id or slot))
    return Trial(slot=slot, group=variant, number=int(slot), variant=variant, levels={}, parameters={"rate": 1.0},
                 origin="sampler", stages=stages, flops_per_token=1.0, n_steps=1, flops=1)  # fmt: skip


def test_the_pareto_front_knows_what_is_to_be_large() -> None:
    def complete(slot: str, *values: float, run_id: str = "") -> TrialResult:
        return TrialResult(trial=trial(slot, run_id=run_id), state="complete", values=values)

    found = [complete("0", 1.0, 5.0), complete("1", 2.0, 9.0), complete("2", 2.0, 7.0), complete("3", 3.0, 9.0),
             complete("4", 1.0, 5.0, run_id="0"), TrialResult(trial=trial("5"), state="pruned")]  # fmt: skip
    front = pareto_front(found, ("loss", "tokens_per_s"))
    assert [one.trial.slot for one in front] == ["0", "1"]
    assert [one.trial.slot for one in pareto_front(found, ("loss", "memory"))] == ["0"]


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_pruning_never_looks_at_another_variant(played: Any, pruner: Any) -> None:
    """The other variant is far better at the same share of the budget, and says nothing."""
    study = played.searching(pruner=pruner)

    def ended(slot: str, variant: str, short: float) -> TrialResult:
        losses = {0.25: short, 1.0: short - 1}
        return TrialResult(trial=trial(slot, variant), state="complete", values=(short - 1,), losses=losses)

    others = [ended(str(i), "-mtp", 1.0 + i / 100) for i in range(8)]
    own = [ended(str(i), "full", 5.0 + i / 10) for i in range(8)]
    plan = SearchPlan(
        question="?", preset="nano", match="flops", budget=1.0, seed=0, corpus_hash="", n_trials=9,
        groups=("full", "-mtp"), variants=("full", "-mtp"), objectives=("loss",), sampler="tpe", pruner=pruner,
        table={},
    )  # fmt: skip

    def prunes(found: list[TrialResult], loss: float) -> bool:
        return should_prune(study.search, SearchResult(plan=plan, trials=tuple(found)), trial("9"), 0.25, loss)

    assert not prunes(others, 5.0)
    assert prunes([*others, *own], 5.7)
    assert not prunes([*others, *own], 5.1)


def test_a_claim_is_held_by_one_and_an_attempt_by_its_process(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    with folder.claim("0") as mine, folder.claim("0") as theirs, folder.claim("1") as other:
        assert (mine, theirs, other) == (True, False, True)
    with folder.claim("0") as again:
        assert again
    attempts = Store(tmp_path).attempts_folder("run")
    (attempts / "a").mkdir(parents=True)
    assert not is_worked_on(attempts)
    with held(attempts / "a" / "lock"):
        assert is_worked_on(attempts)
    assert not is_worked_on(attempts)


def test_a_slot_is_filled_once(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    first = folder.propose(trial("0"))
    assert folder.propose(replace(trial("0"), parameters={"rate": 2.0})) == first == folder.read("0")


ADDRESS = "postgresql://someone:hush@127.0.0.1:1/optuna?sslpassword=hush2"


def test_a_password_is_written_nowhere(played: Any) -> None:
    study = played.searching(trials=3, storage=ADDRESS)
    assert "hush" not in to_toml(study) + repr(study)
    assert "hush" not in str(ask(study, {}).document), "it is kept in the plan, and the report shows it"
    with pytest.raises(ValueError, match="does not answer") as refused:
        played.conduct(study)
    assert "someone@127.0.0.1" in str(refused.value)
    assert "hush" not in str(refused.value)
    assert not [path for path in played.out.rglob("*") if path.is_file() and b"hush" in path.read_bytes()]
    assert without_password("postgresql://h/d?a=1&password=x&b=2") == "postgresql://h/d?a=1&b=2"


def test_a_study_file_with_a_search_is_written_as_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        'question = "?"\npreset = "nano"\ndisable = ["mtp"]\n[search]\ntrials = 4\nobjectives = ["loss", "memory"]\n'
        '[search.parameters]\n"trainer.learning_rate" = {low = 1e-3, high = 1e-2, log = true}\n'
        '"moe.n_routed_experts" = {choices = [4, 8]}\n'
    )
    study = read_study(path)
    path.write_text(to_toml(study))
    assert read_study(path) == study


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameters": {}}, "parameters is empty"),
        ({"parameters": {"trainer.learning_rate": Parameter(low=2.0, high=1.0)}}, "low must be the smaller"),
        ({"parameters": {"trainer.learning_rate": Parameter(low=0.0, high=1.0, log=True)}}, "begins above 0"),
        ({"parameters": {"trainer.learning_rate": Parameter()}}, "needs low and high, or choices"),
        ({"parameters": {"trainer.learning_rat": Parameter(low=1.0, high=2.0)}}, "did you mean 'learning_rate'"),
        ({"parameters": {"trainer.sequence_length": Parameter(choices=(8, 16))}}, "every trial has equal"),
        (
            {"parameters": {"trainer.learning_rate": Parameter(low=1.0, high=1e9)}},
            "is impossible with trainer.learning",
        ),
        ({"parameters": {"moe.n_routed_experts": Parameter(low=1.5, high=4.0)}}, "whole numbers"),
        ({"parameters": {"trainer.dtype": Parameter(low=1, high=4)}}, "give choices"),
        ({"sampler": "grid"}, "has no points"),
        ({"pruner": "median", "objectives": ("loss", "memory")}, "pruned by its loss alone"),
        ({"pruner": "median", "rungs": (0.5, 0.25)}, "increasing shares"),
        ({"objectives": ("loss", "loss")}, "each once"),
        ({"trials": 0}, "search.trials is 0"),
        ({"storage": "mysql://user:hush@host/db"}, "search.storage is no address"),
    ],
)
def test_what_a_search_refuses(played: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        played.conduct(played.searching(**fields))
    assert "hush" not in str(refused.value)
    assert not played.out.exists()


@pytest.mark.slow
def test_another_search_in_the_folder_is_refused(played: Any) -> None:
    played.conduct(played.searching(trials=3))
    with pytest.raises(ValueError, match="holds another search"):
        played.conduct(played.searching(trials=4))


def test_fields_of_a_preset_by_their_path(played: Any) -> None:
    base: Preset = played.study.load_preset()
    for path, value in {"trainer.batch_size": 8, "optimizer.weight_decay": 0.3, "model.n_layers": 3, "norm.eps": 1e-4,
                        "moe.n_routed_experts": 4}.items():  # fmt: skip
        assert value_of(base, path) != value
        changed = with_fields(base, {path: value})
        assert value_of(changed, path) == value
        assert with_fields(changed, {path: value_of(base, path)}) == base


def test_tables_that_contradict_the_study_are_refused() -> None:
    search = Search(parameters={"trainer.learning_rate": Parameter(low=1e-3, high=1e-2)})
    common: dict[str, Any] = {"question": "?", "preset": "nano", "disable": ("mtp",)}
    with pytest.raises(ValueError, match="one of them"):
        Study(**common, search=search, learning_rates="tuned")
    with pytest.raises(ValueError, match="match flops or tokens"):
        Study(**common, search=search, match="seconds", budget=1.0)
