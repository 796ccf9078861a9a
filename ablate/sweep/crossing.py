"""What factors do to a study's variants: levels of components that they set, and cells that are one and the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ablate.components.component import ON
from ablate.components.variants import Variant
from ablate.runs.plan import NamedVariant
from ablate.spec.decoding import canonical, encode


def set_levels(variant: Variant, levels: Mapping[str, str]) -> Variant:
    """The variant with components at the levels of a cell of factors; what then means nothing goes to its default."""
    on = {name: level for name, level in levels.items() if level == ON}
    off = {name: level for name, level in levels.items() if level != ON}
    return (variant | on).without(tuple(off), off)


def check_distinct(named: Sequence[NamedVariant], *, budget_given: bool) -> None:
    """ValueError if two variants of a study are one and the same run, because a factor changes nothing in them."""
    seen: dict[str, str] = {}
    for v in named:
        spec = v.spec
        parts = [encode(spec.model), encode(spec.data.text), encode(spec.data), encode(spec.trainer)]
        # How long a run is comes from the preset, unless the study says it.
        key = canonical([*parts, None if budget_given else spec.preset.n_tokens])
        if key in seen:
            raise ValueError(
                f"{seen[key]} and {v.name} are the same run: what the factors set has no effect in it; take the level "
                "out, or write the fields that go together as one factor whose levels are tables"
            )
        seen[key] = v.name
