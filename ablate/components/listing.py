"""The components as text for people, from the registry and the method cards."""

from __future__ import annotations

import textwrap
from importlib import resources

from ablate.components.component import Component
from ablate.components.registry import REGISTRY

WIDTH = 80  # of a terminal that nobody has widened


def overview() -> str:
    """A paragraph for every component: what on and off are, what it changes, and where it comes from."""
    return "\n\n".join(map(_paragraph, REGISTRY.components))


def card(name: str) -> str:
    """The method card of a component; its paragraph of the overview where its package has no README.md."""
    chosen = REGISTRY.component(name)
    package = f"ablate.components.{name.replace('-', '_')}"
    for plugin in REGISTRY.plugins:
        if plugin.component is chosen:
            package = plugin.package
    if not package or not (file := resources.files(package) / "README.md").is_file():
        return _paragraph(chosen)
    return file.read_text(encoding="utf-8").rstrip()


def _paragraph(chosen: Component) -> str:
    first, *others = chosen.alternatives
    package = next((p.distribution for p in REGISTRY.plugins if p.component is chosen), "dsv3-ablate")
    lines = [f"{chosen.name}: {chosen.title}", f"Source: {chosen.source}."]
    lines.append(f"Off means {first.name}: {first.summary}.")
    lines += [f"Off can also mean {other.name}: {other.summary}." for other in others]
    if chosen.requires:
        lines.append(f"It requires {', '.join(chosen.requires)}.")
    if chosen.owns:
        lines.append(f"It owns the {_slots(chosen.owns)}.")
    if chosen.modifies:
        lines.append(f"It modifies the {_slots(chosen.modifies)}, which others may fill or modify too.")
    if chosen.does_not_commute_with:
        lines.append(f"It does not commute with {', '.join(chosen.does_not_commute_with)}: the order here decides.")
    lines.append(f"It affects {', '.join(chosen.affects)}.")
    lines.append(f"It comes with the package {package}.")
    head, *rest = lines
    indented = [textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in rest]
    return "\n".join([textwrap.fill(head, WIDTH, subsequent_indent="    "), *indented])


def _slots(names: tuple[str, ...]) -> str:
    return f"slot{'s' if len(names) > 1 else ''} {', '.join(names)}"
