"""A run and what surrounds it: what a process is given to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ablate.data.corpus import Corpus
from ablate.data.tokens import TokenFile
from ablate.spec.decoding import run_id
from ablate.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run and what surrounds it: nothing here changes its result but where it is written."""

    run: RunSpec
    variant: Mapping[str, str]
    corpus: Corpus
    held_out_texts: Mapping[str, TokenFile] = field(default_factory=dict)  # beside the corpus's own
    n_threads: int = 1
    wandb_project: str = ""
    keep_weights: bool = True
    run_id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_id", run_id(self.run))
