"""The components as text for people, from the registry and the method cards."""

from __future__ import annotations

from importlib import resources

from ablate.components.registry import COMPONENTS, component


def overview() -> str:
    """A paragraph for every component: what on and off are, and what it needs and affects."""
    parts = []
    for c in COMPONENTS:
        lines = [f"{c.name}: {c.title}", f"  source    {c.source}"]
        for i, alternative in enumerate(c.alternatives):
            lines.append(f"  {'off' if i == 0 else 'or '}       {alternative.name}: {alternative.summary}")
        if c.requires:
            lines.append(f"  requires  {', '.join(c.requires)}")
        lines.append(f"  affects   {', '.join(c.affects)}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def card(name: str) -> str:
    """The method card of a component."""
    package = f"ablate.components.{component(name).name.replace('-', '_')}"
    return (resources.files(package) / "README.md").read_text(encoding="utf-8").rstrip()
