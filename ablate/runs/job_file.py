"""A run that is given to another process: one sealed JSON file, in which nothing is executed when it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ablate.components.codec import decode_run
from ablate.data.corpus import Corpus, open_corpus
from ablate.data.tokens import open_token_file
from ablate.documents import read_sealed_document
from ablate.files import replace_file, sealed
from ablate.runs.job import Job
from ablate.spec.decoding import FORBID_UNKNOWN, decode, encode, run_id

CURE = "give the study's command again: it writes the file anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Given:
    """The file's content. Text is where the corpus is; what it must be, the run's specification says."""

    run: Mapping[str, Any]
    run_id: str
    variant: Mapping[str, str]
    corpus: str
    held_out_texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # set -> file, name of the stream
    wandb_project: str = ""
    wandb_group: str = ""
    keep_weights: bool = True
    timeline: int = 0
    earlier: str = ""

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN


def job_file(run_folder: Path) -> Path:
    """Where the file of a run is, in the run's own folder."""
    return run_folder / "job.json"


def write_job(job: Job, run_folder: Path) -> Path:
    """Write the file unless it is there as it should be; CannotWrite if the system refuses."""
    given = _Given(
        run=encode(job.run),
        run_id=job.run_id,
        variant=dict(job.variant),
        corpus=str(job.corpus.folder.absolute()),
        held_out_texts={name: (str(text.path.absolute()), text.name) for name, text in job.held_out_texts.items()},
        wandb_project=job.wandb_project,
        wandb_group=job.wandb_group,
        keep_weights=job.keep_weights,
        timeline=job.timeline,
        earlier=job.earlier,
    )
    path, text = job_file(run_folder), sealed(encode(given))
    if not (path.is_file() and path.read_bytes() == text.encode()):
        # Thousands of runs do not wait for the disk: what a power cut takes is seen by its seal, and written anew.
        replace_file(path, text, "what a run is given to do", durable=False)
    return path


def read_job(path: Path) -> Job:
    """The run of a file; ValueError if it was altered, or the corpus is not here or not the one it was planned with."""
    given = decode(_Given, read_sealed_document(path, "what a run is given to do", CURE), str(path))
    run, corpus = decode_run(given.run), _corpus(Path(given.corpus))
    if run_id(run) != given.run_id:
        raise ValueError(f"{path} names run {given.run_id} and has the specification of {run_id(run)}; {CURE}")
    if corpus.hash != run.corpus_hash:
        raise ValueError(
            f"the corpus in {corpus.folder} is not the one that the run was planned with (hash {corpus.hash[:12]} now, "
            f"{run.corpus_hash[:12]} then); put it back, or choose another folder with --out"
        )
    texts = {
        name: dataclasses.replace(open_token_file(Path(file)), name=stream)
        for name, (file, stream) in given.held_out_texts.items()
    }
    return Job(
        run=run,
        run_id=given.run_id,
        variant=given.variant,
        corpus=corpus,
        held_out_texts=texts,
        wandb_project=given.wandb_project,
        wandb_group=given.wandb_group,
        keep_weights=given.keep_weights,
        timeline=given.timeline,
        earlier=given.earlier,
    )


@cache
def _corpus(folder: Path) -> Corpus:
    """A corpus, its files hashed once by each process: a worker that takes several runs need not do it again."""
    if not folder.is_dir():
        raise ValueError(
            f"the corpus {folder} is not on this machine; let XDG_CACHE_HOME name a folder that all machines share, "
            "and give the study's command again"
        )
    return open_corpus(folder)
