"""What shows that a change leaves losses and gradients alone: tables that benchmarks/ wrote to reports/equality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.documents import read_json
from ablate.evidence.changes.studies import SHIPPED

# Change -> the program that writes the table, its file in reports/equality, and the key of an alternative in a row.
PROGRAMS = {
    "dualpipe": ("benchmarks/equality.py --ranks pipeline=2", "schedules.json", "schedule"),
    "alltoall": ("benchmarks/transports.py", "transports.json", "transport"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualityShown:
    """A table of cases on real ranks against one process, in float64; without `file` none is kept here."""

    command: str
    file: Path | None
    n_cases: int
    n_hold: int
    alternatives: tuple[str, ...]
    n_variants: int
    largest_error: float | None  # of a gradient, as a share of the largest of its parameter

    @property
    def holds(self) -> bool:
        return self.n_cases > 0 and self.n_hold == self.n_cases


def equality(name: str, folder: Path | None = None) -> EqualityShown | None:
    """Of a change that is to leave losses alone, else None; ValueError where its table is not what was written."""
    if name not in PROGRAMS:
        return None
    program, file, key = PROGRAMS[name]
    path = (folder or SHIPPED / "equality") / file
    command = f"python {program} --out reports/equality/{file}"
    if not path.is_file():
        return EqualityShown(
            command=command, file=None, n_cases=0, n_hold=0, alternatives=(), n_variants=0, largest_error=None
        )
    rows = _rows(path, key, command)
    return EqualityShown(
        command=command,
        file=path,
        n_cases=len(rows),
        n_hold=sum(row["holds"] is True for row in rows),
        alternatives=tuple(dict.fromkeys(str(row[key]) for row in rows)),
        n_variants=len({row["variant"] for row in rows}),
        largest_error=max(float(row["gradient_error"]) for row in rows),
    )


def _rows(path: Path, key: str, command: str) -> list[dict[str, Any]]:
    found = read_json(path, "the table of equality", f"write it anew: {command}")
    rows = found["cases"] if isinstance(found, dict) and "cases" in found else found
    needed = {key, "variant", "holds", "gradient_error"}
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) and needed <= r.keys() for r in rows):
        raise ValueError(
            f"{path} is no table of equality: rows with {', '.join(sorted(needed))}; write it anew: {command}"
        )
    return rows
