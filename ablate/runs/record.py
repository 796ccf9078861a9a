"""What a run left: the whole resolved specification, the numbers, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ablate.quantities import listed
from ablate.spec.decoding import FORBID_UNKNOWN, data_id, decode
from ablate.spec.run import SCHEMA_VERSION

RunStatus = Literal["finished", "diverged", "failed", "missing"]  # a record has one of the first two
READABLE_VERSIONS = (1, 2, 3, SCHEMA_VERSION)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run that has ended. Committed once and never changed; the file is the truth about the run.

    `metrics` are the figures at the end, by name with unit; `curve` has a point per evaluation (step, n_tokens,
    learning_rate, train_loss, and held-out metrics). `branches` has a point per branch, the shortest first: the figures
    of the finished model that the trunk was decayed to there. The run's own end is in `metrics`. A diverged run has the
    metrics it had before it diverged: `diverged_step` and `last_finite_loss`.
    """

    run_id: str
    status: Literal["finished", "diverged"]
    spec: Mapping[str, Any]  # RunSpec as plain data: its canonical JSON hashes to run_id
    variant: Mapping[str, str]  # component -> "on" or the alternative's name
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[Mapping[str, float], ...] = ()
    branches: tuple[Mapping[str, float], ...] = ()
    judged: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # held-out set -> windows, documents
    expert_loads: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # router -> held-out tokens by expert, end
    order_hash: str = ""  # equal: the same tokens in the same order
    initial_parameters: Mapping[str, str] = field(default_factory=dict)  # name -> shape:hash of initial values
    final_parameters_hash: str = ""
    backends: Mapping[str, str] = field(default_factory=dict)  # slot -> what really ran
    evidence: Mapping[str, str] = field(default_factory=dict)  # metric group -> measured | emulated
    environment: Mapping[str, Any] = field(default_factory=dict)
    attempts: tuple[Mapping[str, Any], ...] = ()
    schema_version: int = SCHEMA_VERSION

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    @property
    def seed(self) -> int:
        return self.spec["seed"]

    @property
    def n_tokens(self) -> int:
        trainer = self.spec["trainer"]
        return self.spec["n_steps"] * trainer["batch_size"] * trainer["sequence_length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why an attempt at a run ended without a record: the run is still to be done."""

    run_id: str
    variant: Mapping[str, str]
    seed: int
    reason: str
    traceback: str
    time_s: float  # since the epoch

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN


def decode_record(data: Any, where: str) -> RunRecord:
    """A record from its JSON, of this version or of one before; ValueError names what is wrong and where.

    Its specification must be that of the run it names.
    """
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version not in READABLE_VERSIONS:
        known = listed(map(str, READABLE_VERSIONS))
        raise ValueError(f"{where} has schema version {version}; this program reads versions {known}")
    record = decode(RunRecord, data, where)
    if record.run_id != data_id(record.spec):
        raise ValueError(
            f"{where} was altered: its specification is that of run {data_id(record.spec)}, not of {record.run_id}; "
            "move it away and give the study's command again: it makes the run anew"
        )
    for name in ("step_s", "tokens_per_s"):
        if record.metrics.get(name, 1.0) <= 0:
            raise ValueError(f"{where}: metrics.{name} is {record.metrics[name]}; it must be above 0")
    return record


def pairing_fault(one: RunRecord, other: RunRecord) -> str:
    """Why two runs must not be paired, or "". Paired runs see the same tokens and share initial values."""
    if one.seed != other.seed:
        return f"seeds differ ({one.seed}, {other.seed})"
    if one.order_hash != other.order_hash:
        return "order_hash differs: they saw different tokens, or the same in another order"
    for name, value in one.initial_parameters.items():
        against = other.initial_parameters.get(name)
        if against and against != value and against.split(":")[0] == value.split(":")[0]:
            return f"initial_parameters differ: the initial values of {name} are not the same"
    return ""
