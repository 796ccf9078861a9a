"""The folder of a study: records committed once, attempts fenced from each other. The files are the truth."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ablate.documents import read_document
from ablate.files import CannotWrite, collect, commit_once, new_folder, sealed
from ablate.runs.record import Failure, RunRecord, decode_record
from ablate.spec.decoding import decode

log = logging.getLogger(__name__)

CURE = "move it away and give the study's command again: it makes the run anew"


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

    def tokenizer_of(self, corpus_hash: str) -> Path:
        """Of a corpus that some variants read in other tokens than the reference."""
        return self.folder / f"tokenizer-{corpus_hash[:16]}.json"

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
        """Make the folder, and clear what killed writers left in it; ValueError if it cannot be written."""
        try:
            self.records.mkdir(parents=True, exist_ok=True)
            with new_folder(self.folder):
                pass
        except OSError as error:
            raise ValueError(
                f"cannot write to {self.folder}: {error.strerror}; choose another folder with --out"
            ) from None
        for place in ("records", "failures", "runs/*", "runs/*/attempts/*"):
            for folder in self.folder.glob(place):
                collect(folder)

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
            data = read_document(path, "the note of a failure", "delete it: the run is tried again with the study")
            failure = decode(Failure, data, str(path))
            if not (self.records / f"{failure.run_id}.json").exists():
                latest[failure.run_id] = failure
        return list(latest.values())

    def note_failure(self, failure: Failure) -> None:
        """Keep why an attempt ended; failures are not records, since the run is still to be done.

        A disk that takes no record takes no note either: that is told, and the other runs go on.
        """
        folder, text = self.folder / "failures", sealed(dataclasses.asdict(failure))
        n = len(list(folder.glob(f"{failure.run_id}-*.json")))
        try:
            while not commit_once(folder / f"{failure.run_id}-{n:04d}.json", text, "the note of a failure"):
                n += 1
        except CannotWrite as error:
            log.warning("%s", error)

    def commit(self, record: RunRecord) -> bool:
        """Put a record there if none is; False if the run had one already, which is then kept."""
        path = self.records / f"{record.run_id}.json"
        return commit_once(path, sealed(dataclasses.asdict(record)), "the record")


def read_record(path: Path) -> RunRecord:
    """ValueError if the file is torn, altered, of another schema, or not the record its name says."""
    record = decode_record(read_document(path, "the record", CURE), str(path))
    if path.stem != record.run_id:
        raise ValueError(f"the record {path} is that of run {record.run_id}; give it back its name")
    return record
