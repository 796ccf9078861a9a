"""A plugin of pytest that writes every case as it ends, and replaces a worker whose device no longer answers.

    CASES=FILE python -m pytest -p benchmarks.case_log ...

One line of JSON a case: its name, outcome, seconds, and for what did not pass why. After an illegal access every later
call of a process fails; a worker of pytest-xdist in that state ends, and the next cases go to a new one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

DEVICE_LOST = 70  # exit code of a worker whose device no longer answers


class Log:
    """Writes in the process that collects; looks at the device in the one that runs."""

    def __init__(self, path: Path, is_worker: bool) -> None:
        self.path, self.is_worker, self.failed = path, is_worker, False

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or report.failed
        if self.is_worker or (report.when != "call" and report.passed):
            return
        case = {"case": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(case if report.passed else case | {"why": why(report)}) + "\n")

    @pytest.hookimpl(trylast=True)  # what was found has been sent by then
    def pytest_runtest_logfinish(self) -> None:
        if self.is_worker and self.failed and device_is_lost():
            os._exit(DEVICE_LOST)
        self.failed = False


def why(report: Any) -> str:
    """The reason of a skip, or the line that failed; 300 characters at most."""
    found = report.longrepr
    if isinstance(found, tuple):
        return str(found[2])[:300]
    crash = getattr(found, "reprcrash", None)
    lines = str(crash.message if crash else found).splitlines()
    return (lines[0] if lines else "")[:300]


def device_is_lost() -> bool:
    """Whether CUDA was used here and refuses even to wait."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def pytest_configure(config: Any) -> None:
    if path := os.environ.get("CASES"):
        config.pluginmanager.register(Log(Path(path), hasattr(config, "workerinput")), "case_log_writer")
