"""Distillation: a share of the training text written by a teacher, against the raw corpus."""

from ablate.components.component import Alternative, Component
from ablate.components.distill.spec import (
    RawText,
    Settings,
    TeacherLogits,
    TeacherText,
    further_held_out,
    off,
    on,
    serves_corpus,
)

COMPONENT = Component(
    name="distill",
    title="distillation from a teacher's text",
    source="DeepSeek-V3, arXiv:2412.19437, section 5.4.1; sequence-level distillation, arXiv:1606.07947",
    alternatives=(
        Alternative(name="raw", summary="the corpus as it is"),
        Alternative(name="self-taught", summary="text by a teacher that has seen nothing but this corpus"),
        Alternative(name="logits", summary="raw text with a teacher model's distribution as soft targets"),
    ),
    on=on,
    off=off,
    owns=("text",),
    nodes={"text": (RawText, TeacherText, TeacherLogits)},
    settings=Settings,
    affects=("loss",),
    tied_to_corpus=True,
    serves_corpus=serves_corpus,
    held_out_texts=further_held_out,
)
