"""The recorder of a rank: what it costs when it is off, and that on a device nobody waits in the middle of a step."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

from ablate.parallel.spans import MEETINGS, OFF, Spans
from ablate.schedules.action import Action

FORWARD, WEIGHTS = Action("F", 1, 2), Action("W", 1, 2, direction=1)


class Device:
    """Stands in for CUDA: each event is a second behind the one before. It counts who waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits, self.n_events = 0, 0
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at_s, device.n_events = float(device.n_events), device.n_events + 1

            def synchronize(self) -> None:
                device.waits += 1

            def elapsed_time(self, other: Event) -> float:
                return 1000 * (other.at_s - self.at_s)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(torch.cuda, "Event", Event)

    def synchronize(self) -> None:
        self.waits += 1


@pytest.fixture
def meetings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The barriers of one rank by itself."""
    found: list[float] = []
    monkeypatch.setattr(dist, "barrier", lambda: found.append(time.perf_counter()))
    return found


def work(spans: Spans) -> None:
    with spans.of(FORWARD), spans.inside("D"):
        pass
    with spans.of(WEIGHTS):
        pass


def test_it_is_off_but_in_recorded_steps(meetings: list[float]) -> None:
    spans = Spans()
    assert spans.of(FORWARD) is spans.inside("D") is OFF
    spans.begin()
    work(spans)
    spans.start_step(5)
    work(spans)
    with spans.inside("C"):  # of no action: an evaluation waits for rows too
        pass
    spans.end_step()
    work(spans)
    found = spans.recording()
    assert (len(meetings), len(found.meetings)) == (MEETINGS, MEETINGS)
    assert [(s.kind, s.stage, s.micro, s.direction) for s in found.steps.pop(5)] == [
        ("D", 1, 2, 0), ("F", 1, 2, 0), ("W", 1, 2, 1),
    ]  # fmt: skip
    assert not found.steps


def test_actions_that_take_turns_have_a_span_each_turn_and_the_rest_of_a_step_is_none(meetings: list[float]) -> None:
    spans, backward = Spans(), Action("B", 0, 1)
    assert spans.behind("G") is OFF
    spans.begin()
    spans.start_step(1)
    with spans.of(backward):
        with spans.of(FORWARD), spans.inside("D"):
            pass
        with spans.inside("C"):
            pass
    with spans.behind("G"):
        pass
    spans.end_step()
    found = spans.recording().steps[1]
    assert [s.name for s in found] == ["0B1", "1D2", "1F2", "0C1", "0B1", "0G0"]
    first, _, forward, waited, last, _ = found
    assert first.end_s <= forward.start_s < forward.end_s <= last.start_s <= waited.start_s < waited.end_s <= last.end_s


def test_on_a_device_nobody_waits_before_all_is_read(monkeypatch: pytest.MonkeyPatch, meetings: list[float]) -> None:
    device, spans = Device(monkeypatch), Spans()
    spans.begin()
    assert (spans.clock, device.waits) == ("device", 1)
    for step in (3, 4):
        spans.start_step(step)
        work(spans)
        spans.end_step()
    assert device.waits == 1, "in the steps events are marked"
    inner, outer, last = spans.recording().steps[3]
    assert [round(s.seconds, 3) for s in (inner, outer, last)] == [1.0, 3.0, 1.0]
    assert outer.start_s < inner.start_s < inner.end_s < outer.end_s < last.start_s
