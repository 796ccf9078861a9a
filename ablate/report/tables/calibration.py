"""Whether what is known was recovered: the controls of a study, beside what they are worth by their making."""

from __future__ import annotations

from ablate.attribution.study.compare import StudyResult
from ablate.attribution.study.gains import SplitCost
from ablate.components.controls import KNOWN
from ablate.report.names import confidence
from ablate.report.tables.gain import ends, factor
from ablate.report.tables.table import Columns, Table, make, text

EXACT = 0.01  # of a logarithm: budgets are rounded to whole steps


def calibration(result: StudyResult, cost: SplitCost | None) -> Table:
    """A row for each control of a design whose cost is split; without rows where there are none."""
    columns: Columns = [text("Control"), text("Recovered"), "Tokens, known",
                        f"Tokens, measured ({confidence(result)} interval)", "FLOPs per token, known",
                        "FLOPs per token, counted", text("Because")]  # fmt: skip
    rows = []
    for k, name in enumerate(cost.table.components if cost else ()):
        if cost is None or name not in KNOWN:
            continue
        known, (low, high) = KNOWN[name], cost.table.intervals(result.plan.interval_confidence)[k, 0]
        tokens, flops = (float(x) for x in cost.table.gains[k, :2])
        # A value that is known lies in the interval; where only a range is, the interval lies in the range.
        least, most = known.tokens
        held = low <= least <= high if least == most else least < low and high < most
        recovered = held and abs(flops - known.flops_per_token) < EXACT
        said = factor(least) if least == most else f"{factor(least)} to {factor(most)}"
        rows.append([name, "yes" if recovered else "no", said, ends(tokens, (low, high)),
                     factor(known.flops_per_token), factor(flops), known.why])  # fmt: skip
    note = (
        "Recovered: the interval holds what is known of the tokens, or lies in the range that is, and the FLOPs are "
        "what they were made to be."
    )
    return make("Controls: is what is known found again?", columns, rows, note if rows else "")
