"""The components there are, prerequisites first: this program's own, then those of other packages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablate.components.alltoall import COMPONENT as ALLTOALL
from ablate.components.aux_free import COMPONENT as AUX_FREE
from ablate.components.component import Component
from ablate.components.controls import CONTROLS
from ablate.components.distill import COMPONENT as DISTILL
from ablate.components.dualpipe import COMPONENT as DUALPIPE
from ablate.components.fp8 import COMPONENT as FP8
from ablate.components.mla import COMPONENT as MLA
from ablate.components.moe import COMPONENT as MOE
from ablate.components.mtp import COMPONENT as MTP
from ablate.components.plugins import Plugin, installed_plugins
from ablate.errors import nearest
from ablate.spec.model import ModelSpec
from ablate.spec.run import DataSpec, TrainerSpec

# What a component may own or modify: the slots, and the numbers beside them.
FIELDS = tuple(f.name for part in (ModelSpec, DataSpec, TrainerSpec) for f in dataclasses.fields(part))


@dataclass(frozen=True, slots=True, eq=False)
class Registry:
    """Components in the order in which their levels are applied.

    ValueError, with the package's name where it is a plugin's, for a component that does not fit beside those before
    it: a name or a kind of node that is taken, a prerequisite that is not there, a slot that has an owner already.
    """

    built_in: tuple[Component, ...]
    plugins: tuple[Plugin, ...] = ()

    def __post_init__(self) -> None:
        for n, chosen in enumerate(self.built_in):
            _check(chosen, self.built_in[:n])
        for n, plugin in enumerate(self.plugins, start=len(self.built_in)):
            try:
                _check(plugin.component, self.components[:n])
            except ValueError as error:
                raise ValueError(
                    f"the package {plugin.distribution} adds a component that cannot be registered: {error}; "
                    "repair the package or uninstall it"
                ) from None

    @property
    def components(self) -> tuple[Component, ...]:
        return (*self.built_in, *(plugin.component for plugin in self.plugins))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(component.name for component in self.components)

    def component(self, name: str) -> Component:
        """The component or control of exactly that name; ValueError names the nearest component."""
        for candidate in (*self.components, *CONTROLS):
            if candidate.name == name:
                return candidate
        raise ValueError(f"unknown component {name!r}; {nearest(name, self.names)}")

    def prerequisites(self, names: Sequence[str], off: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """What each of `names` requires of the others, where their off leaves it without meaning.

        `off`: the alternative that off means, by component; the default for those that it does not have.
        """
        found = {}
        for name in names:
            required = [self.component(r) for r in self.component(name).requires if r in names]
            found[name] = tuple(
                r.name for r in required if not r.keeps_dependants(off.get(r.name, r.default_alternative))
            )
        return found


def _check(chosen: Component, earlier: Sequence[Component]) -> None:
    """ValueError if a component does not fit behind those that come earlier."""
    name = chosen.name
    if name in [c.name for c in (*earlier, *CONTROLS)]:
        raise ValueError(f"there is a component {name} already; components have names of their own")
    for requirement in chosen.requires:
        if requirement not in [c.name for c in earlier]:
            raise ValueError(f"{name} requires {requirement}, and no component before it has that name")
    for slot in chosen.slots:
        if slot not in FIELDS:
            raise ValueError(f"{name} owns or modifies {slot!r}, which is no slot; {nearest(slot, FIELDS)}")
    for slot in chosen.nodes:
        if slot not in chosen.slots:
            raise ValueError(f"{name} has nodes for the slot {slot}, and neither owns nor modifies it")
    for other in earlier:
        _check_slots(chosen, other)
        _check_kinds(chosen, other)


def _check_slots(chosen: Component, earlier: Component) -> None:
    for slot in chosen.owns:
        if slot in earlier.owns:
            raise ValueError(
                f"the slot {slot} has two owners, {earlier.name} and {chosen.name}; a slot has one, "
                "and others modify what is there or are alternatives of the owner"
            )
        if slot in earlier.modifies and earlier.name not in chosen.requires:
            raise ValueError(
                f"{chosen.name} owns the slot {slot} and comes after {earlier.name}, which modifies it, so that it "
                "would replace what that does; the owner comes first, or requires the other"
            )


def _check_kinds(chosen: Component, earlier: Component) -> None:
    taken = {kind(node): node for nodes in earlier.nodes.values() for node in nodes}
    for node in (node for nodes in chosen.nodes.values() for node in nodes):
        if taken.get(kind(node), node) is not node:
            raise ValueError(
                f"{chosen.name} and {earlier.name} both have a node of kind {kind(node)!r}; a kind stands for one node"
            )


def kind(node: type) -> str:
    """The kind of a node's class: the default of its field `kind`."""
    return next(str(f.default) for f in dataclasses.fields(node) if f.name == "kind")


REGISTRY = Registry((MLA, MOE, AUX_FREE, MTP, FP8, DISTILL, DUALPIPE, ALLTOALL), installed_plugins())
COMPONENTS = REGISTRY.components
NAMES = REGISTRY.names
component = REGISTRY.component
