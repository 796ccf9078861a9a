"""The answer as one JSON document: the numbers as they are, each under its kind of evidence.

Keys: `format`, `format_version`; `preset`, `cluster`; `answer` (sentences); `cost` (the identity of GPU hours and the
path of FLOPs per token); `changes`, each with `exact` (figures with and without), `simulated` (factors of tokens a
second), `measured` (every study: natural logarithms of the cost without over with, nats), `trend`, `published` (every
finding, which of them the rule counts, and the agreement), `equality`; `step`, `studies`, `calibrations`, `together`,
`reach`, `rule`. Folders are as seen from the document's own. A number that there is not is null.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablate.evidence.changes.content import AnswerContent, Change
from ablate.evidence.changes.measured import Measured
from ablate.evidence.changes.reported import rule
from ablate.evidence.changes.sentences import sentences

FORMAT, FORMAT_VERSION = "dsv3-ablate answer", 1


def document(content: AnswerContent, out: Path) -> dict[str, Any]:
    """Plain data for a document that lies in `out`."""
    found = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "preset": content.preset,
        "cluster": content.speeds.cluster,
        "answer": list(sentences(content)),
        "cost": content.cost,
        "changes": [_change(change) for change in content.changes],
        "speed_together": content.speeds.together,
        "step": content.speeds.step,
        "why_not_simulated": content.speeds.reason,
        "studies": content.studies,
        "calibrations": content.calibrations,
        "together": [{**_plain(whole), "study": whole.study.folder} for whole in content.together],
        "reach": content.reach,
        "rule": rule(),
    }
    plain: dict[str, Any] = _encode(found, out)
    return plain


def _change(change: Change) -> dict[str, Any]:
    reported = change.reported
    return {
        "name": change.name,
        "title": change.component.title,
        "off": change.component.default_alternative,
        "loss_neutral": change.neutral,
        "exact": {
            "figures": {f.name: {**_plain(f), "multiple": f.multiple} for f in change.exact.figures},
            "further": {f.name: {**_plain(f), "multiple": f.multiple} for f in change.exact.further},
            "reason": change.exact.reason,
        },
        "simulated": change.simulated,
        "measured": [_measured(each) for each in change.measured],
        "shown": [_place(each) for each in change.sizes],
        "trend": change.trend,
        "published": {
            "agreement": reported.agreement,
            "why": reported.why,
            "counted": [
                {"claim": c.finding.claim, "source": c.source.title, "direction": c.direction} for c in reported.counted
            ],
            "findings": [
                {**_plain(finding), "size": finding.size, "source": source.title, "hand": source.hand}
                for source, finding in reported.findings
            ],
        },
        "equality": change.equality,
    }


def _measured(found: Measured) -> dict[str, Any]:
    return {**_plain(found), "study": found.study.folder}


def _place(found: Measured) -> dict[str, Any]:
    return {"study": found.study.folder, "parameters": found.parameters, "flops": found.flops}


def _plain(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _encode(value: Any, out: Path) -> Any:
    """Plain data: folders as seen from `out`, and null for what is no finite number."""
    if isinstance(value, Path):
        return Path(os.path.relpath(value, out)).as_posix()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value):
        return _encode(_plain(value), out)
    if isinstance(value, Mapping):
        return {str(key): _encode(each, out) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(each, out) for each in value]
    return value
