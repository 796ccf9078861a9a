"""A study: a question, the variants that answer it, what they have equal, and the file that repeats it."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ablate.components.codec import decode_spec
from ablate.components.controls import CONTROLS
from ablate.components.registry import COMPONENTS, component
from ablate.errors import nearest
from ablate.presets import preset, preset_file
from ablate.spec.decoding import FORBID_UNKNOWN, decode
from ablate.spec.nodes import MODEL_SLOTS
from ablate.spec.run import Preset

Match = Literal["flops", "tokens", "seconds"]
Design = Literal["one", "leave-one-out", "add-one-in", "first-last", "lattice", "optimal", "staged"]
BACKEND_SLOTS = ("attention", "feed_forward", "balance", "linear", "norm", "head")


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What a study file says. Every field that is left out has the preset's value or the default written here."""

    question: str
    preset: str  # a name, or the path of a preset file
    design: Design = "one"
    n_runs: int | None = None  # of the design `optimal`
    block_size: int = 4  # variants that share a seed in `lattice`; 1: every run has its own
    order: int = 2  # interactions above it are assumed away by `optimal` and `staged`
    disable: tuple[str, ...] = ()  # with `one`: off together; other designs: the components to attribute to
    enable: tuple[str, ...] = ()  # the same, starting from nothing on
    without: tuple[str, ...] = ()  # off in every variant, and not part of the question
    calibration: tuple[str, ...] = ()  # controls of known effect, as further components of the design
    alternatives: Mapping[str, str] = field(default_factory=dict)
    match: Match = "flops"
    budget: float | None = None  # of a run: training FLOPs, tokens or seconds, as `match` says
    n_seeds: int | None = None
    first_seed: int = 0
    margin_nats: float = 0.005  # differences up to this size are of no interest
    confidence: float = 0.95
    data: str = ""  # the corpus; empty: the preset's
    max_bytes: int | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)  # fields of the preset's trainer to replace
    learning_rates: Mapping[str, float] = field(default_factory=dict)  # variant -> its own tuned rate
    backends: Mapping[str, str] = field(default_factory=dict)  # slot -> what runs it, in every variant that can

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        for name in (*self.disable, *self.enable, *self.without):
            component(name)
        controls = [control.name for control in CONTROLS]
        for name in self.calibration:
            if name not in controls:
                raise ValueError(f"calibration names {name!r}; {nearest(name, controls)}")
        for name, alternative in self.alternatives.items():
            component(name).alternative(alternative)
        for slot in self.backends:
            if slot not in MODEL_SLOTS:
                raise ValueError(f"backends names the slot {slot!r}; {nearest(slot, MODEL_SLOTS)}")
        if self.disable and self.enable:
            raise ValueError(
                "both disable and enable were given: disable starts from the full recipe and enable from none of it; "
                "give one of them, or a study file with a design"
            )
        if self.n_seeds is not None and self.n_seeds < 1:
            raise ValueError(f"n_seeds is {self.n_seeds}; it must be at least 1, and at least 2 for an interval")
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise ValueError(f"budget is {self.budget}; it must be a finite number above 0")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; it must lie between 0 and 1")
        if self.margin_nats < 0:
            raise ValueError(f"margin_nats is {self.margin_nats}; it must be 0 or more")

    def load_preset(self) -> Preset:
        """The preset, with the study's own corpus and trainer fields."""
        found = preset_file(Path(self.preset)) if self.preset.endswith(".toml") else preset(self.preset)
        data = found.data
        if self.data:
            data = dataclasses.replace(data, source=self.data)
        if self.max_bytes is not None:
            data = dataclasses.replace(data, max_bytes=self.max_bytes)
        trainer = decode_spec(type(found.trainer), dataclasses.asdict(found.trainer) | dict(self.trainer), "trainer")
        return dataclasses.replace(found, data=data, trainer=trainer)


def read_study(path: Path) -> Study:
    """The study of a TOML file; ValueError names the file and what is wrong in it."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the study {path}: {error}") from None
    unknown = [key for key in data if key not in {f.name for f in dataclasses.fields(Study)}]
    if unknown:
        names = [f.name for f in dataclasses.fields(Study)]
        raise ValueError(f"{path}: {unknown[0]} is unknown; {nearest(unknown[0], names)}")
    try:
        return decode(Study, data, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def to_toml(study: Study) -> str:
    """The study as a file; what has the default value is left out."""
    import tomli_w

    written = {}
    for f in dataclasses.fields(Study):
        value = getattr(study, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value is not None and value != default:
            written[f.name] = dict(value) if isinstance(value, Mapping) else value
    return tomli_w.dumps(written)


def unavailable(data: str, name: str) -> tuple[str, ...]:
    """Components that a corpus other than the preset's own leaves off in every variant."""
    if not data or data == Study(question="", preset=name).load_preset().data.source:
        return ()
    return tuple(c.name for c in COMPONENTS if c.tied_to_corpus)


def question(disable: Sequence[str], enable: Sequence[str], alternatives: Mapping[str, str]) -> str:
    """What a comparison of the command line asks, in words."""

    def title(name: str) -> str:
        chosen = component(name)
        against = f" (against {alternatives[name]})" if name in alternatives else ""
        return f"{chosen.title}{against}"

    names = " and ".join(title(name) for name in disable or enable)
    whole = "the full recipe" if disable else "the dense baseline"
    return f"What is {names} worth in {whole}?" if names else ""
