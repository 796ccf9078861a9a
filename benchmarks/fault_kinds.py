"""Every kind of fault by the letter and number of the matrix, what it is, and how many tries the matrix asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import fault_attacks
import fault_files
import fault_kills
import fault_pages
import fault_ranks
import fault_runs
import fault_scripts
import fault_secrets
import fault_storage
from fault_ground import Try

Act = Callable[[Try], None]

# Tries of the matrix, by the first word of a kind's name; a label's kinds share them evenly. Cheap attacks stand for
# more cases than tries: what they return as `cases`.
WANTED = {
    "F1": 400, "F2": 100, "F3": 60, "F4": 100, "F5": 50, "F6": 30, "F7": 40, "F8": 290, "F9": 40, "F10": 60,
    "F11": 80, "F12": 30, "F13": 60, "F14": 20, "F15": 30, "R1": 100,
    "S1": 25, "S2": 20, "S3": 20, "S4": 8, "S5": 30, "S6": 1,
}  # fmt: skip

KINDS: Mapping[str, Act] = {
    "F1 SIGKILL of everything, one to three times": fault_kills.killed_whole,
    "F1 SIGKILL of a worker": fault_kills.killed_worker,
    "F2 SIGKILL of the parent alone": fault_kills.killed_parent,
    "F3 SIGKILL of everything at a write": fault_kills.killed_at_a_write,
    "F4 SIGINT, SIGTERM, SIGUSR1 or SIGHUP once": fault_kills.signal_once,
    "F4 SIGINT or SIGTERM, then SIGINT": fault_kills.signal_twice,
    "F4 a signal in the middle of a write": fault_kills.signal_at_a_write,
    "F5 a command that stood still comes back late": fault_kills.zombie_command,
    "F5 a worker that stood still comes back late": fault_kills.zombie_worker,
    **fault_runs.KINDS,
    "F7 a write refused (full, quota, read-only, rights, EIO)": fault_files.refused_write,
    "F7 files limited in size (RLIMIT_FSIZE)": fault_files.small_files_only,
    "F7 a small disk that is full (tmpfs)": fault_files.full_disk,
    "F7 a disk that is made read-only": fault_files.read_only_disk,
    "F8 damaged record": fault_files.damaged_record,
    "F8 damaged plan": fault_files.damaged_plan,
    "F8 damaged study or tokenizer": fault_files.damaged_study_file,
    "F8 damaged weights": fault_files.damaged_weights,
    "F8 damaged checkpoint": fault_files.damaged_checkpoint,
    "F8 damaged note of a failure": fault_files.damaged_note,
    "F8 damaged cache": fault_files.damaged_cache,
    "F8 damaged preset or study given": fault_files.damaged_input,
    "F8 a missing part of a checkpoint or of weights": fault_files.missing_file,
    "F8 records, weights or checkpoints exchanged": fault_files.exchanged,
    "F10 a worker hangs (SIGSTOP)": fault_kills.hung_worker,
    "F10 a worker is ten times slower": fault_kills.slow_worker,
    **fault_ranks.KINDS,
    **fault_storage.KINDS,
    "F12 a clock jumps, or its time zone": fault_kills.clock_jumps,
    "F13 two to four identical commands at once": fault_kills.at_once,
    "F14 checkpoints of another program": fault_files.other_program,
    "F15 SIGKILL at a write, temporary files elsewhere": fault_kills.killed_with_files_elsewhere,
    **fault_attacks.KINDS,
    **fault_pages.KINDS,
    **fault_scripts.KINDS,
    **fault_secrets.KINDS,
}
DAMAGES = (
    "F8 damaged record",
    "F8 damaged plan",
    "F8 damaged study or tokenizer",
    "F8 damaged weights",
    "F8 damaged checkpoint",
    "F8 damaged note of a failure",
    "F8 damaged cache",
    "F8 damaged preset or study given",
)


def label(kind: str) -> str:
    """Of a kind: its row of the matrix."""
    return kind.split()[0]


def tries(kinds: Mapping[str, Act], most: int | None) -> dict[str, int]:
    """How many tries of each kind: those of its label, or at most so many, shared evenly."""
    found: dict[str, int] = {}
    for name in sorted(set(map(label, kinds))):
        own = [kind for kind in kinds if label(kind) == name]
        n = WANTED[name] if most is None else min(most, WANTED[name])
        found |= {kind: n // len(own) + (i < n % len(own)) for i, kind in enumerate(own)}
    return {kind: found[kind] for kind in kinds}
