"""Optuna's own storages (SQLite or journal) as a sheet: a row per trial, its parameters as columns, its direction."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.attribution.table.sheet import Sheet, sheet_of
from ablate.errors import nearest

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def is_journal(text: str) -> bool:
    """True for the lines of Optuna's journal storage."""
    try:
        first = json.loads(text.split("\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "op_code" in first


def read_journal(text: str, name: str, study: str | None) -> Sheet:
    """Trials of a journal storage."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "journal.log")
        copy.write_text(text, encoding="utf-8")
        return _trials(JournalStorage(JournalFileBackend(str(copy))), name, study)


def read_sqlite(data: bytes, name: str, study: str | None) -> Sheet:
    """Trials of an SQLite storage, of a copy, so that nothing is changed. ValueError for one that is not Optuna's."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "study.db")
        copy.write_bytes(data)
        try:
            with sqlite3.connect(copy) as database:
                if Path(f"{name}-wal").exists():  # what a running study has not yet written into the file itself
                    with sqlite3.connect(f"{Path(name).absolute().as_uri()}?mode=ro", uri=True) as original:
                        original.backup(database)
                tables = {row[0] for row in database.execute("select name from sqlite_master")}
        except sqlite3.Error as problem:
            raise ValueError(f"cannot read {name}: {problem}; give a whole SQLite file of Optuna's") from problem
        if not {"studies", "trials", "trial_params"} <= tables:
            raise ValueError(f"{name} is an SQLite database, but not one of Optuna's; export its table as CSV")
        return _stored(f"sqlite:///{copy}", name, study)


def _stored(url: str, name: str, study: str | None) -> Sheet:
    from optuna.storages import RDBStorage

    try:
        storage = RDBStorage(url)
    except RuntimeError as problem:
        line = str(problem).splitlines()[0]
        raise ValueError(f"cannot read {name}: {line} Export it with trials_dataframe().to_csv()") from problem
    try:
        return _trials(storage, name, study)
    finally:
        storage.engine.dispose()


def _trials(storage: BaseStorage, name: str, study: str | None) -> Sheet:
    import optuna

    known = optuna.get_all_study_names(storage)
    if not known:
        raise ValueError(f"{name} holds no study; run one first")
    if study is None and len(known) > 1:
        raise ValueError(f"{name} holds {len(known)} studies ({', '.join(known)}); name one with --study")
    if study is not None and study not in known:
        raise ValueError(f"{name} holds no study {study!r}; {nearest(study, known)}")
    loaded = optuna.load_study(study_name=study or known[0], storage=storage)
    frame = loaded.trials_dataframe(attrs=("number", "value", "params", "user_attrs", "state"))
    lower = [direction == optuna.study.StudyDirection.MINIMIZE for direction in loaded.directions]
    metrics = [column for column in frame.columns if column == "value" or column.startswith("values_")]
    sheet = sheet_of(frame)
    places = [f"trial {number}" for number in sheet.columns.get("number", ())]
    return replace(sheet, places=places, directions=dict(zip(metrics, lower, strict=False))).without("number")
