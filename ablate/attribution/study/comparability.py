"""Whether the runs of a study may stand in one table: environments, backends, kinds of evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ablate.attribution.verdicts import Effect, has_no_spread, no_spread_warning
from ablate.components.registry import NAMES, component
from ablate.quantities import number
from ablate.runs.record import RunRecord

MAX_SHOWN, MAX_VALUES = 60, 5  # characters of one value, and values of one entry


def _leaves_loss_alone(name: str) -> bool:
    """Whether an effect is of a component whose runs are to end with the very same loss."""
    of = name.partition("=")[0]
    return of in NAMES and "loss" not in component(of).affects


def warnings_of(
    records: Sequence[RunRecord], strangers: Sequence[str], backends: Mapping[str, Mapping[str, tuple[str, ...]]]
) -> Iterator[str]:
    """A sentence for each thing that a reader must know before comparing finished runs.

    strangers: records that the plan does not name. backends: variant -> slot -> what ran.
    """
    for key, counts in _differing(records).items():
        common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        found = ", ".join(f"{value} ({n} {'run' if n == 1 else 'runs'})" for value, n in common[:MAX_VALUES])
        found += f" and {len(common) - MAX_VALUES} others" if len(common) > MAX_VALUES else ""
        yield f"runs of different environments stand in one table; {key} differs: {found}"
    changed = sum(bool(_commit(record).get("dirty")) for record in records)
    if changed:
        yield f"{changed} of {len(records)} runs were made by a checkout with uncommitted changes"
    for variant, slots in backends.items():
        for slot, kinds in slots.items():
            if len(kinds) > 1:
                yield f"runs of {variant} used different backends for {slot}: {', '.join(kinds)}"
    if strangers:
        yield f"the folder holds {len(strangers)} records that the plan does not name; they are left out: " + ", ".join(
            strangers[:5]
        )


def no_spread(losses: Mapping[str, Mapping[int, float]], effects: Sequence[Effect]) -> Iterator[str]:
    """A sentence on what does not vary between seeds: that says something of the runs, and not that they are precise.

    losses: variant -> seed -> loss.
    """
    size = max((abs(loss) for found in losses.values() for loss in found.values()), default=0.0)
    for variant, found in losses.items():
        if len(found) > 1 and has_no_spread(max(found.values()) - min(found.values()), size):
            yield (
                f"all {len(found)} runs of {variant} ended with one loss, {number(min(found.values()))}: their seeds "
                "changed nothing, so they are one run"
            )
    flat = [
        e.name
        for e in effects
        if e.standard_error is not None and has_no_spread(e.standard_error, size) and not _leaves_loss_alone(e.name)
    ]
    if flat:
        yield no_spread_warning(flat)


def flatten(data: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """A nested mapping as dotted name -> text, in order of name."""
    out: dict[str, str] = {}
    for key in sorted(data):
        value, name = data[key], f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            out |= flatten(value, name)
        else:
            out[name] = str(value)
    return out


def _differing(records: Sequence[RunRecord]) -> dict[str, Counter[str]]:
    """Environment entries that are not the same in all runs, with how often each value occurs."""
    flat = [flatten(record.environment) for record in records]
    found = {}
    for key in sorted({key for each in flat for key in each}):
        counts = Counter(each.get(key, "not recorded")[:MAX_SHOWN] for each in flat)
        if len(counts) > 1:
            found[key] = counts
    return found


def _commit(record: RunRecord) -> Mapping[str, Any]:
    commit = record.environment.get("commit", {})
    return commit if isinstance(commit, Mapping) else {}
