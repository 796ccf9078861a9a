"""The FLOPs-per-token channel of each component at another size, exact, beside the token channel measured here."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ablate.attribution.study.compare import Comparison, StudyResult, VariantResult
from ablate.attribution.study.gains import ComponentGain
from ablate.components.variants import Variant
from ablate.presets import preset
from ablate.report.cleaning import clean
from ablate.report.names import label
from ablate.report.tables.gain import factor
from ablate.report.tables.table import Columns, Table, make, text

DEFAULT_SIZE = "v3-671b"


def at_size(result: StudyResult, gains: Sequence[ComponentGain], size: str) -> Table:
    """A row per comparison. ValueError for a preset that there is not, or one asked for that no component fits."""
    preset(size)
    tokens = {gain.comparison.variant: gain.tokens.estimate for gain in gains}
    by_name = {v.name: v for v in result.variants}
    rows, left_out = [], []
    for c in result.comparisons:
        try:
            there = _log_flops_per_token(c, size)
        except ValueError as error:
            left_out.append(f"{clean(c.name)} is left out: {error}.")
            continue
        here = _measured_here(by_name[c.with_variant], by_name[c.without_variant])
        measured = tokens.get(c.variant)
        both = None if measured is None else measured + there
        rows.append([label(c), factor(here), factor(there), factor(measured), factor(both)])
    if left_out and not rows and size != DEFAULT_SIZE:
        raise ValueError(f"nothing of this study can be shown at {size}: {' '.join(left_out)}")
    columns: Columns = [text("Component"), "FLOPs per token here", f"FLOPs per token at {size}, exact",
                        "Tokens, measured here", f"Training FLOPs at {size}, if the tokens held"]  # fmt: skip
    note = " ".join([
        f"FLOPs per token at {size} are its closed form, each component beside that preset's whole recipe. That a "
        "saving in tokens carries over to that size is an assumption, which nothing in this study supports. Above 1 "
        "is a saving.", *left_out,
    ])  # fmt: skip
    return make(f"The same components at the size of {size}", columns, rows, note if rows else "")


def _measured_here(on: VariantResult, off: VariantResult) -> float | None:
    costs = [v.planned.cost.get("training_flops_per_token") for v in (on, off)]
    return math.log(costs[1] / costs[0]) if costs[0] and costs[1] else None


def _log_flops_per_token(c: Comparison, size: str) -> float:
    """ln of the training FLOPs of a token without what was turned off, over those with it, at a preset's size."""
    base = preset(size)
    full = Variant.full(base)
    sides = (
        full | {change.component: change.without_level for change in c.changes},
        full | {change.component: change.with_level for change in c.changes},
    )
    length = base.trainer.sequence_length
    off, on = (side.resolve(base).model.cost(length).training_flops_per_token for side in sides)
    return math.log(off / on)
