"""Nodes of the text slot: raw text and soft targets (off), a share of teacher-written text (on)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ablate.components.component import setting
from ablate.components.distill.text import (
    Manifest,
    check_held_out,
    held_out_texts,
    read_manifest,
    text_for,
    writing_flops_per_byte,
)
from ablate.model.weights import read_weights
from ablate.quantities import scaled
from ablate.spec.ranges import Count, NotNegative, Positive, Share, ShareAboveNone, checked
from ablate.spec.run import LoadModel, RunSpec, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from ablate.data.corpus import Corpus


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
            "teacher_has_seen": _has_seen(manifest),
            "teacher_writing_flops": manifest.writing_flops,
            "teacher_charged": self.charge_teacher,
        }


def _has_seen(manifest: Manifest) -> str:
    """What a teacher had learnt from that the model does not read, and what that took."""
    teacher = manifest.teacher
    name = teacher.get("model") or teacher.get("name") or teacher.get("kind", "unknown")
    flops, tokens = teacher.get("training_flops"), teacher.get("training_tokens")
    if flops is None or tokens is None:
        return f"by {name}, which had seen text that is not known here, in a training whose FLOPs are not known"
    seen = "this corpus's training text alone" if teacher.get("kind") == "checkpoint" else "text from elsewhere"
    return f"by {name}, trained on {scaled(tokens)} tokens of {seen} with {scaled(flops, 'FLOP')}, charged to no run"


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
    text: str  # where the corpus is another one, the text that was written for that stands in
    temperature: NotNegative | None = None  # at which it was written; None: at any
    self_taught: str = ""  # the text of the alternative of that name
    charge_teacher: bool = False
    teacher: str | None = None
    logits_weight: ShareAboveNone = 0.5
    logits_temperature: Positive = 1.0
    n_soft_tokens: Count = 64


def on(spec: Spec) -> Spec:
    settings: Settings = setting(spec, "distill")
    text = text_for(settings.text, spec.data.source)
    written_at = read_manifest(text).temperature
    if settings.temperature is not None and text == settings.text and settings.temperature != written_at:
        raise ValueError(
            f"distill.temperature is {settings.temperature}, but the teacher text {text} was written at "
            f"{written_at}; write another with `dsv3-ablate distill`, or give that temperature"
        )
    return _with_text(spec, settings, text)


def off(spec: Spec, alternative: str) -> Spec:
    if alternative == "self-taught":
        return _self_taught(spec)
    text = _soft_targets(spec) if alternative == "logits" else RawText()
    return replace(spec, data=replace(spec.data, text=text))


def _with_text(spec: Spec, settings: Settings, text: str) -> Spec:
    manifest = read_manifest(text)
    node = TeacherText(
        share=settings.share,
        temperature=manifest.temperature,
        text=text,
        text_hash=manifest.text_hash,
        charge_teacher=settings.charge_teacher,
    )
    return replace(spec, data=replace(spec.data, text=node))


def _self_taught(spec: Spec) -> Spec:
    settings: Settings = setting(spec, "distill")
    if not settings.self_taught or read_manifest(settings.self_taught).corpus_source != spec.data.source:
        raise ValueError(
            "distill=self-taught needs a text by a teacher that was trained on this corpus alone, and "
            f"distill.self_taught names {settings.self_taught or 'none'}, which is not; write one with "
            f"`dsv3-ablate distill --data {spec.data.source} --out DIR` and name it there, or choose another "
            "alternative"
        )
    return _with_text(spec, settings, settings.self_taught)


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


def serves_corpus(settings: Settings, source: str) -> bool:
    """Whether there is a text for a source of documents."""
    try:
        text_for(settings.text, source)
    except ValueError:
        return False
    return True


def further_held_out(spec: Spec, corpus: Corpus) -> list[str]:
    """The teacher's held-out text, on which every variant of a study is evaluated beside the corpus's own.

    ValueError if it may overlap with that.
    """
    settings: Settings = setting(spec, "distill")
    text = text_for(settings.text, spec.data.source)
    check_held_out(text, corpus)
    return held_out_texts(text)
