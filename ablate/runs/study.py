"""A study: a question, the variants that answer it, what they have equal, and the file that repeats it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from ablate.components.codec import decode_spec
from ablate.components.controls import CONTROLS
from ablate.components.registry import COMPONENTS, component
from ablate.components.variants import fitting_micro_batch, on_ranks
from ablate.documents import read_toml
from ablate.errors import nearest
from ablate.presets import preset_with
from ablate.runs.factors import ALTERNATIVE, PRESET, Factor, read_factors
from ablate.runs.precision import parse_precision
from ablate.runs.primary import PRIMARY, Primary
from ablate.runs.searching import Search, Tuning, plain
from ablate.spec.decoding import FORBID_UNKNOWN, decode
from ablate.spec.nodes import MODEL_SLOTS
from ablate.spec.run import Preset

Match = Literal["flops", "tokens", "seconds"]
Design = Literal["one", "leave-one-out", "add-one-in", "first-last", "lattice", "optimal", "staged"]
COMPARED = ("one", "leave-one-out")  # designs that compare each variant with the reference
SPLIT = ("loss", "compute", "time")  # metrics that any design splits among its components
DATA_FIELDS = {"data.source": "data", "data.max_bytes": "max_bytes", "data.text_field": "text_field"}
PAIRED = ("one", "leave-one-out", "add-one-in", "first-last")  # every variant runs with every seed
COUNTS = ("n_seeds", "max_seeds", "n_runs", "block_size")
MOST = dict.fromkeys(COUNTS, 10_000) | {"first_seed": 2**63}  # above it is a slip
BACKEND_SLOTS = ("attention", "feed_forward", "balance", "linear", "norm", "head")


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What a study file says. Every field that is left out has the preset's value or the default written here."""

    question: str
    preset: str = ""  # a name, or the path of a preset file; empty: the first level of the factor `preset`
    hypothesis: str = ""  # what is expected, stated before the first run
    primary_metric: Primary = "loss"  # what the question is decided by
    margin: float | None = None  # of the primary metric: differences up to it are of no interest; None: its usual one
    factors: Mapping[str, Any] = field(default_factory=dict)  # field of the preset -> its levels, the reference first
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
    precision: str = ""  # plan the seeds for this half-width of the interval: "0.01 nats", or "3%" of compute
    until: Literal["", "resolved"] = ""  # stop at the planned look that decides every effect
    max_seeds: int | None = None  # that `precision` and `until` may take; their default is in ablate.sweep.seeds
    first_seed: int = 0
    margin_nats: float = 0.005  # differences up to this size are of no interest
    confidence: float = 0.95
    data: str = ""  # the corpus; empty: the preset's
    max_bytes: int | None = None
    text_field: str = ""  # of the corpus's rows, dots lead into what is nested; empty: "text", or a list of messages
    trainer: Mapping[str, Any] = field(default_factory=dict)  # fields of the preset's trainer to replace
    learning_rates: Mapping[str, float] | Literal["tuned"] = field(default_factory=dict)  # variant -> its own rate
    tuning: Tuning | None = None  # how rates are found where learning_rates is "tuned"
    search: Search | None = None  # of settings, before the variants are compared at those found
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
        self._check_seeds()
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise ValueError(f"budget is {self.budget}; it must be a finite number above 0")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; it must lie between 0.5 and 1, for example 0.95")
        if not 0 <= self.margin_nats < float("inf"):
            raise ValueError(f"margin_nats is {self.margin_nats}; it must be a finite number, 0 or more")
        if self.margin is not None and not 0 <= self.margin < float("inf"):
            raise ValueError(f"margin is {self.margin}; it must be a finite number, 0 or more")
        if self.primary_metric not in PRIMARY:
            raise ValueError(f"primary_metric is {self.primary_metric!r}; {nearest(self.primary_metric, PRIMARY)}")
        if self.design not in COMPARED and self.primary_metric not in SPLIT:
            raise ValueError(
                f"primary_metric is {self.primary_metric}, which is compared pair by pair, and the design "
                f"{self.design} compares no pairs; choose the design leave-one-out, or one of {', '.join(SPLIT)}"
            )
        self._take_margin()
        self._take_preset()
        self._check_search()
        for name, most in MOST.items():
            if (getattr(self, name) or 0) > most:
                raise ValueError(f"{name} is {getattr(self, name):.3g}; it must be at most {most:,}")

    def _check_search(self) -> None:
        """ValueError where tuning, search and the rest of the study contradict each other."""
        tuned = self.learning_rates == "tuned"
        if self.tuning is not None and not tuned:
            raise ValueError(
                'there is a table [tuning], and learning_rates is not "tuned"; set it, or take the table out'
            )
        if self.search is not None and self.learning_rates:
            raise ValueError("there are both a table [search] and learning_rates; a study has one of them")
        if (tuned or self.search is not None) and (self.until or self.precision):
            raise ValueError(
                f"{'until' if self.until else 'precision'} was given, and settings are tried first: seeds are added by "
                "what was read only where all settings are known beforehand; give n_seeds"
            )
        if (tuned or self.search is not None) and self.match == "seconds":
            raise ValueError(
                "match is seconds, and settings are to be tried first: their speeds would be measured anew for each, "
                "and so give each another number of steps; match flops or tokens"
            )

    def _check_seeds(self) -> None:
        """ValueError where two fields say how many seeds there are, or one has no meaning beside the others."""
        ways = {"n_seeds": self.n_seeds, "precision": self.precision, "until": self.until}
        given = [name for name, value in ways.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given; each says how many seeds there are: leave one out")
        if self.precision:
            parse_precision(self.precision)
        if self.until and self.design not in PAIRED:
            raise ValueError(
                f"until adds whole seeds, and the design {self.design} is not made of them; choose one of "
                f"{', '.join(PAIRED)}, or the design staged, which is read after each of its stages"
            )
        if self.max_seeds is not None and given[:1] not in (["precision"], ["until"]):
            raise ValueError("max_seeds limits what precision or until asks for, and neither was given; give n_seeds")
        if self.max_seeds is not None and self.max_seeds < 2:
            raise ValueError(f"max_seeds is {self.max_seeds}; an interval takes at least 2 seeds")

    def _take_margin(self) -> None:
        """`margin` of the loss and `margin_nats` are one number."""
        if self.primary_metric != "loss" or self.margin is None or self.margin == self.margin_nats:
            return
        if self.margin_nats != PRIMARY["loss"].margin:
            raise ValueError(
                f"margin is {self.margin} and margin_nats {self.margin_nats}, both of the loss; give one of them"
            )
        object.__setattr__(self, "margin_nats", self.margin)

    def _take_preset(self) -> None:
        """The factor `preset` may stand for the field, and must not contradict it."""
        levels = [level.settings for factor in self.crossed for level in factor.levels]
        presets = [str(settings[PRESET]) for settings in levels if PRESET in settings]
        if not self.preset and not presets:
            raise ValueError("preset is missing; give a name, or the path of a preset file")
        if self.preset and presets and self.preset != presets[0]:
            raise ValueError(
                f"preset is {self.preset!r}, and the factor preset begins with {presets[0]!r}; leave the field out"
            )
        object.__setattr__(self, "preset", self.preset or presets[0])

    @property
    def crossed(self) -> tuple[Factor, ...]:
        """The factors."""
        return read_factors(self.factors)

    @property
    def primary_margin(self) -> float:
        """Differences of the primary metric up to this size are of no interest; of a ratio it is a share."""
        if self.primary_metric == "loss":
            return self.margin_nats
        return PRIMARY[self.primary_metric].margin if self.margin is None else self.margin

    def load_preset(self, settings: Mapping[str, Any] = MappingProxyType({})) -> Preset:
        """The preset, with the study's own corpus and trainer fields, and with what a cell of factors sets.

        ValueError for a field that there is not, or that the study sets for every variant too.
        """
        own = {f"trainer.{name}" for name in self.trainer}
        own |= {path for path, name in DATA_FIELDS.items() if getattr(self, name)}
        fields = {p: v for p, v in settings.items() if p != PRESET and not p.startswith(ALTERNATIVE)}
        for path in fields:
            if path in own:
                raise ValueError(f"{path} is a factor, and the study sets it for every variant too; give it once")
        found = preset_with(settings.get(PRESET, self.preset), fields)
        data = found.data
        if self.data:
            data = dataclasses.replace(data, source=self.data)
        if self.max_bytes is not None:
            data = dataclasses.replace(data, max_bytes=self.max_bytes)
        if self.text_field:
            data = dataclasses.replace(data, text_field=self.text_field)
        trainer = decode_spec(type(found.trainer), dataclasses.asdict(found.trainer) | dict(self.trainer), "trainer")
        if trainer.ranks.world > 1 and "micro_batch_size" not in self.trainer:
            size = fitting_micro_batch(trainer.batch_size, trainer.micro_batch_size, trainer.ranks)
            trainer = dataclasses.replace(trainer, micro_batch_size=size)
        return on_ranks(dataclasses.replace(found, data=data, trainer=trainer), trainer.ranks)


def read_study(path: Path) -> Study:
    """The study of a TOML file; ValueError names the file and what is wrong in it."""
    data = read_toml(path, "the study", "give a study file; there are some to copy in sweeps/")
    unknown = [key for key in data if key not in {f.name for f in dataclasses.fields(Study)}]
    if unknown:
        names = [f.name for f in dataclasses.fields(Study)]
        raise ValueError(f"{path}: {unknown[0]} is unknown; {nearest(unknown[0], names)}")
    try:
        return decode(Study, data, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def with_seeds(study: Study, n_seeds: int | None, precision: str, until: str, max_seeds: int | None) -> Study:
    """A study whose number of seeds is said otherwise than in its file; what is None or empty stays as it is there."""
    if not (n_seeds or precision or until):
        return dataclasses.replace(study, max_seeds=max_seeds or study.max_seeds)
    return decode(
        Study,
        dataclasses.asdict(study)
        | {"n_seeds": n_seeds, "precision": precision, "until": until, "max_seeds": max_seeds},
        "",
    )


def to_toml(study: Study) -> str:
    """The study as a file; what has the default value is left out."""
    import tomli_w

    written = {}
    for f in dataclasses.fields(Study):
        value = getattr(study, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value is not None and value != default:
            if isinstance(value, Tuning | Search):
                value = plain(value)
            written[f.name] = dict(value) if isinstance(value, Mapping) else value
    return tomli_w.dumps(written)


def unavailable(data: str, name: str) -> tuple[str, ...]:
    """Components of the recipe that a corpus other than the preset's own leaves off in every variant."""
    base = Study(question="", preset=name).load_preset()
    if not data or data == base.data.source:
        return ()
    tied = [c for c in COMPONENTS if c.tied_to_corpus and c.name in base.recipe]
    return tuple(c.name for c in tied if not (c.serves_corpus and c.serves_corpus(base.settings[c.name], data)))


def question(
    disable: Sequence[str], enable: Sequence[str], alternatives: Mapping[str, str], without: Sequence[str] = ()
) -> str:
    """What a comparison of the command line asks, in words; `without`: what is off in every variant."""

    def title(name: str) -> str:
        chosen = component(name)
        against = f" (against {alternatives[name]})" if name in alternatives else ""
        return f"{chosen.title}{against}"

    names = " and ".join(title(name) for name in disable or enable)
    recipe = f"the full recipe without {' and '.join(without)}" if without else "the full recipe"
    whole = recipe if disable else "the dense baseline"
    return f"What is {names} worth in {whole}?" if names else ""
