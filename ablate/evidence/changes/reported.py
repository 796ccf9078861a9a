"""What papers report of a change, and whether this program's own runs agree, by a rule that is stated.

Only findings that ask what our switch asks are counted (`asks_what_we_ask` in published.toml): on against the same off,
judged by language-model loss at equal tokens, or at fewer FLOPs. They are set against the saving in tokens measured
here at the largest size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.evidence.changes.measured import COST_MARGIN, PERHAPS_GAIN, PERHAPS_HARM, Measured
from ablate.evidence.published import Finding, Source, findings

Direction = Literal["gain", "harm", "none"]
Agreement = Literal["agrees", "disagrees", "cannot tell"]
AGREES: Agreement = "agrees"
DISAGREES: Agreement = "disagrees"
CANNOT_TELL: Agreement = "cannot tell"
MINE: Mapping[str, Direction] = {
    GAIN: "gain", PERHAPS_GAIN: "gain", HARM: "harm", PERHAPS_HARM: "harm", NO_EFFECT: "none",
}  # fmt: skip
NATS_MARGIN = 0.005  # of a loss of which only the difference is published
NOISE_CLAIM = "what two similar models of tables 4 and 5 differ by without a named change"
RULE = (
    "A published difference counts as a gain or a harm where it is larger, as a share of the loss, than what two "
    "similar models of DeepSeek-V3's own tables differ by without a named change ({noise}); where its interval, if it "
    "has one, excludes zero; where only a difference in nats is known, beyond 0.005; a factor of compute beyond 2 %. "
    "Counted are findings of the same comparison as our switch, in language-model loss at equal tokens or fewer FLOPs. "
    "Ours is the sign of the saving in tokens for the same loss at the largest size, where it is resolved. They agree "
    "where both point one way, or both to no effect; they disagree where both are resolved and do not; and it cannot "
    "be told where ours is not resolved, where papers contradict each other, or where none is comparable. A "
    "disagreement over so many times the parameters refutes neither."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """A finding that the rule counts, with the direction it points to."""

    source: Source
    finding: Finding
    direction: Direction


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """A change in the papers: all findings, those that are counted, and how ours lies beside them."""

    findings: tuple[tuple[Source, Finding], ...]
    counted: tuple[Counted, ...]
    agreement: Agreement
    why: str

    def count(self, direction: Direction) -> int:
        return sum(each.direction == direction for each in self.counted)


def noise() -> float:
    """Share of the loss that two similar models of one paper differ by without a named change."""
    found = next(f for _, f in findings() if f.claim == NOISE_CLAIM)
    assert found.off is not None
    assert found.on is not None
    return abs(found.on / found.off - 1)


def rule() -> str:
    return RULE.format(noise=f"{100 * noise():.2g} %")


def direction(finding: Finding) -> Direction:
    """Where a finding points, by the rule. ValueError for one that has no number."""
    size = finding.size
    if size is None:
        raise ValueError(f"finding {finding.claim!r} has no number, so that it points nowhere; do not count it")
    if finding.interval is not None:
        beyond = finding.interval[0] > 0 or finding.interval[1] < 0
    elif finding.effect == "ratio" or finding.metric == "effective compute":
        size = math.log(size)
        beyond = abs(size) > COST_MARGIN
    elif finding.off is not None:
        share = size / math.log(finding.off) if finding.effect == "log ratio" else size / finding.off
        beyond = abs(share) > noise()
    elif finding.metric == "relative loss":
        beyond = abs(size) > noise()
    else:
        beyond = abs(size) > NATS_MARGIN
    if not beyond:
        return "none"
    return "gain" if (size > 0) == finding.higher_is_better else "harm"


def reported(name: str, ours: Measured | None, *, neutral: bool) -> Reported:
    """A change beside the papers; `ours` at the largest size, None where it was not measured."""
    found = tuple(findings(name))
    counted = tuple(
        Counted(source=source, finding=each, direction=direction(each))
        for source, each in found
        if each.asks_what_we_ask
    )
    agreement, why = _compare(counted, ours, neutral=neutral)
    return Reported(findings=found, counted=counted, agreement=agreement, why=why)


def _compare(counted: Sequence[Counted], ours: Measured | None, *, neutral: bool) -> tuple[Agreement, str]:
    if neutral:
        return CANNOT_TELL, "it changes no loss; its speed at scale is simulated, from the very trace that is published"
    if not counted:
        return CANNOT_TELL, "no paper reports the loss of this comparison"
    if ours is None or ours.tokens is None:
        return CANNOT_TELL, "the tokens for the same loss were not measured here"
    mine = MINE.get(ours.tokens.verdict)
    if mine is None:
        return CANNOT_TELL, "ours is not resolved"
    seen = {each.direction for each in counted}
    if {"gain", "harm"} <= seen:
        return CANNOT_TELL, "papers contradict each other"
    if mine == "none" and len(seen) > 1:
        return CANNOT_TELL, "papers report an effect and none"
    if mine in seen:
        return AGREES, "both point to no effect" if mine == "none" else f"both point to a {mine}"
    said = {"gain": "a gain", "harm": "a harm", "none": "no effect beyond noise"}
    theirs = said[next(iter(seen - {"none"}), "none")]
    return DISAGREES, f"ours is {said[mine]}, papers report {theirs}"
