"""Spans as text and as a trace, and which steps are recorded."""

import json

import played
import pytest

from ablate.schedules.action import Action
from ablate.schedules.tables import table
from ablate.schedules.timeline import Recording, Span, aligned, chrome_trace, middle, offset, read_span


def test_a_span_reads_back_to_the_microsecond() -> None:
    for span in (Span("F", 2, 5, 0, 0.0012, 0.00154), Span("SB", 0, 11, 1, 0.0, 0.0), Span("D", 3, 0, 1, 12.5, 12.75)):
        assert read_span(str(span)) == span
    assert str(Span("F", 2, 5, 0, 0.0012, 0.00154)) == "2F5 1200+340"
    assert Span("RF", 2, 5, 1, 0.0, 1.0).name == str(Action("RF", 2, 5, 1)), "actions and spans have one name"
    for text in ("2X5 1200+340", "2F5 -1+3", "2F5", "2F5 1+2, 2F6 1+2"):
        with pytest.raises(ValueError, match="is no span"):
            read_span(text)


def test_the_steps_are_in_the_middle_and_never_the_first() -> None:
    assert middle(100, 4) == range(48, 52)
    assert middle(3, 2) == range(1, 3)
    for n_steps, n in ((100, 0), (100, 100), (1, 1), (10, -2)):
        with pytest.raises(ValueError, match=f"--timeline is {n}; it takes 1 to {n_steps - 1} steps"):
            middle(n_steps, n)


def test_a_trace_has_every_span_in_nested_slices_and_an_arrow_for_each_message() -> None:
    timeline = played.timeline(table("dualpipe", 4, 8), way=0.001, waits={"D": 0.001})
    document = json.loads(json.dumps(chrome_trace(timeline)))
    events = document["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert len(slices) == sum(len(spans) for step in timeline.steps for spans in step.ranks)
    assert {e["tid"] for e in slices} == {0, 1, 2, 3}
    by_row: dict[int, list[tuple[float, float]]] = {}
    for e in slices:
        by_row.setdefault(e["tid"], []).append((e["ts"], e["ts"] + e["dur"]))
    for row in by_row.values():  # viewers cut slices that overlap without one holding the other
        open_until: list[float] = []
        for start, end in sorted(row, key=lambda ends: (ends[0], -ends[1])):
            while open_until and open_until[-1] <= start + 1e-3:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 1e-3
            open_until.append(end)
    tails = {e["id"]: e["ts"] for e in events if e["ph"] == "s"}
    heads = {e["id"]: e["ts"] for e in events if e["ph"] == "f"}
    assert len(tails) == len([e for e in slices if e["name"].startswith("send")])
    assert tails.keys() == heads.keys()
    assert all(tails[i] <= heads[i] for i in tails)
    assert {(e["name"], e["args"]["name"]) for e in events if e["ph"] == "M"} >= {
        ("thread_name", "rank 3"), ("process_name", "pipeline 0"),
    }  # fmt: skip


def test_clocks_that_meet_are_told_apart_up_to_half_of_the_quickest_meeting() -> None:
    ahead = 12.5
    # (come, left) of three barriers in true seconds; the second is quick, in the others somebody is late to leave.
    first = [(0.0, 0.9), (2.0, 2.11), (3.0, 3.11)]
    other = [(0.1, 0.11), (2.1, 2.12), (3.1, 4.0)]
    found, error = offset(first, [(came + ahead, left + ahead) for came, left in other])
    assert abs(found - ahead) <= error
    assert found == pytest.approx(ahead + 0.05), "in the middle of what is possible"
    assert error == pytest.approx(0.06)
    span = Span("F", 0, 0, 0, 5.0, 6.0)
    mine = Recording({7: (span,)}, tuple(first))
    theirs = Recording({7: (span,)}, tuple((came + ahead, left + ahead) for came, left in other))
    (step,), worst = aligned([mine, theirs])
    assert (step.number, worst) == (7, error)
    assert step.ranks[0] == (span,)
    assert step.ranks[1][0].start_s == pytest.approx(5.0 - found)
