"""The report as an artifact of W&B: what is handed over, what a fault does, and a true one without a network."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablate.runs.wandb_sink import log_report


class Fake:
    """What of wandb is used; `faults` are the modes in which it raises."""

    def __init__(self, faults: tuple[str, ...] = ()) -> None:
        self.faults, self.begun, self.logged = faults, [], []

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *error: object) -> None: ...

    def init(self, **options: Any) -> Fake:
        self.begun.append(options)
        if options["mode"] in self.faults:
            raise RuntimeError("key 0123456789012345678901234567890123456789 is refused")
        return self

    def log_artifact(self, artifact: Any) -> None:
        self.logged.append((artifact.name, artifact.type, artifact.files))

    @staticmethod
    def Artifact(name: str, type: str) -> Any:
        files: list[str] = []
        return SimpleNamespace(name=name, type=type, files=files, add_file=files.append)

    @staticmethod
    def Settings(**options: Any) -> dict[str, Any]:
        return options


def reports(folder: Path) -> list[Path]:
    paths = [folder / "report.html", folder / "report.md"]
    for path in paths:
        path.write_text("<p>")
    return paths


def test_a_study_whose_name_is_no_name_of_an_artifact_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, folder = Fake(), tmp_path / "a study: 1"
    folder.mkdir()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    paths = reports(folder)
    log_report("project", folder, paths)
    assert fake.logged == [("report-a-study--1", "report", list(map(str, paths)))]
    (begun,) = fake.begun
    assert (begun["project"], begun["group"], begun["mode"]) == ("project", "a study: 1", "offline")


def test_a_fault_is_told_without_the_key_and_the_report_is_kept_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Fake(("online",))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr("ablate.runs.wandb_sink._reached", lambda: True)
    with caplog.at_level(logging.WARNING):
        log_report("project", tmp_path, reports(tmp_path))
    assert [begun["mode"] for begun in fake.begun] == ["online", "offline"]
    assert len(fake.logged) == 1
    assert "W&B does not take the report" in caplog.text
    assert "0123456789" not in caplog.text


@pytest.mark.slow
def test_without_a_key_the_artifact_is_kept_and_nothing_goes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    study, connect = tmp_path / "study", socket.socket.connect
    study.mkdir()

    def local(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    log_report("project", study, reports(study))
    wandb.teardown()  # waits until all is written, as the end of a command does
    (kept,) = study.glob("wandb/offline-run-*/run-*.wandb")
    assert b"report-study" in kept.read_bytes()
    staged = [path.read_text() for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert staged == ["<p>", "<p>"]
