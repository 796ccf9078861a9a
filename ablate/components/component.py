"""A component: the named choice between nodes, as two pure functions on a specification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ablate.spec.run import Spec

ON = "on"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """One meaning of off. `keeps_dependants`: components that require this one still mean something beside it."""

    name: str
    summary: str
    keeps_dependants: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Component:
    """One innovation with its alternatives. `on` and `off` raise ValueError where the level means nothing.

    A slot is a field of ModelSpec, DataSpec or TrainerSpec. `on` and `off` change those that are declared here and
    nothing else (tests/test_component_contract.py). What a component owns it may fill from nothing; what it modifies
    it builds from what is there. Two components are equal only if they are one object.
    """

    name: str
    title: str
    source: str
    alternatives: tuple[Alternative, ...]  # the default first
    on: Callable[[Spec], Spec]
    off: Callable[[Spec, str], Spec]
    owns: tuple[str, ...] = ()  # slots that no other component owns
    modifies: tuple[str, ...] = ()  # slots that others may own or modify as well
    does_not_commute_with: tuple[str, ...] = ()  # modifiers of the same slot; the registry's order then decides
    nodes: Mapping[str, tuple[type, ...]] = field(default_factory=dict)  # slot -> nodes that may be put there
    settings: type | None = None  # what a preset's section of this name decodes to; None: it has no section
    requires: tuple[str, ...] = ()
    affects: tuple[str, ...] = ()
    axis: str = ""  # of the ranks, of which there must be several; "": it means something on one rank
    tied_to_corpus: bool = False  # its settings hold for the preset's own corpus and for no other
    serves_corpus: Callable[[Any, str], bool] | None = None  # whether settings hold for a source of text all the same
    held_out_texts: Callable[[Spec, Any], list[str]] | None = None  # beside a corpus: a second set to evaluate on

    @property
    def slots(self) -> tuple[str, ...]:
        """What its levels may change."""
        return self.owns + self.modifies

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

    def keeps_dependants(self, level: str) -> bool:
        """Whether components that require this one mean something while it is at `level`."""
        return level == ON or self.alternative(level).keeps_dependants

    def apply(self, level: str, spec: Spec) -> Spec:
        """The specification with this component at `level`; ValueError if it has no such level."""
        return self.on(spec) if level == ON else self.off(spec, self.alternative(level).name)


def setting(spec: Spec, component: str) -> Any:
    """What the preset's section of a component says; ValueError if the preset has none."""
    try:
        return spec.preset.settings[component]
    except KeyError:
        known = ", ".join(f"[{name}]" for name in spec.preset.settings) or "no component's"
        raise ValueError(
            f"preset {spec.preset.name} gives no sizes for {component}: it has no section [{component}] "
            f"(sections of components that it has: {known}); write one, choose another preset, or leave {component} off"
        ) from None
