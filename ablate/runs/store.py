"""The folder of a study: records committed once, attempts fenced from each other. The files are the truth."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ablate.documents import is_sealed, read_document
from ablate.files import CannotWrite, collect, commit_once, new_folder, sealed, writing
from ablate.runs.record import Failure, RunRecord, decode_record
from ablate.spec.decoding import decode

log = logging.getLogger(__name__)

FAILURE = "failure.json"
EQUALITY = "equality.json"  # of a study on ranks: what they compute against one process
STATUS = re.compile(r'^ "status": "(finished|diverged)",$', re.MULTILINE)  # as `files.sealed` writes it

CURE = "move it away and give the study's command again: it makes the run anew"


@dataclass(frozen=True, slots=True)
class Store:
    """Paths of a study's folder, and the only way a record gets into it."""

    folder: Path

    @property
    def records(self) -> Path:
        return self.folder / "records"

    def timeline_file(self, run_id: str) -> Path:
        """Of a run whose ranks were recorded."""
        return self.folder / "timelines" / f"{run_id}.json"

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

    def new_attempt(self, run_id: str, key: str = "") -> Path:
        """A folder that only this attempt writes to. Names sort by time of start.

        `key`: what whoever submitted the run finds its attempts by (`attempts.newest`).
        """
        folder, key = self.attempts_folder(run_id), key or uuid.uuid4().hex[:8]
        folder.mkdir(parents=True, exist_ok=True)
        n = len(os.listdir(folder))
        while True:
            attempt = folder / f"{n:04d}-{key}"
            try:
                attempt.mkdir()
            except FileExistsError:
                n += 1
            else:
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
        for place in ("records", "timelines", "failures", "runs/*", "runs/*/attempts/*"):
            for folder in self.folder.glob(place):
                collect(folder)

    def clear(self, run_id: str) -> None:
        """Remove what killed attempts at a run left unfinished: each had a folder of its own, where no other writes."""
        for folder in (self.run_folder(run_id), *self.attempts_folder(run_id).glob("*")):
            collect(folder)

    def read(self, run_id: str) -> RunRecord | None:
        path = self.records / f"{run_id}.json"
        return read_record(path) if path.exists() else None

    def status(self, run_id: str) -> Literal["finished", "diverged"] | None:
        """Of a run's record, which is checked by its seal alone: thousands are looked through in a second."""
        path = self.records / f"{run_id}.json"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        said = STATUS.findall(text)
        if len(said) == 1 and is_sealed(text):
            return said[0]
        # Absent, of a version without seals, or damaged: then this says how.
        record = self.read(run_id)
        return record.status if record else None

    def __iter__(self) -> Iterator[RunRecord]:
        for path in sorted(self.records.glob("*.json")):
            yield read_record(path)

    def failures(self) -> list[Failure]:
        """The last failure of every run that has no record: such a run is tried again when the study is."""
        latest: dict[str, Failure] = {}
        earlier = sorted(
            (self.folder / "failures").glob("*.json")
        )  # where versions before attempts had notes kept them
        own = self.folder.glob(f"runs/*/attempts/*/{FAILURE}")
        for path in (*earlier, *sorted(own, key=lambda p: (p.parents[2].name, p.parent.name))):
            failure = read_failure(path)
            if not (self.records / f"{failure.run_id}.json").exists():
                latest[failure.run_id] = failure
        return list(latest.values())

    def note_failure(self, failure: Failure, attempt: Path | None = None) -> None:
        """Keep why an attempt ended, in its folder; failures are not records, since the run is still to be done.

        Without an attempt, in that of a new one; one that has its note keeps it. A disk that takes no record takes no
        note either: that is told, and the other runs go on.
        """
        text = sealed(dataclasses.asdict(failure))
        try:
            with writing(f"the note of a failure in {self.folder}"):
                attempt = attempt or self.new_attempt(failure.run_id)
                commit_once(attempt / FAILURE, text, "the note of a failure")
        except CannotWrite as error:
            log.warning("%s; what failed was: %s", error, failure.reason)

    def commit(self, record: RunRecord) -> bool:
        """Put a record there if none is; False if the run had one already, which is then kept."""
        path = self.records / f"{record.run_id}.json"
        plain = {each.name: getattr(record, each.name) for each in dataclasses.fields(record)}
        return commit_once(path, sealed(plain), "the record")


def read_record(path: Path) -> RunRecord:
    """ValueError if the file is torn, altered, of another schema, or not the record its name says."""
    record = decode_record(read_document(path, "the record", CURE), str(path))
    if path.stem != record.run_id:
        raise ValueError(f"the record {path} is that of run {record.run_id}; give it back its name")
    return record


def read_failure(path: Path) -> Failure:
    """ValueError if the note is torn or altered."""
    data = read_document(path, "the note of a failure", "delete it: the run is tried again with the study")
    return decode(Failure, data, str(path))
