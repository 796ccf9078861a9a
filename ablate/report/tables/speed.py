"""Tables of speed, memory and arithmetic."""

from __future__ import annotations

import math

from ablate.attribution.study.compare import SPEED, StudyResult, VariantResult
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT, Effect
from ablate.quantities import NONE, between, memory, number, scaled, times, whole
from ablate.report.cleaning import clean
from ablate.report.names import confidence, label
from ablate.report.tables.table import Columns, Table, make, text

SPEED_VERDICTS = {GAIN: "faster", HARM: "slower", NO_EFFECT: "equal within 2 %"}


def speed(result: StudyResult) -> Table:
    """Speed, memory and arithmetic of every variant."""
    columns: Columns = [text("Variant"), "Tokens/s, median", "Range over seeds", "ms/step", text("Evidence"),
                        "Training FLOP/token", "Peak memory", "KV cache/token"]  # fmt: skip
    rows = []
    for v in result.variants:
        tokens = v.metrics.get(SPEED)
        rows.append([
            v.name,
            whole(tokens.median if tokens else None),
            between(tokens.minimum, tokens.maximum, 0) if tokens else NONE,
            number(1000 * v.metrics["step_s"].median if "step_s" in v.metrics else None, 1),
            " and ".join(v.evidence.get("speed", ())) or NONE,
            scaled(v.planned.cost.get("training_flops_per_token"), "FLOP"),
            peak_memory(v),
            kv_bytes(v),
        ])  # fmt: skip
    return make("Speed, memory and arithmetic", columns, rows)


def peak_memory(v: VariantResult) -> str:
    """Median of the peaks of the variant's runs."""
    return memory(v.metrics["peak_memory_bytes"].median if "peak_memory_bytes" in v.metrics else None)


def kv_bytes(v: VariantResult) -> str:
    """What the KV cache holds for each token."""
    found = v.planned.cost.get("kv_cache_bytes_per_token")
    return NONE if found is None else f"{whole(found)} B"


def speed_ratios(result: StudyResult) -> Table:
    """Speed with over speed without; where there is none, the note says why."""
    columns: Columns = [text("Component"), text("Verdict"), "Tokens/s, with over without",
                        f"{confidence(result)} interval", text("Evidence")]  # fmt: skip
    rows = [
        [label(c), _verdict(c.speed), *ratio(c.speed), " and ".join(c.speed_evidence) or NONE]
        for c in result.comparisons
    ]
    why = "; ".join(f"{c.name}: {c.speed_reason}" for c in result.comparisons if c.speed_reason)
    return make("Speed with over speed without", columns, rows, clean(why))


def _verdict(effect: Effect | None) -> str:
    return NONE if effect is None else SPEED_VERDICTS.get(effect.verdict, effect.verdict)


def ratio(effect: Effect | None) -> tuple[str, str]:
    """Speed with over without, and its interval, as texts."""
    estimate, low, high = ratios(effect)
    return times(estimate), between(low, high, 3)


def ratios(effect: Effect | None) -> tuple[float | None, float | None, float | None]:
    """Estimate, low and high of an effect on the logarithm of speed, as ratios."""
    ends = (effect.estimate, effect.low, effect.high) if effect else (None, None, None)
    estimate, low, high = (None if end is None else math.exp(end) for end in ends)
    return estimate, low, high
