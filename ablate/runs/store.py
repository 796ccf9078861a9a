"""The folder of a study: records committed once, attempts fenced from each other. The files are the truth."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.files import commit_once, replace_file, to_json
from ablate.runs.record import Failure, RunRecord, decode_record
from ablate.spec.decoding import decode


@dataclass(frozen=True, slots=True)
class Store:
    """Paths of a study's folder, and the only way a record gets into it."""

    folder: Path

    @property
    def records(self) -> Path:
        return self.folder / "records"

    @property
    def study_file(self) -> Path:
        return self.folder / "study.toml"

    @property
    def plan_file(self) -> Path:
        return self.folder / "plan.json"

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / "tokenizer.json"

    def run_folder(self, run_id: str) -> Path:
        return self.folder / "runs" / run_id

    def attempts_folder(self, run_id: str) -> Path:
        return self.run_folder(run_id) / "attempts"

    def new_attempt(self, run_id: str) -> Path:
        """A folder that only this attempt writes to. Names sort by time of start."""
        folder = self.attempts_folder(run_id)
        folder.mkdir(parents=True, exist_ok=True)
        n = len(list(folder.iterdir()))
        attempt = folder / f"{n:04d}-{uuid.uuid4().hex[:8]}"
        attempt.mkdir()
        return attempt

    def create(self) -> None:
        """Make the folder; ValueError if it cannot be written."""
        try:
            self.records.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".write-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"cannot write to {self.folder}: {error.strerror}; choose another folder with --out"
            ) from None

    def read(self, run_id: str) -> RunRecord | None:
        path = self.records / f"{run_id}.json"
        return read_record(path) if path.exists() else None

    def __iter__(self) -> Iterator[RunRecord]:
        for path in sorted(self.records.glob("*.json")):
            yield read_record(path)

    def failures(self) -> list[Failure]:
        """The last failure of every run that has no record: such a run is tried again when the study is."""
        latest: dict[str, Failure] = {}
        for path in sorted((self.folder / "failures").glob("*.json")):
            failure = decode(Failure, _read_json(path), str(path))
            if not (self.records / f"{failure.run_id}.json").exists():
                latest[failure.run_id] = failure
        return list(latest.values())

    def note_failure(self, failure: Failure) -> None:
        """Keep why an attempt ended; failures are not records, since the run is still to be done."""
        known = len(list((self.folder / "failures").glob(f"{failure.run_id}-*.json")))
        path = self.folder / "failures" / f"{failure.run_id}-{known:04d}.json"
        replace_file(path, to_json(dataclasses.asdict(failure)))

    def commit(self, record: RunRecord) -> bool:
        """Put a record there if none is; False if the run had one already, which is then kept."""
        return commit_once(self.records / f"{record.run_id}.json", to_json(dataclasses.asdict(record)))


def read_record(path: Path) -> RunRecord:
    """ValueError if the file is torn, of another schema, or not the record its name says."""
    record = decode_record(_read_json(path), str(path))
    if path.stem != record.run_id:
        raise ValueError(f"the record {path} is that of run {record.run_id}; give it back its name")
    return record


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read the record {path}: {error}; move it away and run the study again") from None
