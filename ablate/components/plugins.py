"""Components of other packages: entry points of the group `dsv3_ablate.components`, each of which loads one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from ablate.components.component import Component

GROUP = "dsv3_ablate.components"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plugin:
    """A component of another distribution. `package`: where its card, README.md, is; empty for a single module."""

    component: Component
    distribution: str
    package: str


def installed_plugins() -> tuple[Plugin, ...]:
    """The plugins of all installed distributions, in the order of their entry points' names.

    ValueError names the distribution of one that cannot be loaded.
    """
    return tuple(_load(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name))


def _load(point: EntryPoint) -> Plugin:
    distribution = point.dist.name if point.dist is not None else point.module
    try:
        loaded = point.load()
    except Exception as error:  # whatever another package raises as it is imported
        raise ValueError(
            f"the package {distribution} names {point.value} as a component of this program, which cannot be imported "
            f"({type(error).__name__}: {error}); repair the package or uninstall it"
        ) from error
    if not isinstance(loaded, Component):
        raise ValueError(
            f"the package {distribution} names {point.value} as a component of this program, and it is a "
            f"{type(loaded).__name__}, not a Component; repair the package or uninstall it"
        )
    return Plugin(component=loaded, distribution=distribution, package=sys.modules[point.module].__package__ or "")
