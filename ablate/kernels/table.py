"""Configurations of kernels by machine and shape, from JSON files; and the ones a machine has measured. No torch.

A file maps an architecture (`sm_90`, `interpreter`) to kernels, and a kernel to its `choices`, tried in order: the
first whose `when` holds for the shape is used. `candidates` are what `dsv3-ablate bench kernels --tune` times besides.
Measured choices of one device (`ablate.spec.measured`) go before all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from ablate.spec.machine import Machine
from ablate.spec.measured import WHAT, measured_file, read_json, section


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """How one kernel is launched: block sizes and switches by name, and what Triton is told of warps and pipelining.

    `when`: bounds [low, high] of sizes in which it is chosen, by name; null is no bound.
    """

    blocks: Mapping[str, int | bool] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    when: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether every bound of `when` holds for these sizes; KeyError where one of them is not given."""
        return all(
            (low is None or sizes[name] >= low) and (high is None or sizes[name] <= high)
            for name, (low, high) in self.when.items()
        )

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}

    def __str__(self) -> str:
        blocks = " ".join(f"{name}{size}" for name, size in self.blocks.items())
        return f"{blocks} w{self.num_warps} s{self.num_stages}".strip()


# Of the whole process: autograd launches backward kernels from threads of its own.
_forced: dict[str, Configuration] = {}


@contextmanager
def forced(kernel: str, configuration: Configuration) -> Iterator[None]:
    """Inside, `kernel` is launched with this configuration, whatever the table says: for tuning and for tests."""
    before = _forced.get(kernel)
    _forced[kernel] = configuration
    try:
        yield
    finally:
        _forced.pop(kernel)
        if before is not None:
            _forced[kernel] = before


# Told of every choice that is made: the table, the kernel, the sizes, the configuration.
watchers: list[Callable[[Table, str, Mapping[str, int], Configuration], None]] = []


class Table:
    """The configurations of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.used: dict[str, list[Configuration]] = {}  # what was chosen in this process, by kernel

    def choose(self, kernel: str, machine: Machine, **sizes: int) -> Configuration:
        """The configuration of a kernel for these sizes. ValueError where the table has none."""
        if kernel in _forced:
            return _forced[kernel]
        found = _choose(self.path, kernel, machine, tuple(sorted(sizes.items())))
        if found not in self.used.setdefault(kernel, []):
            self.used[kernel].append(found)
        for watch in watchers:
            watch(self, kernel, sizes, found)
        return found

    def kernels(self, architecture: str) -> tuple[str, ...]:
        """Names of the kernels that have configurations for an architecture."""
        return tuple(section(self.path, architecture))

    def shipped(self, kernel: str, architecture: str) -> tuple[Configuration, ...]:
        """The choices of a kernel, in order."""
        return _decode(self.path, section(self.path, architecture, kernel)["choices"])

    def candidates(self, kernel: str, architecture: str) -> tuple[Configuration, ...]:
        """What tuning tries: the choices, and the candidates beside them."""
        entry = section(self.path, architecture, kernel)
        found = _decode(self.path, [*entry["choices"], *entry.get("candidates", [])])
        plain = [replace(c, when={}) for c in found]
        return tuple(c for i, c in enumerate(plain) if c not in plain[:i])


@cache
def _choose(path: Path, kernel: str, machine: Machine, sizes: tuple[tuple[str, int], ...]) -> Configuration:
    shape = dict(sizes)
    for source, key in ((measured_file(machine), "kernels"), (path, machine.architecture)):
        for configuration in _decode(source, section(source, key, kernel).get("choices", [])):
            if configuration.holds(shape):
                return configuration
    where = ", ".join(f"{name}={size}" for name, size in sizes)
    raise ValueError(
        f"no configuration of the kernel {kernel} for {machine} ({where}); "
        "choose backend library, or measure some with: dsv3-ablate bench kernels --tune"
    )


def forget() -> None:
    """Read the files anew: after tuning has written one."""
    read_json.cache_clear()
    _choose.cache_clear()


def _decode(path: Path, entries: Any) -> tuple[Configuration, ...]:
    """Configurations from plain data, without pydantic, which machines that only measure kernels may lack.

    ValueError names the file and what in it is none.
    """
    try:
        if not isinstance(entries, list):
            raise ValueError(f"choices is {entries!r}, not a list")
        return tuple(map(_configuration, entries))
    except ValueError as fault:
        raise ValueError(f"cannot use {WHAT} {path}: {fault}") from None


def _configuration(entry: Any) -> Configuration:
    """One entry of `choices`: `blocks` and `when` by name, `num_warps`, `num_stages`; each may be left out."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{entry!r} in choices is no object")
    if unknown := entry.keys() - {f.name for f in fields(Configuration)}:
        raise ValueError(f"{sorted(unknown)[0]} in choices is unknown; {entry!r}")
    blocks, when = entry.get("blocks", {}), entry.get("when", {})
    numbers = [entry.get("num_warps", 4), entry.get("num_stages", 2)]
    if not (isinstance(blocks, Mapping) and isinstance(when, Mapping)):
        raise ValueError(f"blocks and when are objects; {entry!r}")
    sizes = [n for n in blocks.values() if type(n) is not bool]
    if not all(type(n) is int and n > 0 for n in [*sizes, *numbers]):
        raise ValueError(f"blocks, num_warps and num_stages are whole numbers above 0, or switches; {entry!r}")
    for bounds in when.values():
        if not isinstance(bounds, list) or [type(n) in (int, type(None)) for n in bounds] != [True, True]:
            raise ValueError(f"when has two bounds for each size, numbers or null; {entry!r}")
    return Configuration(
        blocks=dict(blocks),
        num_warps=numbers[0],
        num_stages=numbers[1],
        when={k: (v[0], v[1]) for k, v in when.items()},
    )
