"""Published ablations and costs as one typed table, and how `evidence` shows it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any, Literal

from ablate.components.registry import NAMES
from ablate.errors import nearest
from ablate.quantities import number, percent, plural, scaled, short, signed
from ablate.spec.decoding import decode
from ablate.spec.ranges import Count, NotNegative, Positive, checked

Hand = Literal["primary", "conversion", "second"]
EffectKind = Literal["difference", "log ratio", "ratio"]
HANDS = {"primary": "primary", "conversion": "paper, converted", "second": "second hand"}
OTHER_COMPONENTS = ("dualpipe", "alltoall")  # of the machinery, whose evidence is of speed


@checked("finding")
@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One published number. `component` is empty for what concerns the whole model.

    Either `off` and `on`, the metric without and with the change, or `value`, the effect or figure itself, or neither
    where something is said in words only. against: the alternative that off was, where it is not the default.
    """

    component: str
    claim: str
    metric: str
    scale: str
    at: str  # the place in the source
    against: str = ""
    effect: EffectKind = "difference"
    higher_is_better: bool = False
    off: float | None = None
    on: float | None = None
    value: float | None = None
    stated: float | None = None  # the effect as stated, which `size` must round to
    rounding: Positive | None = None  # how far both may be apart; default: half of the last digit stated
    standard_error: NotNegative | None = None
    bound: NotNegative | None = None  # what the authors say the size stays below
    tokens: Positive | None = None
    runs: Count = 1  # of each arm; nobody of DeepSeek reports more than one
    asks_what_we_ask: bool = False  # on against the same off as our switch, in loss at equal tokens or fewer FLOPs

    def __post_init__(self) -> None:
        if (self.off is None) != (self.on is None):
            raise ValueError(f"finding {self.claim!r} has one of off and on; give both or neither")
        if self.off is not None and self.value is not None:
            raise ValueError(f"finding {self.claim!r} has off, on and value; give the pair or the value")

    @property
    def size(self) -> float | None:
        """The effect: on - off, on / off or ln(on / off); or the value."""
        if self.off is None or self.on is None:
            return self.value
        if self.effect == "difference":
            return self.on - self.off
        return self.on / self.off if self.effect == "ratio" else math.log(self.on / self.off)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, normal, where a standard error is known."""
        if self.standard_error is None or self.size is None:
            return None
        return self.size - 1.96 * self.standard_error, self.size + 1.96 * self.standard_error


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where findings come from, and whether its text was read itself."""

    title: str
    hand: Hand
    findings: tuple[Finding, ...]


@cache
def sources() -> Mapping[str, Source]:
    """The table by source; ValueError where the file is not as it must be."""
    text = (resources.files(__package__) / "published.toml").read_text(encoding="utf-8")
    return {name: decode(Source, data, name) for name, data in tomllib.loads(text)["sources"].items()}


def findings(component: str | None = None) -> list[tuple[Source, Finding]]:
    """All findings, or those of a component; ValueError for a component there is not."""
    known = (*NAMES, *(name for name in OTHER_COMPONENTS if name not in NAMES))
    if component is not None and component not in known:
        raise ValueError(f"unknown component {component!r}; {nearest(component, known)}")
    everything = [(source, finding) for source in sources().values() for finding in source.findings]
    ordered = sorted(everything, key=lambda pair: (*known, "").index(pair[1].component))
    return [pair for pair in ordered if component in (None, pair[1].component)]


def evidence_document(component: str | None) -> tuple[dict[str, Any], str]:
    """The table as plain data, and as text."""
    found = findings(component)
    rows = [_row(source, finding) for source, finding in found]
    return {"evidence": "published", "findings": rows}, "\n".join(_lines(found))


def _row(source: Source, finding: Finding) -> dict[str, Any]:
    own = {f.name: getattr(finding, f.name) for f in fields(finding) if f.name not in ("rounding",)}
    interval = finding.interval
    return own | {
        "size": finding.size,
        "low": interval and interval[0],
        "high": interval and interval[1],
        "source": source.title,
        "hand": source.hand,
    }


def _lines(found: Iterable[tuple[Source, Finding]]) -> Iterable[str]:
    component = None
    for source, finding in found:
        if finding.component != component:
            yield from ([] if component is None else [""])
            component = finding.component
            yield component or "the whole model"
        yield f"  {finding.claim}{f' (against {finding.against})' if finding.against else ''}"
        runs = f" {plural(finding.runs, 'run')} an arm;" if finding.off is not None or finding.runs > 1 else ""
        tokens = f", {scaled(finding.tokens)} tokens" if finding.tokens else ""
        yield (
            f"    {said(finding)}; {finding.scale}{tokens};{runs} {source.title}, {finding.at}; " + HANDS[source.hand]
        )
    yield ""
    yield "Effects are on against off. Published figures are not comparable with each other, nor with this program's."


def said(finding: Finding) -> str:
    """What was found, in words and numbers."""
    size = finding.size
    if size is None:
        return finding.metric
    text = f"{finding.metric} "
    if finding.off is None or finding.on is None:
        text += signed(size) if finding.standard_error is not None else short(size)
    elif finding.effect == "ratio":
        text += f"{short(finding.off)} to {short(finding.on)}, {number(size, 3)}×"
    else:
        text += f"{short(finding.off)} to {short(finding.on)}, {signed(size, 4)}"
        text += " nats" if finding.effect == "log ratio" else ""
    if finding.standard_error is not None:
        text += f" ± {short(finding.standard_error)}"
    if finding.bound is not None:
        text += f", said to stay below {percent(finding.bound)}"
    return text + (", higher is better" if finding.higher_is_better else "")
