"""A run and what surrounds it: what a process is given to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ablate.data.corpus import Corpus
from ablate.data.tokens import TokenFile
from ablate.spec.run import RunSpec

SMALL_PARAMETERS = 20_000_000  # below, a run a core is the faster way (benchmarks/parallel_runs.py)
THREADS_OF_LARGE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run and what surrounds it: nothing here changes its result but where it is written."""

    run: RunSpec
    run_id: str  # `spec.decoding.run_id` of the run
    variant: Mapping[str, str]
    corpus: Corpus
    held_out_texts: Mapping[str, TokenFile] = field(default_factory=dict)  # beside the corpus's own
    wandb_project: str = ""
    wandb_group: str = ""
    keep_weights: bool = True
    timeline: int = 0  # optimizer steps of which it is recorded what the ranks do
    earlier: str = ""  # attempts of the same run on other ranks, from whose checkpoints this one may go on

    @property
    def ranks(self) -> int:
        """Processes that compute the run together."""
        return self.run.trainer.ranks.world

    @property
    def n_trained(self) -> int:
        """Parameters that are trained."""
        return self.run.model.cost(self.run.trainer.sequence_length).trained_parameters

    @property
    def n_all_steps(self) -> int:
        """Optimizer steps of trunk and branches."""
        return self.run.n_steps + self.run.n_branch_steps

    @property
    def n_threads(self) -> int:
        """Threads that the run computes with."""
        return threads(self.n_trained)


def threads(n_parameters: int) -> int:
    """Threads of a run that trains so many parameters: sums are rounded by how they are cut, so its bits depend on it.

    Therefore neither the machine's cores nor the runs beside it have a say.
    """
    return 1 if n_parameters < SMALL_PARAMETERS else THREADS_OF_LARGE
