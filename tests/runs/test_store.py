"""Records are committed once, whole or not at all, and read strictly."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from ablate.files import commit_once
from ablate.runs.record import Failure, RunRecord, pairing_fault
from ablate.runs.store import Store

SPEC = {"seed": 3, "n_steps": 10, "trainer": {"batch_size": 4, "sequence_length": 8}}


def record(run_id: str = "a" * 16, **changes: Any) -> RunRecord:
    return dataclasses.replace(RunRecord(run_id=run_id, status="finished", spec=SPEC, variant={"mtp": "on"}), **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "study")
    made.create()
    return made


def test_the_first_record_of_a_run_stays(store: Store) -> None:
    assert store.commit(record(metrics={"nats_per_token": 1.0}))
    assert not store.commit(record(metrics={"nats_per_token": 2.0}))
    kept = store.read("a" * 16)
    assert kept is not None
    assert kept.metrics == {"nats_per_token": 1.0}
    assert [p.name for p in store.records.iterdir()] == ["a" * 16 + ".json"]


def _commit(path: Path, text: str) -> None:
    commit_once(path, text)


def test_of_many_writers_one_wins_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    context = multiprocessing.get_context("fork")
    texts = [f"{i}" * 50_000 for i in range(8)]
    writers = [context.Process(target=_commit, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_torn_record_is_one_sentence(store: Store) -> None:
    store.commit(record())
    path = store.records / ("a" * 16 + ".json")
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match="cannot read the record"):
        store.read("a" * 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"surprise": 1}, "surprise is unknown"),
        ({"status": "great"}, "status"),
        ({"run_id": "b" * 16}, "give it back its name"),
    ],
)
def test_a_foreign_record_is_refused(store: Store, change: dict[str, Any], message: str) -> None:
    store.commit(record())
    path = store.records / ("a" * 16 + ".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        store.read("a" * 16)


def test_a_metric_that_is_not_a_number_is_never_written(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.commit(record(metrics={"nats_per_token": float("nan")}))
    assert list(store.records.iterdir()) == []


def failure(reason: str) -> Failure:
    return Failure(run_id=record().run_id, variant={}, seed=0, reason=reason, traceback="", time_s=0.0)


def test_failures_give_way_to_a_record(store: Store) -> None:
    store.note_failure(failure("first"))
    store.note_failure(failure("second"))
    assert [f.reason for f in store.failures()] == ["second"]
    assert store.read("a" * 16) is None
    store.commit(record())
    assert store.failures() == []


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose another folder with --out"):
        Store(tmp_path / "file" / "study").create()


def test_runs_pair_only_on_the_same_tokens_and_initial_values() -> None:
    one = record(order_hash="x", initial_parameters={"a": "2x2:11", "b": "4:22"})
    assert pairing_fault(one, dataclasses.replace(one, initial_parameters={"a": "2x2:11", "c": "1:1"})) == ""
    assert pairing_fault(one, dataclasses.replace(one, initial_parameters={"a": "2x3:99"})) == ""
    assert "initial values of a" in pairing_fault(one, dataclasses.replace(one, initial_parameters={"a": "2x2:99"}))
    assert "different tokens" in pairing_fault(one, dataclasses.replace(one, order_hash="y"))
    assert "seeds differ" in pairing_fault(one, dataclasses.replace(one, spec=SPEC | {"seed": 4}))
