"""Nodes of the text slot: raw text and soft targets (off), a share of teacher-written text (on)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ablate.components.component import setting
from ablate.components.distill.text import held_out_texts, read_manifest, writing_flops_per_byte
from ablate.model.weights import read_weights
from ablate.spec.ranges import Count, NotNegative, Positive, Share, ShareAboveNone, checked
from ablate.spec.run import LoadModel, RunSpec, Spec

if TYPE_CHECKING:
    from torch import Tensor


@checked("text")
@dataclass(frozen=True, kw_only=True, slots=True)
class RawText:
    """The corpus as it is."""

    kind: Literal["raw"] = "raw"

    def datamodule(self, run: RunSpec, corpus: Any, load_model: LoadModel) -> Any:
        from ablate.data.batches import Batches

        return Batches(run, corpus)

    @property
    def wants_logits(self) -> bool:
        return False

    def loss(self, cross_entropy: Tensor, logits_BTC: Any, batch: Mapping[str, Any]) -> Tensor:
        return cross_entropy

    def charged_flops_per_token(self, bytes_per_token: float) -> float:
        return 0.0

    def facts(self) -> dict[str, Any]:
        return {}


@checked("text")
@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherText:
    """A share of the training sequences is the teacher's text; every other one is the raw variant's, in its place.

    `text` names a ready-made text or the folder of one; `text_hash` is the sha256 of its content, and `temperature`
    the one it was written at. `charge_teacher`: the teacher's FLOPs count against the variant's budget.
    """

    kind: Literal["teacher"] = "teacher"
    share: Share  # of the training sequences
    temperature: NotNegative
    text: str
    text_hash: str
    charge_teacher: bool = False

    def datamodule(self, run: RunSpec, corpus: Any, load_model: LoadModel) -> Any:
        from ablate.components.distill.batches import TeacherTextBatches

        return TeacherTextBatches(run, corpus, text=self.text, text_hash=self.text_hash, share=self.share)

    @property
    def wants_logits(self) -> bool:
        return False

    def loss(self, cross_entropy: Tensor, logits_BTC: Any, batch: Mapping[str, Any]) -> Tensor:
        return cross_entropy

    def charged_flops_per_token(self, bytes_per_token: float) -> float:
        """Teacher's FLOPs for each training token of the variant, tokens that the filters dropped included."""
        if not self.charge_teacher:
            return 0.0

        return self.share * bytes_per_token * writing_flops_per_byte(self.text)

    def facts(self) -> dict[str, Any]:

        manifest = read_manifest(self.text)
        written = f"{manifest.n_tokens:,} tokens at temperature {self.temperature}"
        return {
            "teacher_text": f"{self.share:.0%} of the sequences, from {written}",
            "teacher_writing_flops": manifest.writing_flops,
            "teacher_charged": self.charge_teacher,
        }


@checked("text")
@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherLogits:
    """Raw text with soft targets: `weight` of the main loss is the divergence from a teacher's distribution.

    `teacher` is the folder of a checkpoint, `teacher_hash` the sha256 of its weights. Both distributions are taken at
    `temperature`; of the teacher's the `n_soft_tokens` likeliest tokens are kept, the others as one.
    """

    kind: Literal["teacher-logits"] = "teacher-logits"
    teacher: str
    teacher_hash: str
    weight: ShareAboveNone  # of the main loss
    temperature: Positive
    n_soft_tokens: Count
    charge_teacher: bool = False

    def datamodule(self, run: RunSpec, corpus: Any, load_model: LoadModel) -> Any:
        from ablate.components.distill.batches import SoftTargetBatches

        return SoftTargetBatches(
            run,
            corpus,
            load_model,
            teacher=self.teacher,
            teacher_hash=self.teacher_hash,
            temperature=self.temperature,
            n_tokens=self.n_soft_tokens,
        )

    @property
    def wants_logits(self) -> bool:
        return True

    def loss(self, cross_entropy: Tensor, logits_BTC: Any, batch: Mapping[str, Any]) -> Tensor:
        from ablate.components.distill.batches import soft_target_loss

        soft = soft_target_loss(logits_BTC, batch, self.temperature)
        return (1 - self.weight) * cross_entropy + self.weight * soft

    def charged_flops_per_token(self, bytes_per_token: float) -> float:
        """The teacher reads every token once."""
        if not self.charge_teacher:
            return 0.0
        return read_weights(self.teacher).manifest.flops_per_token

    def facts(self) -> dict[str, Any]:
        return {"teacher": f"soft targets, weight {self.weight}", "teacher_charged": self.charge_teacher}


@checked("distill")
@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a preset says of distillation. `teacher`: the checkpoint of the alternative `logits`; none by default."""

    share: ShareAboveNone  # of the training sequences
    text: str
    temperature: NotNegative
    charge_teacher: bool = False
    teacher: str | None = None
    logits_weight: ShareAboveNone = 0.5
    logits_temperature: Positive = 1.0
    n_soft_tokens: Count = 64


def on(spec: Spec) -> Spec:
    settings: Settings = setting(spec, "distill")
    manifest = read_manifest(settings.text)
    if manifest.corpus_source != spec.data.source:
        raise ValueError(
            f"the teacher text {settings.text} continues documents of {manifest.corpus_source}, and this corpus is "
            f"{spec.data.source}; write one for it with `dsv3-ablate distill` and name it in distill.text, "
            "or leave distill off"
        )
    if manifest.temperature != settings.temperature:
        raise ValueError(
            f"distill.temperature is {settings.temperature}, but the teacher text {settings.text} was written at "
            f"{manifest.temperature}; write another with `dsv3-ablate distill`, or give that temperature"
        )
    node = TeacherText(
        share=settings.share,
        temperature=settings.temperature,
        text=settings.text,
        text_hash=manifest.text_hash,
        charge_teacher=settings.charge_teacher,
    )
    return replace(spec, data=replace(spec.data, text=node))


def off(spec: Spec, alternative: str) -> Spec:
    text = _soft_targets(spec) if alternative == "logits" else RawText()
    return replace(spec, data=replace(spec.data, text=text))


def _soft_targets(spec: Spec) -> TeacherLogits:
    settings: Settings = setting(spec, "distill")
    if settings.teacher is None:
        raise ValueError(
            "distill=logits needs a teacher model, and distill.teacher names none; give it the folder of a run's "
            "weights (`dsv3-ablate distill` trains a teacher), or choose another alternative"
        )
    weights = read_weights(settings.teacher)
    vocab_size = weights.manifest.vocab_size
    if vocab_size != spec.model.vocab_size:
        raise ValueError(
            f"the teacher {settings.teacher} has a vocabulary of {vocab_size} tokens and the model one of "
            f"{spec.model.vocab_size}; soft targets need the same tokens, so train a teacher with this preset"
        )
    return TeacherLogits(
        teacher=settings.teacher,
        teacher_hash=weights.hash,
        weight=settings.logits_weight,
        temperature=settings.logits_temperature,
        n_soft_tokens=settings.n_soft_tokens,
        charge_teacher=settings.charge_teacher,
    )


def further_held_out(settings: Settings) -> list[str]:
    """The teacher's held-out text, on which every variant of a study is evaluated beside the corpus's own."""
    return held_out_texts(settings.text)
