"""What spans say of a pipeline, on timelines of which everything is known."""

import dataclasses

import played
import pytest

from ablate.cluster.measured import measure
from ablate.schedules.action import Schedule
from ablate.schedules.check import check
from ablate.schedules.tables import NAMES, table
from ablate.schedules.timeline import Span, Step, read_span

WAY = 0.003


def uneven(kind: str, stage: int, micro: int) -> float:
    return played.ALIKE[kind] * (1 + 0.2 * stage)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_ranks", [2, 4])
def test_the_simulator_fed_with_ideal_spans_gives_their_step(name: str, n_ranks: int) -> None:
    schedule = table(name, n_ranks, 2 * n_ranks)
    for options in ({}, {"way": WAY}, {"seconds": uneven, "way": WAY}):
        found = measure(played.timeline(schedule, **options), schedule)
        assert found.simulated.step_s == pytest.approx(found.step_s, rel=1e-9)
        assert found.simulated.bubble_s == pytest.approx(found.lost.bubble_s, rel=1e-9)
        assert found.peak_live_chunks == check(schedule)


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "interleaved", "zb1p", "dualpipe", "dualpipev"])
@pytest.mark.parametrize("n_ranks", [2, 4])
def test_the_bubble_of_equal_stages_is_the_published_one(name: str, n_ranks: int) -> None:
    schedule = table(name, n_ranks, 3 * n_ranks)
    found = measure(played.timeline(schedule), schedule)
    assert found.closed_form_s == pytest.approx(found.lost.bubble_s, abs=1e-9)
    assert found.closed_form_share == pytest.approx(found.bubble_share, abs=1e-9)
    assert found.imbalance == pytest.approx(1.0)


def test_a_step_is_the_sum_of_its_kinds() -> None:
    schedule = table("zbv", 2, 6)
    found = measure(played.timeline(schedule, uneven, way=WAY, waits={"D": 0.001, "C": 0.002}), schedule)
    lost = found.lost
    assert found.closed_form_s is None
    parts = [*found.by_kind.values(), lost.dispatch_s, lost.combine_s, lost.bubble_s]
    assert sum(parts) == pytest.approx(found.step_s)
    assert lost.combine_s == pytest.approx(2 * lost.dispatch_s)
    assert lost.dispatch_s == pytest.approx(2 * 2 * 6 * 0.001), "forward and backward of two stages"
    assert 0 < lost.transfer_s < lost.bubble_s
    assert found.parts["F", 1] == pytest.approx(uneven("F", 1, 0)), "with what it waits for inside"


def test_only_the_way_of_a_message_counts_as_a_transfer() -> None:
    """In 1F1B of two ranks and one micro-batch each rank waits once: mostly for work, and then for its message."""
    schedule = table("1f1b", 2, 1)
    found = measure(played.timeline(schedule, way=WAY), schedule)
    assert found.lost.transfer_s == pytest.approx(WAY)
    assert found.lost.bubble_s == pytest.approx(0.030 + 2 * WAY)
    assert found.step_s == pytest.approx(0.060 + 2 * WAY)
    assert measure(played.timeline(schedule), schedule).lost.exposed_s == pytest.approx(0)


def test_each_step_is_simulated_by_its_own_seconds() -> None:
    schedule = table("1f1b", 2, 4)
    fast = played.play(schedule, played.alike)
    slow = played.play(schedule, lambda *what: 3 * played.alike(*what))
    timeline = played.timeline(schedule)
    both = dataclasses.replace(timeline, steps=(Step(number=4, ranks=fast), Step(number=5, ranks=slow)))
    found = measure(both, schedule)
    assert found.step_s == pytest.approx(2 * measure(timeline, schedule).step_s)
    assert found.simulated.step_s == pytest.approx(found.step_s)


def test_a_jitter_is_simulated_as_it_was_and_its_cost_told_apart() -> None:
    schedule = table("1f1b", 4, 8)

    def jitter(kind: str, stage: int, micro: int) -> float:
        return played.alike(kind, stage, micro) * (1.5 if (stage + micro) % 3 == 0 else 1.0)

    found = measure(played.timeline(schedule, jitter), schedule)
    assert found.simulated_difference == pytest.approx(0, abs=1e-9)
    assert found.unevenness > 0.01
    even = measure(played.timeline(schedule, played.alike), schedule)
    assert even.unevenness == pytest.approx(0, abs=1e-9)


def test_pipelines_side_by_side_are_told_apart() -> None:
    schedule = table("1f1b", 2, 4)
    one, other = played.play(schedule, played.alike), played.play(schedule, lambda *what: 2 * played.alike(*what))
    ranks = (one[0], other[0], one[1], other[1])
    timeline = dataclasses.replace(
        played.timeline(schedule), n_data_ranks=2, steps=(Step(number=1, ranks=ranks),)
    )  # fmt: skip
    found = measure(timeline, schedule)
    assert found.step_s == pytest.approx(1.5 * measure(played.timeline(schedule), schedule).step_s)
    assert found.bubble_share == pytest.approx(measure(played.timeline(schedule), schedule).bubble_share)


def in_turns(schedule: Schedule, ranks: tuple[tuple[Span, ...], ...]) -> tuple[tuple[Span, ...], ...]:
    """Each pair in quarters: a part of the backward, a part of the forward, and both again."""
    paired = {(a.kind, a.stage, a.micro) for row in schedule.ranks for a in row if a.paired}
    found = []
    for spans in ranks:
        row, rest = [], list(spans)
        while rest:
            span = rest.pop(0)
            if (span.kind, span.stage, span.micro) not in paired:
                row.append(span)
                continue
            at, other = span.start_s, rest.pop(0)
            for each in (other, span, other, span):
                row.append(dataclasses.replace(each, start_s=at, end_s=at + each.seconds / 2))
                at = row[-1].end_s
        found.append(tuple(row))
    return tuple(found)


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev"])
def test_the_turns_of_a_pair_are_one_action_each(name: str) -> None:
    schedule = table(name, 2, 6)
    timeline = played.timeline(schedule, uneven, way=WAY)
    turned = dataclasses.replace(
        timeline, steps=tuple(dataclasses.replace(s, ranks=in_turns(schedule, s.ranks)) for s in timeline.steps)
    )
    expected, found = (measure(each, schedule) for each in (timeline, turned))
    assert sum(len(r) for r in turned.steps[0].ranks) > sum(len(r) for r in timeline.steps[0].ranks)
    assert found.parts == pytest.approx(expected.parts)
    assert found.by_kind == pytest.approx(expected.by_kind)
    assert found.step_s == pytest.approx(expected.step_s)
    assert found.simulated.step_s == pytest.approx(expected.simulated.step_s)
    assert found.peak_live_chunks == expected.peak_live_chunks == check(schedule)
    first = turned.steps[0].ranks[0]
    missing = dataclasses.replace(turned, steps=(Step(number=0, ranks=(first[:-2], *turned.steps[0].ranks[1:])),))
    with pytest.raises(ValueError, match="is not of its schedule"):
        measure(missing, schedule)


def test_what_lies_behind_the_schedule_is_no_bubble() -> None:
    schedule = table("1f1b", 2, 4)
    timeline = played.timeline(schedule, way=WAY)

    def longer(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        end = max(s.end_s for s in spans)
        return (*spans, Span("G", 0, 0, 0, end, end + 0.004), Span("O", 0, 0, 0, end + 0.004, end + 0.005))

    steps = tuple(dataclasses.replace(s, ranks=tuple(map(longer, s.ranks))) for s in timeline.steps)
    found, plain = measure(dataclasses.replace(timeline, steps=steps), schedule), measure(timeline, schedule)
    assert dataclasses.replace(found, behind={}) == plain
    assert plain.behind == {}
    assert found.behind == pytest.approx({"G": 0.004, "O": 0.001})
    assert read_span(str(steps[0].ranks[0][-1])).name == "0O0"


def test_a_timeline_of_another_schedule_is_refused() -> None:
    timeline = played.timeline(table("1f1b", 2, 4))
    for other in (table("gpipe", 2, 4), table("1f1b", 4, 4), table("1f1b", 2, 6)):
        with pytest.raises(ValueError, match="is not of its schedule"):
            measure(timeline, other)
