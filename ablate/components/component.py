"""A component: the named choice between nodes, as two pure functions on a specification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ablate.spec.run import Spec

ON = "on"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """One meaning of off. `keeps_dependants`: components that require this one still mean something beside it."""

    name: str
    summary: str
    keeps_dependants: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One innovation with its alternatives. `on` and `off` raise ValueError where the level means nothing."""

    name: str
    title: str
    source: str
    alternatives: tuple[Alternative, ...]  # the default first
    on: Callable[[Spec], Spec]
    off: Callable[[Spec, str], Spec]
    settings: type  # what a preset's section of this name decodes to
    nodes: Mapping[str, tuple[type, ...]]  # slot -> nodes that this component may put there
    requires: tuple[str, ...] = ()
    affects: tuple[str, ...] = ()
    tied_to_corpus: bool = False  # its settings hold for the preset's own corpus and for no other
    held_out_texts: Callable[[Any], list[str]] | None = None  # from the settings: a second set to evaluate on
    evidence: Literal["measured", "emulated", "simulated"] = "measured"

    @property
    def default_alternative(self) -> str:
        return self.alternatives[0].name

    def alternative(self, name: str) -> Alternative:
        """The alternative of that name; ValueError names those there are."""
        for alternative in self.alternatives:
            if alternative.name == name:
                return alternative
        raise ValueError(
            f"{self.name} has no alternative {name!r}; it has {', '.join(a.name for a in self.alternatives)}"
        )


def setting(spec: Spec, component: str) -> Any:
    """What the preset says of a component; ValueError if it says nothing."""
    try:
        return spec.preset.settings[component]
    except KeyError:
        known = ", ".join(spec.preset.settings) or "none"
        raise ValueError(
            f"preset {spec.preset.name} gives no sizes for {component} (it has them for: {known}); "
            "choose another preset or leave the component off"
        ) from None
