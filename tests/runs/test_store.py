"""Records are committed once, whole or not at all, and read strictly."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from ablate.files import commit_once, sealed
from ablate.runs.attempts import newest
from ablate.runs.record import Failure, RunRecord, pairing_fault
from ablate.runs.store import Store, read_record
from ablate.spec.decoding import data_id

SPEC = {"seed": 3, "n_steps": 10, "trainer": {"batch_size": 4, "sequence_length": 8}}
RUN = data_id(SPEC)


def record(run_id: str = RUN, **changes: Any) -> RunRecord:
    return dataclasses.replace(RunRecord(run_id=run_id, status="finished", spec=SPEC, variant={"mtp": "on"}), **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "study")
    made.create()
    return made


def test_the_first_record_of_a_run_stays(store: Store) -> None:
    assert store.commit(record(metrics={"nats_per_token": 1.0}))
    assert not store.commit(record(metrics={"nats_per_token": 2.0}))
    kept = store.read(RUN)
    assert kept is not None
    assert kept.metrics == {"nats_per_token": 1.0}
    assert [p.name for p in store.records.iterdir()] == [RUN + ".json"]


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
    path = store.records / (RUN + ".json")
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match="cannot read the record"):
        store.read(RUN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"surprise": 1}, "surprise is unknown"),
        ({"status": "great"}, "status"),
        ({"run_id": "b" * 16}, "its specification is that of run"),
        ({"spec": SPEC | {"seed": 4}}, "its specification is that of run"),
        ({"spec": SPEC | {"seed": 4}, "run_id": data_id(SPEC | {"seed": 4})}, "give it back its name"),
        ({"metrics": {"nats_per_token": "nan"}}, "nats_per_token"),
        ({"metrics": {"tokens_per_s": 0}}, "tokens_per_s is 0"),
        ({"metrics": {"nats_per_token": 1e999}}, "not finite"),
    ],
)
def test_a_foreign_record_is_refused(store: Store, change: dict[str, Any], message: str) -> None:
    store.commit(record())
    path = store.records / (RUN + ".json")
    unsealed = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}
    path.write_text(json.dumps(unsealed | change))
    with pytest.raises(ValueError, match=message) as caught:
        store.read(RUN)
    assert str(path) in str(caught.value)


def test_every_altered_bit_of_a_record_is_seen(store: Store) -> None:
    store.commit(record(metrics={"nats_per_token": 1.2345678901234567}, curve=({"step": 1.0, "nats_per_token": 1e-5},)))
    path = store.records / (RUN + ".json")
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), 3):
        path.write_bytes(good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :])
        with pytest.raises(ValueError, match=str(path)):
            store.read(RUN)


def test_records_of_earlier_versions_are_read_without_a_seal(tmp_path: Path) -> None:
    published = sorted((Path(__file__).parents[2] / "reports" / "cpu-mtp" / "records").glob("*.json"))
    assert [read_record(path).run_id for path in published] == [path.stem for path in published]
    data = json.loads(published[0].read_text())
    for key in ("sha256", "judged", "branches"):  # what versions 1 and 2 had not
        del data[key]
    for version in (1, 2):
        path = tmp_path / published[0].name
        path.write_text(json.dumps(data | {"schema_version": version}))
        assert read_record(path).run_id == published[0].stem


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
    assert store.read(RUN) is None
    store.commit(record())
    assert store.failures() == []


def test_a_failure_is_in_its_attempt_and_never_takes_the_place_of_another(store: Store) -> None:
    attempt = store.new_attempt(RUN, "key")
    store.note_failure(failure("first"), attempt)
    store.note_failure(failure("of another rank"), attempt)
    assert [f.reason for f in store.failures()] == ["first"]
    store.note_failure(failure("second"))
    assert sorted(len(list(p.glob("failure.json"))) for p in store.attempts_folder(RUN).iterdir()) == [1, 1]
    assert [f.reason for f in store.failures()] == ["second"]
    (max(store.attempts_folder(RUN).iterdir()) / "failure.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"the note of a failure .*failure.json: it is nested too deep; delete it"):
        store.failures()


def test_notes_of_versions_that_kept_them_apart_are_read(store: Store) -> None:
    place = store.folder / "failures" / f"{RUN}-0000.json"
    place.parent.mkdir()
    place.write_text(sealed(dataclasses.asdict(failure("earlier"))))
    assert [f.reason for f in store.failures()] == ["earlier"]
    store.note_failure(failure("now"))
    assert [f.reason for f in store.failures()] == ["now"]


def test_attempts_have_their_key_and_never_share_a_folder(store: Store) -> None:
    made = [store.new_attempt(RUN, "a-0"), store.new_attempt(RUN, "b-0"), store.new_attempt(RUN, "a-0")]
    assert len(set(made)) == 3
    assert newest(store.attempts_folder(RUN), "a") == made[2]
    assert newest(store.attempts_folder(RUN), "b-0") == made[1]
    assert newest(store.attempts_folder(RUN), "c") is None
    made[0].rmdir()
    assert store.new_attempt(RUN, "a-0") not in made[1:]


def test_the_status_of_a_record_is_that_of_a_sound_one(store: Store) -> None:
    assert store.status(RUN) is None
    store.commit(record(reason='" "status": "diverged",'))
    assert store.status(RUN) == "finished"
    path = store.records / f"{RUN}.json"
    good = path.read_text()
    for bad in (good.replace('"finished"', '"diverged"'), good[:-20], good.replace('"seed": 3', '"seed": 2'), ""):
        path.write_text(bad)
        with pytest.raises(ValueError, match=RUN):
            store.status(RUN)


def test_a_failure_that_cannot_be_noted_is_told_and_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    store.note_failure(failure("first"))
    assert "cannot write the note of a failure" in caplog.text
    assert "make room on that disk" in caplog.text
    with pytest.raises(OSError, match=f"cannot write the record .*{RUN}.json: No space left on device; make room"):
        store.commit(record())
    assert store.read(RUN) is None


def test_what_killed_writers_left_is_gone_at_the_next_start(store: Store) -> None:
    attempt = store.new_attempt(RUN)
    (store.folder / "failures").mkdir()
    places = [store.folder, store.records, store.folder / "failures", store.run_folder(RUN), attempt]
    for place in places:
        (place / ".writing-0").mkdir()
        (place / ".writing-0" / "tensors.safetensors").write_text("half")
        (place / ".writing-1").write_text("half")
        (place / "kept").write_text("whole")
    store.create()
    assert [p for place in places for p in place.glob(".writing-*")] == []
    assert all((place / "kept").exists() for place in places)


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
