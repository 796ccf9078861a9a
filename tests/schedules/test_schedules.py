"""Every schedule is complete, free of deadlocks, keeps no more alive than it says and waits as its paper says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from ablate.schedules.action import Action, Schedule
from ablate.schedules.check import check, pairs, with_transfers
from ablate.schedules.render import facts, render
from ablate.schedules.tables import NAMES, peak_live_chunks, table


def known(name: str, n_ranks: int, n_micro_batches: int) -> Schedule | None:
    try:
        return table(name, n_ranks, n_micro_batches)
    except ValueError:
        return None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 6, 8])
def test_complete_without_deadlock_and_within_its_memory(name: str, n_ranks: int) -> None:
    numbers = [1, 2, 3, n_ranks, 2 * n_ranks, 2 * n_ranks + 2, 3 * n_ranks, 26]
    made = [s for m in numbers if (s := known(name, n_ranks, m))]
    assert made or (name == "dualpipe" and n_ranks % 2)
    for schedule in made:
        assert max(check(schedule)) == peak_live_chunks(name, n_ranks, schedule.n_micro_batches)


def test_dualpipe_keeps_one_chunk_more_than_1f1b_on_every_rank() -> None:
    assert set(check(table("dualpipe", 8, 20))) == {9}
    assert check(table("1f1b", 8, 20)) == tuple(range(8, 0, -1))


def idle(schedule: Schedule, f: float, i: float, w: float) -> float:
    """The last rank's end less the work of a rank, in time of one stage; transfers take none, pairs take their sum."""
    ends: dict[tuple[str, int, int], float] = {}
    groups = [list(pairs(row)) for row in schedule.ranks]
    clock, at = [0.0] * schedule.n_ranks, [0] * schedule.n_ranks
    takes = {"F": f, "I": i, "W": w, "B": i + w}

    def needs(a: Action) -> tuple[str, int, int] | None:
        if a.kind == "W":
            return None
        if a.kind == "F":
            return ("F", a.stage - 1, a.micro) if a.stage else None
        return ("B", a.stage + 1, a.micro) if a.stage < schedule.last_stage else ("F", a.stage, a.micro)

    while any(at[r] < len(groups[r]) for r in range(schedule.n_ranks)):
        for r, row in enumerate(groups):
            while at[r] < len(row):
                needed = [n for a in row[at[r]] if (n := needs(a))]
                if any(n not in ends for n in needed):
                    break
                clock[r] = max([clock[r], *(ends[n] for n in needed)]) + sum(takes[a.kind] for a in row[at[r]])
                ends |= {
                    ("F" if a.kind == "F" else "B", a.stage, a.micro): clock[r] for a in row[at[r]] if a.kind != "W"
                }
                at[r] += 1
    return max(clock) - sum(takes[a.kind] for a in schedule.ranks[0])


# Published bubbles, F forward, B whole backward, W its weight part (arXiv:2412.19437, table 2; arXiv:2401.10241;
# arXiv:2104.04473), in the time of a rank's share of the layers. DualPipe's holds where F is as long as B - W.
BUBBLES: dict[str, Callable[[int, float, float, float], float]] = {
    "gpipe": lambda p, f, b, w: (p - 1) * (f + b),
    "1f1b": lambda p, f, b, w: (p - 1) * (f + b),
    "interleaved": lambda p, f, b, w: (p - 1) * (f + b),  # of a stage's time, of which a rank has two
    "zb1p": lambda p, f, b, w: (p - 1) * (f + b - 2 * w),
    "dualpipe": lambda p, f, b, w: (p // 2 - 1) * (f + b + b - 3 * w),
    "dualpipev": lambda p, f, b, w: (p - 1) * (f + b + b - 3 * w),
}


@pytest.mark.parametrize("name", BUBBLES)
@pytest.mark.parametrize("n_ranks", [2, 4, 8])
@pytest.mark.parametrize(("i", "w"), [(1.0, 1.0), (1.0, 0.75)])
def test_a_rank_waits_as_long_as_the_papers_say(name: str, n_ranks: int, i: float, w: float) -> None:
    for n_micro_batches in (2 * n_ranks, 5 * n_ranks if n_ranks % 2 == 0 else 4 * n_ranks):
        waits = idle(table(name, n_ranks, n_micro_batches), 1.0, i, w)
        assert waits == pytest.approx(BUBBLES[name](n_ranks, 1.0, i + w, w))


def change(schedule: Schedule, rank: int, change: Callable[[list[Action]], object]) -> Schedule:
    rows = [list(row) for row in schedule.ranks]
    change(rows[rank])
    return replace(schedule, ranks=tuple(map(tuple, rows)))


def test_the_check_finds_what_is_wrong() -> None:
    sound = table("1f1b", 4, 8)
    with pytest.raises(ValueError, match="0 times forward"):
        check(change(sound, 2, lambda row: row.pop(0)))
    with pytest.raises(ValueError, match="1 times backward for the inputs and 2 times for the weights"):
        check(change(sound, 1, lambda row: row.append(Action("W", 1, 3))))
    with pytest.raises(ValueError, match=r"rank 2, which has no such stage"):
        check(change(sound, 2, lambda row: row.append(Action("F", 1, 0))))
    with pytest.raises(ValueError, match="waits for ever"):
        check(change(sound, 0, lambda row: row.insert(0, row.pop(row.index(Action("B", 0, 0))))))
    with pytest.raises(ValueError, match="another order than it is written"):
        check(change(sound, 2, lambda row: row.insert(0, row.pop(1))))
    with pytest.raises(ValueError, match="wrong order"):
        check(change(table("zb1p", 2, 4), 0, lambda row: row.insert(0, row.pop())))
    with pytest.raises(ValueError, match="direction"):
        check(change(table("dualpipe", 2, 4), 0, lambda row: row.append(Action("F", 0, 3, 0))))


def test_a_value_is_what_it_is_made_of() -> None:
    assert table("dualpipe", 4, 10) == table("dualpipe", 4, 10)
    one = table("1f1b", 1, 3)
    assert " ".join(map(str, one.ranks[0])) == "0F0 0B0 0F1 0B1 0F2 0B2"
    assert with_transfers(one) == one, "one rank sends nothing"


def test_what_a_person_and_a_program_are_shown() -> None:
    text = render(table("dualpipe", 4, 10))
    # The published figure 5 in words: rank 0 starts three, takes the other end's first and works its backward off.
    assert "rank 0 [0-3] 0F0 0F1 0F2 3f5 3i5 3w5 3f6 0F3&3b6" in text
    assert "live chunks at most, by rank: 5" in text
    assert "1RF0 1F0 1SF0" in render(table("gpipe", 3, 2), transfers=True)
    document = json.loads(json.dumps(facts(table("zbv", 2, 4))))
    assert document["placement"] == [[0, 1, 1, 0]]
    assert document["peak_live_chunks"] == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("dualpipe", 3, 12), "must be even"),
        (("dualpipe", 4, 6), "at least 2 x 4"),
        (("dualpipev", 4, 6), "at least 2 x 4"),
        (("interleaved", 4, 6), "multiple of 4"),
        (("dual-pipe", 4, 6), "did you mean"),
        (("1f1b", 0, 6), "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(arguments: tuple[str, int, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        table(*arguments)
