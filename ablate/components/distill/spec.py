"""Nodes of the text slot: what a run is trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ablate.spec import FORBID_UNKNOWN, RunSpec, Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class RawText:
    """The corpus as it is."""

    kind: Literal["raw"] = "raw"

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def datamodule(self, run: RunSpec, corpus: Any) -> Any:
        from ablate.data.batches import Batches

        return Batches(run, corpus)


def off(spec: Spec, alternative: str) -> Spec:
    return replace(spec, data=replace(spec.data, text=RawText()))
