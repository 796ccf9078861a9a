"""What an executor is: it takes runs, says which of them run and which are gone, and ends them.

What became of a run is in the run's folder, whoever ran it: the record, or the attempt's note of its failure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ablate.runs.job import Job

CANCELLED = "it was cancelled"  # how a reason begins where somebody ended the run who is not this program's conductor


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What an executor has seen since it was asked before.

    `running`: runs that somebody is at now; those that were submitted and are in neither field wait. `gone`: runs that
    nobody is at any more, with what is known of the end beside the run's own files, or "".
    """

    running: Collection[str] = ()
    gone: Mapping[str, str] = field(default_factory=dict)


class Executor(Protocol):
    """Where runs are executed. Runs are named by their `run_id`."""

    outlives: bool  # whether runs go on when the process that submitted them ends

    def submit(self, jobs: Sequence[Job], key: str) -> None:
        """Take runs, to be started in this order as there is room. Their attempts have `key` in their names."""

    def adopt(self, jobs: Sequence[Job]) -> Mapping[str, str]:
        """The keys of those runs that an earlier command has submitted here and that wait or run still."""

    def poll(self, timeout_s: float) -> Seen:
        """Start what there is room for, and wait for news for up to so many seconds."""

    def cancel(self, run_ids: Collection[str], *, at_once: bool) -> None:
        """Drop what waits; let what runs stop at its next step with a checkpoint, or end it `at_once`."""

    def close(self) -> None:
        """Let go of whatever serves no run."""
