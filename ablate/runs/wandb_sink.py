"""W&B where it was asked for: a sink beside the files, which hold the same. Nothing is ever read from it."""

from __future__ import annotations

import http.client
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ablate.runs.job import Job
from ablate.runs.redaction import redacted

log = logging.getLogger(__name__)

PATIENCE_S = 3.0


def logger(job: Job, attempt: Path) -> Any:
    """Lightning's logger of a run's curve; None where no project was named."""
    if not job.wandb_project:
        return None
    from lightning.pytorch.loggers import WandbLogger

    def make(offline: bool) -> Any:
        return WandbLogger(
            project=job.wandb_project,
            group=job.wandb_group or None,
            name=job.run_id,
            save_dir=attempt,
            offline=offline,
        )

    found = make(offline=not _reached())
    try:
        _ = found.experiment  # it begins there
    except Exception as error:  # whatever it raises: the curve is in the record
        why = redacted(str(error))
        log.warning("W&B does not take run %s (%s); its curve is kept beside the attempt", job.run_id, why)
        found = make(offline=True)
    return found


def log_report(project: str, folder: Path, reports: Sequence[Path]) -> None:
    """A study's reports as one artifact of a run of their own, in the group of the study's runs.

    Without a key the run is kept in the study's folder, and the copies of the files in W&B's own, for `wandb sync`.
    """
    import wandb

    group = folder.absolute().name

    def send(mode: Literal["online", "offline"]) -> None:
        with wandb.init(
            project=project, group=group, job_type="report", name=f"report of {group}", dir=folder, mode=mode,
            settings=wandb.Settings(silent=True),
        ) as run:  # fmt: skip
            artifact = wandb.Artifact(f"report-{re.sub(r'[^A-Za-z0-9_.-]', '-', group)}", type="report")
            for path in reports:
                artifact.add_file(str(path))
            run.log_artifact(artifact)

    try:
        send("online" if _reached() else "offline")
    except Exception as error:  # whatever it raises: the report is where it was written
        why = redacted(str(error))
        log.warning("W&B does not take the report of %s (%s); it is kept there for wandb sync", folder, why)
        send("offline")


def _reached() -> bool:
    """Whether there is a key and somebody who answers: else all is kept in a folder `wandb`, for `wandb sync`."""
    if "WANDB_API_KEY" not in os.environ:
        return False
    address = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    kind = http.client.HTTPConnection if address.scheme == "http" else http.client.HTTPSConnection
    connection = kind(address.hostname or "", address.port, timeout=PATIENCE_S)
    try:
        connection.request("HEAD", "/")
        return connection.getresponse().status < http.HTTPStatus.INTERNAL_SERVER_ERROR
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
