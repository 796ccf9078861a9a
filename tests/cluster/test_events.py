"""Schedules executed with seconds: closed forms of their bubbles, and what an execution must keep."""

from __future__ import annotations

import bubbles
import numpy as np
import pytest

from ablate.cluster.events import execute
from ablate.schedules.action import Action, Schedule
from ablate.schedules.tables import NAMES, table


@pytest.mark.parametrize("name", bubbles.NAMES)
@pytest.mark.parametrize("pipelines", [(4, 8), pytest.param((16, 32), marks=pytest.mark.slow)])
def test_bubble_is_the_closed_form(name: str, pipelines: tuple[int, ...]) -> None:
    n = 0
    for what, executed, expected in bubbles.cases(name, pipelines):
        np.testing.assert_allclose(executed, expected, rtol=1e-9, atol=1e-9, err_msg=what)
        n += len(executed)
    assert n == 80


def test_dualpipe_formula_as_published_needs_forward_as_long_as_the_input_part() -> None:
    f, i, w, p = bubbles.times(5, equal=True)
    idle = bubbles.run("dualpipe", 8, 24, f, i, w, p).idle[3]
    np.testing.assert_allclose(idle, 3 * (p + (i + w) - 3 * w), rtol=1e-9)
    f, i, w, p = bubbles.times(6)
    idle = bubbles.run("dualpipe", 8, 24, f, i, w, p).idle[3]
    assert (np.abs(idle - 3 * (p + (i + w) - 3 * w)) > 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_busy_and_idle_fill_the_step_and_no_work_is_lost(name: str) -> None:
    ranks, micro = 4, 12
    schedule = table(name, ranks, micro)
    seconds = {"F": 1.0, "I": 2.0, "W": 0.5, "B": 2.5}
    run = execute(schedule, lambda group: np.array([sum(seconds[a.kind] for a in group)]))
    stages = schedule.n_stages // ranks * (3.5 * micro)
    assert sum(float(sum(kinds.values())[0]) for kinds in run.busy) == pytest.approx(ranks * stages)
    assert all(idle[0] >= -1e-9 for idle in run.idle)


def test_a_transfer_delays_the_next_stage_and_nothing_on_the_same_rank() -> None:
    schedule = table("1f1b", 2, 1)
    run = execute(schedule, lambda group: np.array([1.0]), np.array([0.25]))
    assert run.makespan[0] == pytest.approx(4 + 2 * 0.25)  # F, F, B, B; there and back
    folded = table("dualpipev", 1, 2)
    alone = execute(folded, lambda group: np.array([1.0]), np.array([9.0]))
    assert alone.makespan[0] == pytest.approx(len([a for a in folded.ranks[0] if not a.paired]))


def test_a_schedule_that_waits_for_ever_is_refused() -> None:
    stuck = Schedule(
        name="stuck",
        n_micro_batches=1,
        placement=((0, 1),),
        ranks=((Action("B", 0, 0), Action("F", 0, 0)), (Action("F", 1, 0), Action("B", 1, 0))),
    )
    with pytest.raises(ValueError, match="waits for ever"):
        execute(stuck, lambda group: np.array([1.0]))
