"""Trainer.fit on ranks equals one process; a checkpoint does not know how many ranks wrote it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fitted import KEPT_AT, Fit, Fitted, difference, fit_all, schedule, timeline_of

from ablate.cluster.measured import measure
from ablate.runs.timelines import read_timeline
from ablate.schedules.timeline import INSIDE, link
from ablate.spec.ranks import Ranks

EXPERTS = Ranks(data=2, expert=2, node=1)


def rest(whole: Fitted) -> Fitted:
    """What a training that goes on from the checkpoint of this one should end with."""
    return replace(whole, losses=whole.losses[KEPT_AT:])


def test_two_ranks_train_as_one_process_and_go_on_where_it_was(tmp_path: Path) -> None:
    alone = Fit(place=tmp_path / "one")
    data = Fit(place=tmp_path / "data", ranks=Ranks(data=2))
    experts = Fit(place=tmp_path / "experts", ranks=EXPERTS, recorded=range(1, 3))
    again = Fit(place=tmp_path / "again", ranks=EXPERTS, resume=experts.place)
    over = Fit(place=tmp_path / "over", ranks=Ranks(pipeline=2), resume=experts.place, recorded=range(1, 4))
    recomputed = Fit(place=tmp_path / "recomputed", trainer={"recompute": "full"})
    both = {"recompute": "full", "zero_stage": 1}
    sharded = Fit(place=tmp_path / "sharded", ranks=EXPERTS, trainer=both)
    sharded_on = Fit(place=tmp_path / "sharded on", ranks=EXPERTS, trainer=both, resume=sharded.place)
    back = Fit(place=tmp_path / "back", resume=sharded.place)
    fits = [alone, recomputed, data, experts, sharded, again, sharded_on, over, back]
    one, one_recomputed, two, divided, sharded_, again_, sharded_again, *others = fit_all(fits, 2)
    assert difference(one_recomputed, one) == 0
    assert difference(sharded_, divided) == 0, "whoever steps a parameter, and whether blocks are computed again"
    assert difference(sharded_again, rest(divided)) == 0
    assert difference(two, one) < 1e-12
    assert difference(divided, one) < 1e-12
    assert all((divided.state[n] == one.state[n]).all() for n in one.state if n.endswith("bias_E"))
    assert difference(again_, rest(divided)) == 0, "the same layout, bit for bit"
    for found in others:
        assert difference(found, rest(one)) < 1e-12
    assert [step.number for step in read_timeline(timeline_of(experts)).steps] == [1, 2]
    check_timelines(experts, over)


def check_timelines(experts: Fit, over: Fit) -> None:
    """All work of both ranks in its order, what it waits for inside it, no message before it is sent."""
    timeline = read_timeline(timeline_of(over))
    assert [step.number for step in timeline.steps] == [2, 3], "it went on behind the first that was to be recorded"
    found = measure(timeline, schedule(over))
    assert found.peak_live_chunks == (3, 3)
    assert 0 < found.lost.transfer_s < found.lost.bubble_s < found.step_s
    assert found.lost.dispatch_s == 0
    assert min(found.behind["G"], found.behind["O"]) > 0
    for step in timeline.steps:
        sent = {link(s): s for spans in step.ranks for s in spans if s.kind in ("SF", "SB")}
        came = [s for spans in step.ranks for s in spans if s.kind in ("RF", "RB")]
        assert sent.keys() == {link(s) for s in came}
        assert timeline.clock_error_s < 0.01
        assert min(s.end_s - sent[link(s)].start_s for s in came) > -timeline.clock_error_s - 1e-5, "one clock"
    found = measure(read_timeline(timeline_of(experts)), schedule(experts))
    assert found.lost.dispatch_s > 0
    assert found.lost.combine_s > 0
    for spans in (spans for step in read_timeline(timeline_of(experts)).steps for spans in step.ranks):
        for inner in (s for s in spans if s.kind in INSIDE):
            outer = next(s for s in spans if s.is_compute and s.end_s >= inner.end_s)
            assert outer.start_s <= inner.start_s
            assert (outer.stage, outer.micro) == (inner.stage, inner.micro)


@pytest.mark.slow
def test_four_ranks_train_as_one_process_and_checkpoints_know_no_ranks(tmp_path: Path) -> None:
    mesh = Ranks(pipeline=2, data=2)
    whole = Ranks(pipeline=2, data=2, expert=2, node=1)
    plans = {
        "one": (Ranks(), {}, ""),
        "mesh": (mesh, {"dualpipe": "1f1b"}, ""),
        "whole": (whole, {"dualpipe": "on"}, ""),
        "flat": (whole, {"dualpipe": "zbv", "alltoall": "flat"}, ""),
        "wide": (Ranks(data=4, expert=2, node=1), {"alltoall": "deduplicated"}, ""),
        "two hops": (Ranks(data=4, expert=4, node=2), {}, ""),
        "whole again": (whole, {"dualpipe": "on"}, "whole"),
        "mesh from whole": (mesh, {"dualpipe": "zb1p"}, "whole"),
        "whole from one": (whole, {"dualpipe": "on"}, "one"),
        "whole, sharded": (whole, {"dualpipe": "on"}, ""),
        "mesh, sharded, from whole": (mesh, {"dualpipe": "zb1p"}, "whole, sharded"),
        "one from whole": (Ranks(), {}, "whole"),
        "experts from flat": (Ranks(data=4, expert=4, node=2), {}, "flat"),
    }
    fits = [
        Fit(
            place=tmp_path / name,
            ranks=ranks,
            levels=levels,
            resume=tmp_path / resume if resume else None,
            n_layers=4,  # for two stages a rank
            trainer={"zero_stage": 1, "recompute": "full"} if "sharded" in name else {},
        )
        for name, (ranks, levels, resume) in plans.items()
    ]
    found = dict(zip(plans, fit_all(fits, 4), strict=True))
    assert len(list((tmp_path / "whole").glob("tensors*"))) == 4, "a file a rank"
    for name, (_, _, resume) in plans.items():
        expected = rest(found["one"]) if resume else found["one"]
        assert difference(found[name], expected) < 1e-12, name
    assert difference(found["whole again"], rest(found["whole"])) == 0, "the same layout, bit for bit"
    assert difference(found["whole, sharded"], found["whole"]) == 0


@pytest.mark.slow
def test_two_pipeline_ranks_train_fp8_as_one_process(tmp_path: Path) -> None:
    levels = {"fp8": "on"}
    fits = [Fit(place=tmp_path / "one", levels=levels)]
    fits += [Fit(place=tmp_path / f"{r.pipeline}", ranks=r, levels=levels) for r in (Ranks(pipeline=2), Ranks(data=2))]
    one, *others = fit_all(fits, 2)
    for found in others:
        assert difference(found, one) < 1e-12
