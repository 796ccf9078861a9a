"""The machine that runs are resolved for: what decides which backends can be used. No torch unless there is a GPU."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HOPPER = (9, 0)
COMPILERS = ("cc", "gcc", "clang")
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A device as backends see it. `interpreted`: Triton kernels run in its interpreter, on the processor."""

    kind: str  # "cpu" or "cuda"
    name: str = "cpu"  # as its driver gives it, for example "NVIDIA H200"
    capability: tuple[int, int] | None = None
    interpreted: bool = False
    torch_version: tuple[int, int] = (2, 11)
    compiles_c: bool = False  # a C compiler is there, for code that runs on the processor

    @property
    def architecture(self) -> str:
        """Key of the tables: sm_90, interpreter or cpu."""
        if self.interpreted:
            return "interpreter"
        return "cpu" if self.capability is None else f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def slug(self) -> str:
        """The device's name as the name of a file: h200, h100-80gb-hbm3."""
        words = self.name.lower().replace("nvidia", "").split()
        return "-".join("".join(c for c in word if c.isalnum()) for word in words) or self.kind

    @property
    def runs_triton(self) -> bool:
        """Whether the kernels of this program run here: on Hopper, or interpreted."""
        return self.interpreted or self.capability == HOPPER

    def __str__(self) -> str:
        if self.interpreted:
            return f"{self.name}, Triton interpreted"
        return self.name if self.capability is None else f"{self.name}, {self.architecture}"


def cache_folder() -> Path:
    """Where what can be made again is kept: $XDG_CACHE_HOME/dsv3-ablate or ~/.cache/dsv3-ablate."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "dsv3-ablate"


def c_compiler() -> tuple[str, ...]:
    """The command of the C compiler: $CC, or the first of cc, gcc and clang that is installed; empty without one."""
    asked = shlex.split(os.environ.get("CC", ""))
    found = next((path for name in asked[:1] or COMPILERS if (path := shutil.which(name))), None)
    return (found, *asked[1:]) if found else ()


def has_driver() -> bool:
    """Whether anything here speaks of an NVIDIA driver, whatever the device's number or the sandbox; without torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    if any(Path(place).exists() for place in DRIVER_FILES) or any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def has_gpu() -> bool:
    """Whether torch has a device to use. It is asked, and so imported, only where there is a driver."""
    if not has_driver():
        return False
    import torch

    return torch.cuda.is_available()


@cache
def this_machine() -> Machine:
    """The machine of this process."""
    from importlib import metadata

    major, minor = metadata.version("torch").split(".")[:2]
    version = (int(major), int(minor))
    if has_gpu():
        import torch

        return Machine(
            kind="cuda",
            name=torch.cuda.get_device_name(),
            capability=torch.cuda.get_device_capability(),
            torch_version=version,
        )
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return Machine(kind="cpu", interpreted=interpreted, torch_version=version, compiles_c=bool(c_compiler()))
