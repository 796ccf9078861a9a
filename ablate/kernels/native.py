"""C for the processor: compiled at first use by the machine's own compiler, kept in the cache, called through ctypes.

Such a library takes addresses of contiguous tensors on a CPU; it frees the interpreter's lock while it runs and starts
no threads. Its callers are the `compiled` backends, which a machine without a compiler does not have.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from ablate.files import commit_folder, damage, new_folder
from ablate.spec.machine import c_compiler, cache_folder

# No contraction to fused multiply-adds and no reordering of sums: the bits depend on the source alone. That comparisons
# do not trap lets them be vectorised.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-shared")


@cache
def load(source: Path, functions: tuple[tuple[str, tuple[Any, ...]], ...]) -> ctypes.CDLL:
    """The library of a C file. RuntimeError with the compiler's words where it cannot be built."""
    library = ctypes.CDLL(str(_built(source)))
    for name, arguments in functions:
        function = getattr(library, name)
        function.argtypes, function.restype = list(arguments), None
    return library


def _built(source: Path) -> Path:
    command = [*c_compiler(), *FLAGS]
    text = source.read_bytes()
    key = hashlib.sha256(b"\0".join([text, *(part.encode() for part in command), _processor().encode()])).hexdigest()
    folder = cache_folder() / "native" / f"{source.stem}-{key[:16]}"
    target = folder / f"{source.stem}.so"
    if damage(folder, target.name) is None:
        return target
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder.parent, f"the compiled {source.name}") as place:
        made = place / target.name
        done = subprocess.run([*command, "-o", str(made), str(source), "-lm"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"{source.name} cannot be compiled ({shlex.join(command)}): {done.stderr.strip()[:2000]}; mend the "
                "compiler or choose another backend (linear=emulated)"
            )
        commit_folder(place, folder, {"command": command})
    return target


@cache
def _processor() -> str:
    """What -march=native stands for: a cache folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
