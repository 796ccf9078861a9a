"""The question as it was asked before the first run: what a study stated, with its hash and the time.

Whoever reads a report sees whether hypothesis, metric, margin, design, seeds or variants are still those that were
stated before anything was known (pre-registration).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ablate.runs.searching import without_password
from ablate.runs.study import Study
from ablate.spec.decoding import FORBID_UNKNOWN, data_id, encode

# Fields of a study that say how to read or name it, and change neither a run nor what is made of it.
STATED = ("question", "hypothesis", "primary_metric", "margin", "margin_nats", "confidence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What was asked, when, and the hash that names it. `document` is what the hash is of."""

    hash: str
    document: Mapping[str, Any]
    time_s: float | None = None  # since 1970, UTC, as the plan was first written; None before that

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def stamped(self) -> Asked:
        """With the present time, if it has none."""
        return self if self.time_s is not None else replace(self, time_s=round(time.time(), 3))

    @property
    def intact(self) -> bool:
        """Whether the hash is still that of the document."""
        return data_id(self.document) == self.hash


def ask(study: Study, resolved: Mapping[str, Any]) -> Asked:
    """The question that a study asks, not yet at any time. `resolved`: what its preset and its design make of it."""
    document = _document(study, resolved)
    return Asked(hash=data_id(document), document=document)


def differences(asked: Asked, study: Study, resolved: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of what a study says otherwise than it was asked, in the order of a study's fields."""
    before, now = asked.document, _document(study, resolved)
    return tuple(name for name in dict.fromkeys((*now, *before)) if before.get(name) != now.get(name))


def _document(study: Study, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of the study that is not at its default, the stated ones always, and what they resolve to."""
    fields = encode(study)
    for table in filter(None, (fields["search"], fields["tuning"])):
        table["storage"] = without_password(table["storage"])  # what is asked is kept, shown and handed on
    plain = {
        f.name: fields[f.name] for f in dataclasses.fields(study) if f.name in STATED or fields[f.name] != _default(f)
    }
    return plain | dict(resolved)


def _default(field: Any) -> Any:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return list(value) if isinstance(value, tuple) else value
