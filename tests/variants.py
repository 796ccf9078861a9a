"""Variants of the registry, and models of them, for tests that every component must pass."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from teacher_checkpoint import write_weights
from torch import Tensor

from ablate.components.component import ON, Component
from ablate.components.distill.text import folder_of
from ablate.components.registry import COMPONENTS, NAMES
from ablate.components.variants import Variant, on_ranks
from ablate.model.loss import training_loss
from ablate.model.transformer import Transformer
from ablate.presets import preset, preset_file
from ablate.spec.model import ModelSpec
from ablate.spec.ranks import Ranks
from ablate.spec.run import Preset, Spec


def _distinct_heads(nano: Preset) -> Preset:
    """With four heads and two key-value heads every alternative of attention is another model."""
    attention: Any = nano.model.attention
    return replace(nano, model=replace(nano.model, attention=replace(attention, n_heads=4, n_kv_heads=2, head_dim=8)))


def _with_teacher(nano: Preset) -> Preset:
    """With a checkpoint to learn from `distill=logits` means something, and `self-taught` with a text of its own."""
    folder = tempfile.TemporaryDirectory(prefix="teacher-")
    atexit.register(folder.cleanup)
    weights, text = write_weights(Path(folder.name) / "weights"), Path(folder.name) / "text"
    shutil.copytree(folder_of("stdlib-self-taught"), text)
    distill = replace(nano.settings["distill"], teacher=str(weights), self_taught=str(text))
    return replace(nano, settings={**nano.settings, "distill": distill})


def dependants(name: str) -> tuple[str, ...]:
    """Components that need this one, directly or through others."""
    found: list[str] = []
    for candidate in COMPONENTS:
        if name in candidate.requires or any(r in found for r in candidate.requires):
            found.append(candidate.name)
    return tuple(found)


# The sizes of every model here. Who adds a component in a package of his own names a preset file that has its section.
_SIZES = os.environ.get("CONTRACT_PRESET")
# On two pipeline and two expert ranks, for what means nothing on one.
NANO = on_ranks(
    _with_teacher(_distinct_heads(preset_file(Path(_SIZES)) if _SIZES else preset("nano"))),
    Ranks(pipeline=2, data=2, expert=2),
)
FULL = Variant.full(NANO)


def levels(chosen: Component) -> tuple[str, ...]:
    return (ON, *(alternative.name for alternative in chosen.alternatives))


def means_something(variant: Variant) -> bool:
    """On only beside its prerequisites; without them no alternative differs from another, so the default stands."""
    return all(level == c.default_alternative for c, level in variant.choices if variant.missing(c))


# Schedules and transports of ranks have slots of their own, so their levels are tried beside the ends alone.
OF_RANKS = tuple(c for c in COMPONENTS if c.axis)


@cache
def cells() -> tuple[Variant, ...]:
    """On or the default alternative for every component, where that means something."""
    return _feasible([(ON, c.default_alternative) for c in COMPONENTS])


@cache
def every_variant() -> tuple[Variant, ...]:
    """All levels of all components, where that means something."""
    found = _feasible([(c.default_alternative,) if c in OF_RANKS else levels(c) for c in COMPONENTS])
    ends = [end | {c.name: level} for end in (Variant.none(), FULL) for c in OF_RANKS for level in levels(c)]
    return tuple(dict.fromkeys((*found, *filter(means_something, ends))))


def _feasible(choices: list[tuple[str, ...]]) -> tuple[Variant, ...]:
    variants = (Variant.of(dict(zip(NAMES, chosen, strict=True))) for chosen in itertools.product(*choices))
    return tuple(v for v in variants if means_something(v))


@cache
def neighbours() -> tuple[Variant, ...]:
    """The cells, and every other alternative beside everything else on and beside everything else off."""
    found = list(cells())
    for chosen, alternative in ((c, a.name) for c in COMPONENTS for a in c.alternatives[1:]):
        for rest in cells():
            others = [rest[c.name] for c in COMPONENTS if c.name != chosen.name and c.name not in chosen.requires]
            variant = rest | {chosen.name: alternative}
            if len(set(map(ON.__eq__, others))) == 1 and variant not in found and means_something(variant):
                found.append(variant)
    return tuple(found)


@cache
def spec_of(variant: Variant) -> Spec:
    return variant.resolve(NANO)


def name_of(variant: Variant) -> str:
    return variant.describe(FULL).replace(" ", "")


@cache
def models(kind: str = "neighbours") -> dict[str, ModelSpec]:
    """Distinct model specifications by the name of the first variant that has each."""
    variants = {"neighbours": neighbours, "every": every_variant, "cells": cells}[kind]()
    found: dict[ModelSpec, str] = {}
    for variant in variants:
        found.setdefault(on_torch(spec_of(variant).model), name_of(variant))
    return {name: model for model, name in found.items()}


def on_torch(model: ModelSpec) -> ModelSpec:
    """On torch's own operations, which know float64 and can be counted."""
    return model.portable()


def with_reference(model: ModelSpec) -> ModelSpec:
    """The same model on plain PyTorch operations, which can be counted and run in float64."""
    return model.with_backends(dict.fromkeys(model.backends, "reference"))


def with_ordinary_products(model: ModelSpec) -> ModelSpec:
    return on_torch(replace(model, linear=NANO.model.linear))


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, NANO.model.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def loss_of(model: Transformer, window_BT1: Tensor) -> Tensor:
    """Everything that a training step on raw text adds up, at the run's start."""
    return training_loss(model, NANO.data.text, {"window_BT1": window_BT1}, decaying=False).total
