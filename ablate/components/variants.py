"""A variant: a level for every component, what it leaves unmet, and the specification that it resolves to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from ablate.components.component import ON, Component
from ablate.components.controls import CONTROLS
from ablate.components.registry import REGISTRY
from ablate.spec.ranks import Ranks
from ablate.spec.run import Preset, Spec


def on_ranks(preset: Preset, ranks: Ranks) -> Preset:
    """The preset on so many ranks; what needs several along an axis is then in its recipe too."""
    needed = [c.name for c in REGISTRY.components if c.axis and ranks.on_several(c.axis)]
    recipe = tuple(dict.fromkeys((*preset.recipe, *needed)))
    return replace(preset, trainer=replace(preset.trainer, ranks=ranks), recipe=recipe)


def fitting_micro_batch(batch_size: int, largest: int, ranks: Ranks) -> int:
    """The largest micro-batch, up to `largest`, that gives every data rank as many as every schedule here can do with.

    That is an even number of at least twice the pipeline ranks; `largest` where the batch is too small for that.
    """
    for size in range(largest, 0, -1):
        n, rest = divmod(batch_size, size * ranks.data)
        if not rest and (ranks.pipeline == 1 or (n % 2 == 0 and n >= 2 * ranks.pipeline)):
            return size
    return largest


@dataclass(frozen=True, slots=True)
class Variant:
    """A level for every component, in the order of the registry, and for the controls that a study has.

    Made by `of`, `none` or `full`, which resolve names to components; it is indexed by name and iterates over names.
    Files and records hold `levels`.
    """

    choices: tuple[tuple[Component, str], ...]  # level: "on" or the name of an alternative

    @classmethod
    def of(cls, levels: Mapping[str, str]) -> Variant:
        """These levels, and every other component at its default alternative; ValueError for a name there is not."""
        for name, level in levels.items():
            chosen = REGISTRY.component(name)
            if level != ON:
                chosen.alternative(level)
        controls = (control for control in CONTROLS if control.name in levels)
        return cls(tuple((c, levels.get(c.name, c.default_alternative)) for c in (*REGISTRY.components, *controls)))

    @classmethod
    def none(cls) -> Variant:
        """Everything off, at the default alternatives: a Llama-3-style dense transformer."""
        return cls.of({})

    @classmethod
    def full(cls, preset: Preset) -> Variant:
        """Everything on that the preset's recipe names, and all else at its default alternative."""
        return cls.of(dict.fromkeys(preset.recipe, ON))

    @property
    def levels(self) -> dict[str, str]:
        """Component name -> level."""
        return {chosen.name: level for chosen, level in self.choices}

    @property
    def on(self) -> tuple[str, ...]:
        """Names of the components that are on."""
        return tuple(chosen.name for chosen, level in self.choices if level == ON)

    def __iter__(self) -> Iterator[str]:
        return iter(self.levels)

    def __getitem__(self, name: str) -> str:
        return self.levels[name]

    def __or__(self, levels: Mapping[str, str]) -> Variant:
        """The variant with other levels for some components; ValueError for a name or a level there is not."""
        return Variant.of(self.levels | dict(levels))

    def without(self, disabled: Sequence[str], alternatives: Mapping[str, str] = MappingProxyType({})) -> Variant:
        """The variant with components turned off, and with them whatever then means nothing (leave-one-out).

        `alternatives`: what off means, by component; the default for those that it does not have.
        """
        off = {name: REGISTRY.component(name).default_alternative for name in disabled}
        result = self | off | {name: alternatives[name] for name in disabled if name in alternatives}
        for dependant in REGISTRY.components:
            # Without its prerequisite no alternative differs from another; the default stands for all of them.
            if result.missing(dependant):
                result |= {dependant.name: dependant.default_alternative}
        return result

    def missing(self, chosen: Component) -> tuple[str, ...]:
        """What a component requires and does not find here: without it none of its levels means anything."""
        levels = self.levels
        return tuple(r for r in chosen.requires if not REGISTRY.component(r).keeps_dependants(levels[r]))

    @property
    def unmet(self) -> tuple[tuple[str, str], ...]:
        """Pairs (component that is on, prerequisite of it that is not there)."""
        return tuple((c.name, missing) for c, level in self.choices if level == ON for missing in self.missing(c))

    def resolve(self, preset: Preset) -> Spec:
        """The specification of the variant. ValueError if a level means nothing beside the others."""
        for name, requirement in self.unmet:
            raise ValueError(
                f"{name} is on while {requirement} is off ({self[requirement]}), and it requires {requirement}; "
                f"turn {requirement} on or {name} off"
            )
        spec = Spec(preset=preset, model=preset.model, data=preset.data, trainer=preset.trainer)
        for chosen, level in self.choices:
            spec = chosen.apply(level, spec)
        return spec

    def describe(self, reference: Variant) -> str:
        """A short name: what differs from `reference` (the full variant, as a rule), which has the same controls."""
        parts = []
        for chosen, level in self.choices:
            if level == reference[chosen.name]:
                continue
            if level == ON:
                parts.append(f"+{chosen.name}")
            elif level == chosen.default_alternative:
                parts.append(f"-{chosen.name}")
            else:
                parts.append(f"{chosen.name}={level}")
        return " ".join(parts) or "full"
