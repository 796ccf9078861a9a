"""The table of published figures: derived numbers recomputed, every row complete, and what `evidence` says."""

from __future__ import annotations

import math

import pytest

from ablate.cluster.network import expected_distinct
from ablate.components.registry import NAMES, component
from ablate.evidence.published import OTHER_COMPONENTS, Finding, evidence_document, findings, sources

EVERYTHING = findings()
STATED = [finding for _, finding in EVERYTHING if finding.stated is not None]


@pytest.mark.parametrize("finding", STATED, ids=lambda f: f"{f.component}: {f.claim[:40]} {f.metric}")
def test_stated_effects_are_what_their_numbers_give(finding: Finding) -> None:
    assert finding.size is not None
    digits = len(str(finding.stated).partition(".")[2])
    allowed = finding.rounding or 0.5 * 10**-digits + 1e-9
    assert abs(finding.size - finding.stated) <= allowed  # type: ignore[operator]


def test_every_component_has_evidence_and_every_row_its_place() -> None:
    known = {*NAMES, *OTHER_COMPONENTS}
    assert {finding.component for _, finding in EVERYTHING} >= known
    for source, finding in EVERYTHING:
        assert finding.component in {*known, ""}
        assert source.title
        assert finding.at
        assert finding.scale
        if finding.against and finding.component in NAMES:
            component(finding.component).alternative(finding.against)


def test_cache_sizes_and_times_are_recomputed() -> None:
    """FACTS that are arithmetic: caches of V2, its 6-bit claim, the trace's serial time, GPU hours of V3."""
    sizes = {f.claim.partition(",")[0]: (f.off, f.on) for _, f in EVERYTHING if f.metric in ("elements", "bits")}
    pairs = set(sizes.values())
    assert (2 * 2 * 8 * 128 * 95 // 2, 576 * 60) in pairs
    assert pytest.approx(0.9334, abs=1e-4) == 1 - 34_560 * 6 / (194_560 * 16)
    assert (194_560 * 16, 34_560 * 6) in pairs
    serial = [f for _, f in EVERYTHING if f.component == "dualpipe" and f.metric == "ms"]
    assert [f.off for f in serial] == pytest.approx([124.3 + 113.4, 124.3 + 80.4])
    hours = next(f for _, f in EVERYTHING if f.metric == "thousand H800 hours" and f.value)
    assert hours.value == pytest.approx(180 * 14.8)
    bubble = next(f for _, f in EVERYTHING if f.metric == "bubble")
    assert (bubble.off, bubble.on) == (15 * (1 + 2 - 2), 7 * (2 + 2 - 3))  # F = I = W = 1, F&B as long as 2
    assert expected_distinct(1, 4, 2) == 1


def test_log_ratios_and_intervals() -> None:
    found = {f.claim: f for _, f in EVERYTHING if f.effect == "log ratio" and f.component == "aux-free"}
    assert found["global-batch loss to global-batch bias"].size == pytest.approx(math.log(8.080 / 8.038))
    paired = next(f for _, f in EVERYTHING if f.standard_error)
    assert paired.interval is not None
    assert paired.interval[0] < paired.size < paired.interval[1]  # type: ignore[operator]


def test_the_command_shows_one_component_or_all() -> None:
    document, text = evidence_document("mtp")
    assert {row["component"] for row in document["findings"]} == {"mtp"}
    assert "Moonlight" in text
    assert "second hand" in text
    assert len(evidence_document(None)[0]["findings"]) == sum(len(source.findings) for source in sources().values())
    with pytest.raises(ValueError, match="did you mean 'mtp'"):
        evidence_document("mpt")


def test_a_row_with_half_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="one of off and on"):
        Finding(component="mla", claim="x", metric="loss", scale="1 B", at="here", off=1.0)
