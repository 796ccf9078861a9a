"""What was each DeepSeek-V3 change worth? Components, matched compute, attribution.

`from ablate import Study, sweep, report` is the interface for Python (`ablate.notebook`); the command line is
dsv3-ablate. Nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablate.notebook import Results, Study

INTERFACE = ("Study", "Results")
CALLABLE = ("sweep", "report")  # functions of ablate.notebook with the names of packages, which are called as them

__all__ = ["Results", "Study", "report", "sweep"]


class _Called(ModuleType):
    """A package that is called as the function of its name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module("ablate.notebook"), name)(*args, **options)


class _Front(ModuleType):
    """This package. The import system sets a subpackage as its attribute; those of CALLABLE can be called from then on.

    https://docs.python.org/3/reference/datamodel.html#customizing-module-attribute-access
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in CALLABLE and isinstance(value, ModuleType):
            value.__class__ = _Called
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in INTERFACE:
            return getattr(importlib.import_module("ablate.notebook"), name)
        if name in CALLABLE:
            return importlib.import_module(f"ablate.{name}")
        raise AttributeError(f"module 'ablate' has no attribute {name!r}")


sys.modules[__name__].__class__ = _Front
