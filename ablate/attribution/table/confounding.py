"""Columns that vary and are not used: named, and held against the components that they change together with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import mannwhitneyu

from ablate.attribution.lattice import Floats
from ablate.attribution.table import names
from ablate.attribution.table.cells import is_number, levels_of
from ablate.attribution.table.sheet import Sheet

SURE = 0.05  # level of the rank test for settings that take a new value in every row


def unused(sheet: Sheet, used: Sequence[str]) -> list[str]:
    """Columns that vary and are not used."""
    return [name for name, cells in sheet.columns.items() if name not in used and len(set(cells)) > 1]


def confounded(sheet: Sheet, idle: Sequence[str], levels: Sequence[Mapping[str, bool]]) -> dict[str, str]:
    """component -> the unused column that its effect cannot be told from.

    A column of values that come back is one where, entered as a factor beside the components, it leaves the component
    undetermined; a setting of ever new numbers where its values differ between on and off. Results and labels are
    neither: they follow from a component, or name it.
    """
    components = list(levels[0]) if levels else []
    design = np.array([[1.0, *(float(row[name]) for name in components)] for row in levels])
    out: dict[str, str] = {}
    for column in idle:
        if names.is_result(column) or names.is_label(column) or names.is_step(column):
            continue
        for at, component in enumerate(components, start=1):
            if component not in out and _together(column, sheet.columns[column], design, at):
                out[component] = column
    return out


def _together(column: str, cells: Sequence[str], design: Floats, at: int) -> bool:
    values = sorted(set(cells))
    two = len(values) == 2 and (names.is_setting(column) or levels_of(cells) is not None)
    if 2 * len(values) > len(cells) + 1 and not two:
        return names.is_setting(column) and _differs(cells, design[:, at] > 0)
    factor = np.array([[float(cell == value) for value in values] for cell in cells])
    without = np.delete(design, at, axis=1)
    if np.linalg.matrix_rank(design) == np.linalg.matrix_rank(without):
        return False  # other components already leave it undetermined
    return bool(
        np.linalg.matrix_rank(np.hstack([design, factor])) == np.linalg.matrix_rank(np.hstack([without, factor]))
    )


def _differs(cells: Sequence[str], on: np.ndarray) -> bool:
    if not all(is_number(cell) for cell in cells):
        return False
    x = np.array([float(cell.replace(",", "")) for cell in cells])
    return min(on.sum(), (~on).sum()) > 0 and float(mannwhitneyu(x[on], x[~on]).pvalue) < SURE
