"""Lightning in half the time: it loads torchmetrics whole, which imports every package that a metric of its could use.

Where transformers is installed, that alone takes two seconds of a processor. Whoever needs one of these packages later
imports it as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError
from typing import Any

UNUSED = ("transformers", "matplotlib", "scipy")


def load_lightning() -> None:
    with hidden(*UNUSED):
        import lightning.pytorch  # noqa: F401


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Packages that are not imported yet seem not to be installed, for as long as this lasts."""
    absent = [name for name in packages if name not in sys.modules]
    found: Any = Distribution.from_name

    def from_name(name: str) -> Distribution:
        if name in absent:
            raise PackageNotFoundError(name)
        there: Distribution = found(name)
        return there

    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: there is no such module
    Distribution.from_name = from_name  # type: ignore[method-assign]
    try:
        yield
    finally:
        Distribution.from_name = found  # type: ignore[method-assign]
        for name in absent:
            del sys.modules[name]
