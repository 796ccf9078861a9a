"""The user's own file of a cluster, clusters/NAME.toml: how jobs are asked for there, and what surrounds a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ablate.documents import read_toml
from ablate.errors import nearest
from ablate.spec.decoding import FORBID_UNKNOWN, decode
from ablate.spec.machine import Machine

PLACES = (Path("clusters"), Path("~/.config/dsv3-ablate/clusters"))
CURE = "give the name of a file in clusters/ or ~/.config/dsv3-ablate/clusters/, without .toml"

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
FORMS: Mapping[str, tuple[re.Pattern[str], str]] = {
    "partition": (re.compile(r"[A-Za-z0-9._-]{1,64}(,[A-Za-z0-9._-]{1,64})*"), "names of letters, digits, . _ -"),
    "account": (NAME, "a name of letters, digits, . _ -"),
    "qos": (NAME, "a name of letters, digits, . _ -"),
    "constraint": (re.compile(r"[A-Za-z0-9._&|*()\[\],:=-]{1,256}"), "features joined by & or |"),
    "time": (re.compile(r"(\d{1,4}-)?\d{1,6}(:\d{1,2}){0,2}"), "minutes, H:MM:SS or D-HH:MM:SS"),
    "memory": (re.compile(r"\d{1,9}[KMGT]?"), "a size such as 64G"),
    "modules": (re.compile(r"[A-Za-z0-9._/+-]{1,128}"), "names such as cuda/12.8"),
    "python": (re.compile(r"[^\s\0]{1,4096}"), "the path of an interpreter"),
    "capability": (re.compile(r"\d{1,2}\.\d"), "a version such as 9.0"),
}
SECRET = re.compile(r"\b\w*(key|token|secret|passw(or)?d)\w*=(?!\$[{(A-Za-z_])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What a job of this cluster asks for; what is empty or 0 is left to Slurm's defaults."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: str = ""
    memory: str = ""  # of a node
    gpus_per_node: int = 0
    cpus_per_task: int = 0  # default: the threads that a run computes with, times its ranks on a node
    ranks_per_node: int = 0  # default: gpus_per_node, or 1
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()  # lines of bash before a run, after the modules are loaded
    container: tuple[str, ...] = ()  # what is put before the command, for example apptainer exec --nv image.sif
    python: str = ""  # default: the interpreter that submits
    gpu: str = ""  # what backends are chosen for, where the machine that submits has another or none
    capability: str = ""  # of that GPU
    signal_s: int = 120  # before the time limit, a run writes its checkpoint and goes back into the queue
    max_array: int = 1000  # runs in one array job
    poll_s: float = 10.0  # between two looks at the queue

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        for name, (form, meant) in FORMS.items():
            value = getattr(self, name)
            for item in (value,) if isinstance(value, str) else value:
                if item and not form.fullmatch(item):
                    raise ValueError(f"{name} is {item!r}; it takes {meant}")
        for name in ("setup", "container", "gpu"):
            value = getattr(self, name)
            for item in (value,) if isinstance(value, str) else value:
                if not item.isprintable():
                    raise ValueError(f"{name} has {item!r}; it takes one line without control characters")
        for name in ("setup", "container"):
            if any(SECRET.search(line) for line in getattr(self, name)):
                raise ValueError(
                    f"{name} sets what looks like a secret, not shown here; job scripts are kept, so let it be read "
                    "from a file of yours, as by a line of setup: export WANDB_API_KEY=$(cat ~/.wandb-key)"
                )
        for name, least, most in (("signal_s", 1, 65535), ("max_array", 1, 10**6), ("poll_s", 0.1, 3600)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between {least} and {most}")
        for name in ("gpus_per_node", "cpus_per_task", "ranks_per_node"):
            if not 0 <= getattr(self, name) <= 4096:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 4096")
        if bool(self.gpu) != bool(self.capability):
            raise ValueError("gpu and capability belong together, as in gpu = 'NVIDIA H200', capability = '9.0'")

    def nodes(self, ranks: int) -> int:
        """Machines of a run; ValueError if its ranks do not fill them evenly."""
        each = min(ranks, self.ranks_per_node or self.gpus_per_node or 1)
        if ranks % each:
            raise ValueError(f"{ranks} ranks do not fill machines of {each} evenly; give a multiple of {each}")
        return ranks // each

    def machine(self, here: Machine) -> Machine:
        """The machine that runs are resolved for."""
        if not self.gpu:
            return here
        major, minor = self.capability.split(".")
        capability = (int(major), int(minor))
        return Machine(kind="cuda", name=self.gpu, capability=capability, torch_version=here.torch_version)


def read_cluster(name: str) -> Cluster:
    """The cluster of a name; ValueError says what is wrong in the file, or which files there are."""
    if not NAME.fullmatch(name):
        raise ValueError(f"--cluster is {name!r}; {CURE}")
    folders = [place.expanduser() for place in PLACES]
    path = next((folder / f"{name}.toml" for folder in folders if (folder / f"{name}.toml").exists()), None)
    if path is None:
        known = sorted(file.stem for folder in folders for file in folder.glob("*.toml"))
        hint = nearest(name, known) if known else "there is none yet; README says what is in such a file"
        raise ValueError(f"no cluster is named {name!r}; {hint}; {CURE}")
    data = read_toml(path, "the cluster file", CURE)
    unknown = [key for key in data if key not in {f.name for f in fields(Cluster)}]
    if unknown:
        raise ValueError(f"{path}: {unknown[0]} is unknown; {nearest(unknown[0], [f.name for f in fields(Cluster)])}")
    try:
        return decode(Cluster, data, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
