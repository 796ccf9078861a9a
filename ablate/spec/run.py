"""A run, fully resolved; and what surrounds it: text, trainer, preset, and the variant that `on` and `off` map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Protocol

from ablate.spec.decoding import UNWRITTEN_DEFAULT, Slot
from ablate.spec.machine import Machine
from ablate.spec.model import ModelSpec
from ablate.spec.nodes import OptimizerNode, PipelineNode, TransportNode
from ablate.spec.ranges import Count, CountOrNone, NotNegative, Range, Share, ShareBelowAll, checked
from ablate.spec.ranks import Ranks

SCHEMA_VERSION = 4

# AdamW moves every weight by about the learning rate in each step, so beyond this nothing is left of a model.
LEARNING_RATE = Range(above=0, at_most=100)
STEPS = Range(at_least=1, at_most=1_000_000_000, whole=True, instead="a budget of so many steps is a slip")

LoadModel = Callable[[str], Any]  # folder of a finished run's weights -> its model, in evaluation mode


class TextNode(Protocol):
    """Where training text comes from."""

    @property
    def kind(self) -> str: ...

    def datamodule(self, run: RunSpec, corpus: Any, load_model: LoadModel) -> Any:
        """The LightningDataModule of a run on a corpus; `load_model` is for nodes that train on a model's outputs."""

    @property
    def wants_logits(self) -> bool:
        """Whether its loss reads the main head's logits, which a head may otherwise never have whole."""

    def loss(self, cross_entropy: Any, logits_BTC: Any, batch: Any) -> Any:
        """The main head's term of the training loss, from its next-token cross-entropy.

        `logits_BTC`: the main head's, float32, where the node wants them; else None.
        """

    def charged_flops_per_token(self, bytes_per_token: float) -> float:
        """FLOPs spent elsewhere (by a teacher) for each training token, as far as they are charged."""

    def facts(self) -> dict[str, Any]:
        """What a report must say of text that is not the corpus's own; empty for the corpus."""


@checked("data")
@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """The corpus, and what of it is trained on."""

    source: str  # "stdlib", a path, or "hf:NAME"
    text: Annotated[TextNode, Slot("text")]
    max_bytes: Count | None = None
    text_field: str = ""  # of rows; empty: "text", or a list of messages


@checked("control")
@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """What calibration does to a run: a switch without effect, FLOPs without use, targets that are not learned."""

    placebo: bool = False
    extra_flops_share: NotNegative = 0.0  # of the model's own training FLOPs
    masked_target_share: ShareBelowAll = 0.0  # of the main head's targets


@checked("trainer")
@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerSpec:
    """Optimisation and evaluation: equal for all variants of a study but for the learning rate, if it is tuned."""

    sequence_length: Count
    batch_size: Count  # sequences per optimizer step
    micro_batch_size: Count  # sequences per forward pass; divides batch_size
    learning_rate: Annotated[float, LEARNING_RATE]
    warmup_share: Share  # of the steps of a study's shortest run: every run of the study warms up for as many
    decay_share: Share  # of the steps, at the end, 1 - sqrt
    optimizer: Annotated[OptimizerNode, Slot("optimizer")]
    gradient_clip: NotNegative  # largest norm of a step's gradient; 0: any
    dtype: Literal["float32", "bfloat16"]
    n_evaluations: Count  # points of the held-out curve, the last one at the end
    n_held_out_windows: Count  # of sequence_length tokens, spread over the held-out text: judged at the end
    n_curve_windows: Count = 64  # of those: judged at the points before the end
    branches: tuple[float, ...] = ()  # shares of the budget at which the trunk is also decayed to a finished model
    control: Control = Control()
    ranks: Ranks = field(default=Ranks(), metadata=UNWRITTEN_DEFAULT)
    pipeline: Annotated[PipelineNode | None, Slot("pipeline")] = field(default=None, metadata=UNWRITTEN_DEFAULT)
    # Between expert ranks, where there are any.
    transport: Annotated[TransportNode | None, Slot("transport")] = field(default=None, metadata=UNWRITTEN_DEFAULT)
    # Activations: "full" keeps the input of each block alone, and computes the block again in the backward pass.
    recompute: Literal["none", "full"] = field(default="none", metadata=UNWRITTEN_DEFAULT)
    # 1: of ranks that hold the same parameter one keeps the optimizer's state of it, and steps it for all (ZeRO-1).
    zero_stage: Literal[0, 1] = field(default=0, metadata=UNWRITTEN_DEFAULT)

    def __post_init__(self) -> None:
        if self.warmup_share + self.decay_share > 1:
            raise ValueError(
                f"trainer.warmup_share is {self.warmup_share} and trainer.decay_share {self.decay_share}; "
                "they are shares of the steps and sum to at most 1"
            )
        for before, share in zip((0.0, *self.branches), self.branches, strict=False):
            if not before < share < 1:
                raise ValueError(
                    f"trainer.branches is {list(self.branches)}; they are increasing shares of the budget, between 0 "
                    "and 1"
                )
            if share * (1 - self.decay_share) < self.warmup_share:
                raise ValueError(
                    f"trainer.branches has {share}, whose decay would begin at {share * (1 - self.decay_share):.3g} of "
                    f"the run, before the warm-up ends at {self.warmup_share}; leave it out or warm up for less"
                )

    def check_states(self) -> None:
        """ValueError where the optimizer's states are to be divided, and there is nobody to divide them with."""
        if self.zero_stage and self.ranks.world == 1:
            raise ValueError(
                f"trainer.zero_stage is {self.zero_stage}, and one process has nobody to divide the optimizer's states "
                "with; give ranks, as in --ranks data=2, or zero_stage 0"
            )

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    def warmup_steps(self, n_steps: int) -> int:
        """Optimizer steps of the warm-up, where the shortest of the runs that are compared has `n_steps`."""
        return round(self.warmup_share * n_steps)

    @property
    def n_micro_batches(self) -> int:
        """Forward passes of an optimizer step, over all data ranks."""
        return self.batch_size // self.micro_batch_size

    @property
    def n_rounds(self) -> int:
        """Forward passes of a rank in an optimizer step; in the last one some ranks may have no tokens."""
        return -(-self.n_micro_batches // self.ranks.data)


@checked("preset")
@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Sizes that all variants share, and each component's own; `settings` holds the node a component turns on."""

    name: str
    title: str
    model: ModelSpec
    data: DataSpec
    trainer: TrainerSpec
    n_tokens: Count  # default budget of the full variant
    n_seeds: Count
    recipe: tuple[str, ...] = ()  # the components that are on in the full variant
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """What `on` and `off` map to itself: one variant of a preset."""

    preset: Preset
    model: ModelSpec
    data: DataSpec
    trainer: TrainerSpec

    def for_machine(self, machine: Machine) -> Spec:
        """The same variant with the backends that run it on a machine."""
        return replace(self, model=self.model.for_machine(machine, self.trainer.dtype))

    def run(self, *, corpus_hash: str, seed: int, n_steps: int, n_warmup_steps: int | None = None) -> RunSpec:
        """One run of the variant. `n_warmup_steps`: as in all runs that it is compared with; None: its own share."""
        return RunSpec(
            model=self.model,
            text=self.data.text,
            trainer=self.trainer,
            corpus_hash=corpus_hash,
            seed=seed,
            n_steps=n_steps,
            n_warmup_steps=self.trainer.warmup_steps(n_steps) if n_warmup_steps is None else n_warmup_steps,
        )


@checked("run")
@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """One run, fully resolved: every number that its result depends on. Its hash is the run's name."""

    model: ModelSpec
    text: Annotated[TextNode, Slot("text")]
    trainer: TrainerSpec
    corpus_hash: str
    seed: CountOrNone
    n_steps: Annotated[int, STEPS]
    n_warmup_steps: CountOrNone  # equal in all runs of a study, or longer ones would also have warmed up for longer
    schema_version: Count = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.model.residual_dtype != "float32" and self.trainer.ranks.pipeline > 1:
            raise ValueError(
                f"model.residual_dtype is {self.model.residual_dtype} and there are {self.trainer.ranks.pipeline} "
                "pipeline ranks, which hand on float32; leave it out, or train on one pipeline rank"
            )

    @property
    def n_tokens(self) -> int:
        return self.n_steps * self.trainer.tokens_per_step

    @property
    def decay_start(self) -> int:
        """The first step of the decay: up to there a run and any longer one are the same."""
        return self.n_steps - round(self.trainer.decay_share * self.n_steps)

    @property
    def branch_runs(self) -> tuple[RunSpec, ...]:
        """The shorter runs that leave this one's trunk where their own decay begins (WSD, arXiv:2405.18392).

        Each ends as a finished model at its share of the steps. Their warm-up is the trunk's.
        """
        trainer = replace(self.trainer, branches=(), n_evaluations=1)
        lengths = dict.fromkeys(round(share * self.n_steps) for share in self.trainer.branches)
        shorter = (replace(self, trainer=trainer, n_steps=n) for n in lengths if n)
        return tuple(run for run in shorter if 0 < run.decay_start < run.n_steps < self.n_steps)

    @property
    def n_branch_steps(self) -> int:
        """Optimizer steps of all branches, which come on top of the trunk's."""
        return sum(branch.n_steps - branch.decay_start for branch in self.branch_runs)
