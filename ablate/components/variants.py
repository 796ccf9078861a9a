"""Variants: a level for every component, what they leave unmet, and the specification that they resolve to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ablate.components.component import ON
from ablate.components.controls import CONTROLS
from ablate.components.registry import COMPONENTS, component
from ablate.spec.run import Preset, Spec

Variant = Mapping[str, str]  # component name -> "on" or the name of an alternative


def none_variant() -> dict[str, str]:
    """Everything off, at the default alternatives: a Llama-3-style dense transformer."""
    return {c.name: c.default_alternative for c in COMPONENTS}


def full_variant(preset: Preset) -> dict[str, str]:
    """Everything on that the preset has sizes for."""
    return none_variant() | {c.name: ON for c in COMPONENTS if c.name in preset.settings}


def satisfies(requirement: str, level: str) -> bool:
    """Whether components that require `requirement` mean something when it is at `level`."""
    return level == ON or component(requirement).alternative(level).keeps_dependants


def unmet(variant: Variant) -> list[tuple[str, str]]:
    """Pairs (component that is on, prerequisite of it that is not there)."""
    return [
        (c.name, requirement)
        for c in COMPONENTS
        if variant[c.name] == ON
        for requirement in c.requires
        if not satisfies(requirement, variant[requirement])
    ]


def without(variant: Variant, disabled: Sequence[str], alternatives: Mapping[str, str]) -> dict[str, str]:
    """`variant` with components turned off, and with them whatever then means nothing (leave-one-out)."""
    result = dict(variant)
    for name in disabled:
        chosen = component(name)
        result[name] = chosen.alternative(alternatives.get(name, chosen.default_alternative)).name
    for dependant in COMPONENTS:
        # Without its prerequisite no alternative differs from another; the default stands for all of them.
        if not all(satisfies(requirement, result[requirement]) for requirement in dependant.requires):
            result[dependant.name] = dependant.default_alternative
    return result


def resolve(preset: Preset, variant: Variant) -> Spec:
    """The specification of a variant. ValueError if a level means nothing beside the others."""
    for name, requirement in unmet(variant):
        raise ValueError(
            f"{name} is on while {requirement} is off ({variant[requirement]}), and it requires {requirement}; "
            f"turn {requirement} on or {name} off"
        )
    spec = Spec(preset=preset, model=preset.model, data=preset.data, trainer=preset.trainer)
    for chosen in (*COMPONENTS, *(control for control in CONTROLS if control.name in variant)):
        level = variant[chosen.name]
        spec = chosen.on(spec) if level == ON else chosen.off(spec, chosen.alternative(level).name)
    return spec


def prerequisites(name: str, among: Sequence[str], off: Mapping[str, str]) -> tuple[str, ...]:
    """What `name` requires of `among`, where their off (by `off`, else the default) leaves it without meaning."""
    found = []
    for requirement in component(name).requires:
        level = off.get(requirement, component(requirement).default_alternative)
        if requirement in among and not satisfies(requirement, level):
            found.append(requirement)
    return tuple(found)


def describe(variant: Variant, reference: Variant) -> str:
    """A short name of a variant: what differs from `reference` (the full variant, as a rule)."""
    parts = []
    for name in variant:
        if variant[name] == reference[name]:
            continue
        if variant[name] == ON:
            parts.append(f"+{name}")
        elif variant[name] == component(name).default_alternative:
            parts.append(f"-{name}")
        else:
            parts.append(f"{name}={variant[name]}")
    return " ".join(parts) or "full"
