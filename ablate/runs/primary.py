"""What a study may be asked about: the closed list of primary metrics, each of which a report can compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Primary = Literal["loss", "compute", "time", "tokens_per_s", "memory", "kv_bytes", "max_violation", "draft_acceptance"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrimaryMetric:
    """One metric: how it is compared, and which way is better.

    `scale`: "difference" (with minus without, in the metric's unit) or "ratio" (with over without, whose margin is a
    share: 0.02 is two per cent either way).
    """

    title: str
    unit: str
    lower_is_better: bool
    scale: Literal["difference", "ratio"]
    source: Literal["record", "closed form", "gain"]
    key: str  # of a record's metrics, of a variant's cost, or of a gain
    margin: float  # where a study gives none


PRIMARY: Mapping[Primary, PrimaryMetric] = {
    "loss": PrimaryMetric(
        title="held-out loss", unit="nats per token", lower_is_better=True, scale="difference",
        source="record", key="nats_per_token", margin=0.005,
    ),
    "compute": PrimaryMetric(
        title="training FLOPs for the same loss", unit="", lower_is_better=True, scale="ratio",
        source="gain", key="flops", margin=0.02,
    ),
    "time": PrimaryMetric(
        title="training time for the same loss", unit="", lower_is_better=True, scale="ratio",
        source="gain", key="seconds", margin=0.02,
    ),
    "tokens_per_s": PrimaryMetric(
        title="tokens per second in training", unit="tokens/s", lower_is_better=False, scale="ratio",
        source="record", key="tokens_per_s", margin=0.02,
    ),
    "memory": PrimaryMetric(
        title="peak memory in training", unit="bytes", lower_is_better=True, scale="ratio",
        source="record", key="peak_memory_bytes", margin=0.02,
    ),
    "kv_bytes": PrimaryMetric(
        title="KV cache per token", unit="bytes", lower_is_better=True, scale="ratio",
        source="closed form", key="kv_cache_bytes_per_token", margin=0.0,
    ),
    "max_violation": PrimaryMetric(
        title="largest load over mean, minus 1 (MaxVio)", unit="", lower_is_better=True, scale="difference",
        source="record", key="max_violation", margin=0.05,
    ),
    "draft_acceptance": PrimaryMetric(
        title="share of accepted drafts", unit="", lower_is_better=False, scale="difference",
        source="record", key="draft_acceptance", margin=0.01,
    ),
}  # fmt: skip
