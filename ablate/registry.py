"""The components there are, prerequisites first, and variants: a level for every one of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from ablate.calibration import CONTROLS
from ablate.component import ON, Component
from ablate.components.aux_free import COMPONENT as AUX_FREE
from ablate.components.distill import COMPONENT as DISTILL
from ablate.components.fp8 import COMPONENT as FP8
from ablate.components.mla import COMPONENT as MLA
from ablate.components.moe import COMPONENT as MOE
from ablate.components.mtp import COMPONENT as MTP
from ablate.spec import Preset, Spec

COMPONENTS: tuple[Component, ...] = (MLA, MOE, AUX_FREE, MTP, FP8, DISTILL)
NAMES = tuple(component.name for component in COMPONENTS)

Variant = Mapping[str, str]  # component name -> "on" or the name of an alternative


def nearest(given: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"


def component(name: str) -> Component:
    """The component of exactly that name; ValueError names the nearest."""
    for candidate in (*COMPONENTS, *CONTROLS):
        if candidate.name == name:
            return candidate
    raise ValueError(f"unknown component {name!r}; {nearest(name, NAMES)}")


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
