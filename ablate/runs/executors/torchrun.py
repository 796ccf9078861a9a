"""The command of a run that several processes compute together: torchrun, one agent on each machine."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

WORKER = "ablate.runs.executors.worker"
STOP_S = 600  # that ranks may take for the checkpoint that they stop with; torchrun ends them after 30 s otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How the ranks of a run lie on machines. `endpoint` is host:port of the first, and "" with one machine."""

    ranks: int
    nodes: int = 1
    endpoint: str = ""
    name: str = ""  # of the meeting: all agents of a run have the same

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.nodes < 1 or self.ranks % self.nodes:
            raise ValueError(
                f"{self.ranks} ranks do not spread evenly over {self.nodes} machines; give a multiple of the machines"
            )
        if self.nodes > 1 and not (self.endpoint and self.name):
            raise ValueError("ranks on several machines need the address of the first, and a name of the meeting")


def command(layout: Layout, job: Path, attempt: Path) -> list[str]:
    """What an agent is started with; `attempt` is the folder that all ranks of this attempt share."""
    meeting = ["--standalone"]
    if layout.nodes > 1:
        meeting = [
            f"--nnodes={layout.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={layout.endpoint}",
            f"--rdzv-id={layout.name}",
        ]
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *meeting,
        f"--nproc-per-node={layout.ranks // layout.nodes}",
        "--max-restarts=0",  # whoever submitted the run decides whether it is tried again
        *("-m", WORKER, str(job), str(attempt)),
    ]


def prepare() -> None:
    """In the process that becomes torchrun: a request to stop is the ranks', however it comes.

    Slurm sends a signal to every process of a step. SIGUSR1 would end torchrun, and its ranks with it; what is ignored
    stays so in the program that is started, and the ranks have handlers of their own.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STOP_S))
