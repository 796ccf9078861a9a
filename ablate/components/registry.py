"""The components there are, prerequisites first."""

from __future__ import annotations

from ablate.components.aux_free import COMPONENT as AUX_FREE
from ablate.components.component import Component
from ablate.components.controls import CONTROLS
from ablate.components.distill import COMPONENT as DISTILL
from ablate.components.fp8 import COMPONENT as FP8
from ablate.components.mla import COMPONENT as MLA
from ablate.components.moe import COMPONENT as MOE
from ablate.components.mtp import COMPONENT as MTP
from ablate.errors import nearest

COMPONENTS: tuple[Component, ...] = (MLA, MOE, AUX_FREE, MTP, FP8, DISTILL)
NAMES = tuple(component.name for component in COMPONENTS)


def component(name: str) -> Component:
    """The component of exactly that name; ValueError names the nearest."""
    for candidate in (*COMPONENTS, *CONTROLS):
        if candidate.name == name:
            return candidate
    raise ValueError(f"unknown component {name!r}; {nearest(name, NAMES)}")
