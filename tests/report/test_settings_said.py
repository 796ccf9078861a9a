"""The sentences on pairs, tuned rates, searches and their fronts, on hand-made values with every edge."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ablate.attribution.study.search import SearchResult, TrialResult
from ablate.attribution.verdicts import GAIN, NOT_RESOLVED
from ablate.report import sentences
from ablate.report.interplay import FourPoints, Interplay
from ablate.report.tables.tuning import NOT_RUN
from ablate.runs.trials import SearchPlan, Stage, Trial

PAIR = ("mla", "moe")


def test_a_pair_is_said_with_both_slopes_of_its_figure_and_whether_they_are_told_apart() -> None:
    means = {(False, False): 3.0, (True, False): 2.9, (False, True): 2.8, (True, True): 2.85}
    four = FourPoints(components=PAIR, means=means, n_settings=2)

    def said(*strongest: FourPoints, resolved: bool) -> str:
        names = frozenset([PAIR]) if resolved else frozenset()
        return sentences.of_interplay(Interplay(components=PAIR, pairs=(), resolved=names, strongest=strongest))

    one = "mla changes the mean loss by −0.100 where moe is off and by +0.050 where it is on"
    assert said(four, resolved=True) == f"{one} (resolved)."
    assert said(four, resolved=False) == f"{one} (not resolved)."
    other = FourPoints(components=("mla", "mtp"), means=dict.fromkeys(means, 3.0), n_settings=2)
    second = "mla changes the mean loss by 0.000 where mtp is off and by 0.000 where it is on (not resolved)"
    assert said(four, other, resolved=True) == f"{one} (resolved); {second}."


def tuned(*octaves: float, rows: Any = (), clipped: Any = (), lost: int = 0, fitted: bool = True) -> Any:
    """A section of variants at such octaves, with as many screening runs as variants and lost ones on top."""
    points = [SimpleNamespace(loss=3.0)] * len(octaves) + [SimpleNamespace(loss=None)] * lost
    found = SimpleNamespace(
        octaves={f"v{i}": at for i, at in enumerate(octaves)}, shared_rate=0.002, fitted=object() if fitted else None,
        used=(-1.5, 1.5), clipped=clipped, responses=[SimpleNamespace(points=points)],
    )  # fmt: skip
    cells = [[name, "−0.1", shared, "−0.2", own, "−0.1", "—"] for name, shared, own in rows]
    return SimpleNamespace(found=found, sides=SimpleNamespace(rows=cells))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (tuned(-0.4, 0.3), "The own rates lie −0.40 to +0.30 octaves from the shared one, 0.002."),
        (tuned(0.3), "The own rate lies +0.30 octaves from the shared one, 0.002."),
        (tuned(0.3, 0.3), "Every own rate lies +0.30 octaves from the shared one, 0.002."),
        (
            tuned(-0.4, 1.5, clipped=("v1",), lost=2),
            "The own rates lie −0.40 to +1.50 octaves from the shared one, 0.002, 1 of 2 held at an end of the "
            "screened range. Not drawn: 2 of 4 screening runs, which diverged.",
        ),
        (
            tuned(1.5, 1.5, clipped=("v0", "v1"), fitted=False),
            "No optimum could be fitted, so every variant has the upper end of the screened range.",
        ),
        (
            tuned(-1.5, -1.5, clipped=("v0", "v1"), fitted=False),
            "No optimum could be fitted, so every variant has the lower end of the screened range.",
        ),
    ],
)
def test_the_sentence_on_rates_says_where_they_lie(section: Any, said: str) -> None:
    assert sentences.of_tuning(section) == said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("mla", GAIN, GAIN)], "; the effect keeps its verdict."),
        ([("mla", GAIN, GAIN), ("moe", NOT_RESOLVED, NOT_RESOLVED)], "; every effect keeps its verdict."),
        ([("mla", NOT_RESOLVED, NOT_RESOLVED)], "; at neither is an effect resolved."),
        (
            [("mla", GAIN, NOT_RESOLVED), ("moe", GAIN, GAIN), ("mtp", NOT_RUN, GAIN)],
            "; 1 of 2 effects has another verdict at own rates: mla.",
        ),
        ([("mla", GAIN, NOT_RESOLVED)], "; 1 of 1 effect has another verdict at own rates: mla."),
        ([("mla", NOT_RUN, GAIN)], "; the shared rate was not run for comparison."),
    ],
)
def test_the_sentence_on_rates_says_what_they_change(rows: Any, said: str) -> None:
    assert sentences.of_tuning(tuned(-0.4, 0.3, rows=rows)).endswith(f"0.002{said}")


def trial(slot: int, *values: float, group: str = "full", state: Any = "complete", run: str = "") -> TrialResult:
    one = Trial(slot=f"{slot}", group=group, number=slot, variant=group, levels={}, parameters={"a.rate": slot / 1000},
                origin="sampler", stages=(Stage(share=1.0, run_id=run or f"{group}{slot}"),), flops_per_token=1.0,
                n_steps=1, flops=1)  # fmt: skip
    return TrialResult(trial=one, state=state, values=values if state == "complete" else ())


def searched(*trials: TrialResult, objectives: Any = ("loss",), groups: Any = ("full",)) -> Any:
    plan = SearchPlan(question="?", preset="nano", match="flops", budget=1.0, seed=0, corpus_hash="", n_trials=9,
                      groups=groups, variants=groups, objectives=objectives, sampler="tpe", pruner="none",
                      table={})  # fmt: skip
    return SimpleNamespace(found=SearchResult(plan=plan, trials=trials))


LUCK = "; each trial is one run, so no lead is resolved."


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (searched(), ""),
        (searched(trial(1, state="failed"), trial(2, state="open")), "None of 2 trials is complete."),
        (searched(trial(1, 3.2)), "1 of 1 trial is complete; the best loss is 3.2000 in full (rate 0.001)."),
        (
            searched(trial(1, 3.2), trial(2, 3.1), trial(3, state="pruned"), trial(4, state="diverged")),
            f"2 of 4 trials are complete (1 pruned, 1 diverged); the best loss is 3.1000 in full (rate 0.002){LUCK}",
        ),
        (
            searched(trial(1, 3.1), trial(2, 3.1), trial(3, 3.1, run="full1")),
            "3 of 3 trials are complete; the best loss is 3.1000 in full (rate 0.001), equalled by 1 other trial"
            f"{LUCK}",
        ),
        (
            searched(trial(1, 3.1), trial(2, 3.3), trial(1, 3.2, group="-mtp"), groups=("full", "-mtp", "-moe")),
            "3 of 3 trials are complete; the best loss is 3.1000 in full (rate 0.001) and 3.2000 in -mtp (rate 0.001)"
            f"{LUCK}",
        ),
        (
            searched(trial(1, 900.0, 3.0), trial(2, 1200.0, 4.0), objectives=("tokens_per_s", "loss")),
            f"2 of 2 trials are complete; the best speed is 1,200 tokens/s in full (rate 0.002){LUCK}",
        ),
        (  # closed forms differ by no chance
            searched(trial(1, 2e6), trial(2, 1e6), objectives=("flops_per_token",)),
            "2 of 2 trials are complete; the best FLOPs per token is 1.00 MFLOP in full (rate 0.002).",
        ),
    ],
)
def test_the_sentence_on_settings_names_the_best_and_what_did_not_end(section: Any, said: str) -> None:
    assert sentences.of_settings(section) == said


BOTH = ("loss", "seconds")
PLACE = "; each trial is one run, so no place on it is resolved."


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (searched(trial(1, 3.1), trial(2, 3.2)), ""),
        (searched(trial(1, state="failed"), objectives=BOTH), ""),
        (
            searched(trial(1, 3.1, 30.0), trial(2, state="failed"), objectives=BOTH),
            "One trial is complete, and no other is there to weigh loss and training time against.",
        ),
        (
            searched(trial(1, 3.1, 30.0), trial(2, 3.1, 31.0), objectives=BOTH),
            "full (rate 0.001) is at least as good as the other complete trial in loss and training time; each trial "
            "is one run, so its lead is not resolved.",
        ),
        (
            searched(trial(1, 3.1, 40.0), trial(2, 3.2, 30.0), objectives=BOTH),
            "Both complete trials are on the Pareto front of loss and training time, with loss from 3.1000 to 3.2000 "
            f"and training time from 30.0 s to 40.0 s{PLACE}",
        ),
        (  # equal in everything, and one run that two trials share
            searched(trial(1, 3.1, 40.0), trial(2, 3.1, 40.0), trial(3, 3.2, 50.0), trial(4, 3.1, 40.0, run="full1"),
                     objectives=BOTH),
            "2 of 3 different complete trials are on the Pareto front of loss and training time, with loss 3.1000 and "
            f"training time 40.0 s{PLACE}",
        ),
        (
            searched(trial(1, 3.1, 900.0), trial(2, 3.2, 1200.0), trial(3, 3.3, 800.0),
                     objectives=("loss", "tokens_per_s")),
            "2 of 3 complete trials are on the Pareto front of loss and speed, with loss from 3.1000 to 3.2000 and "
            f"speed from 900 tokens/s to 1,200 tokens/s{PLACE}",
        ),
    ],
)  # fmt: skip
def test_the_sentence_on_the_front_counts_what_is_on_it(section: Any, said: str) -> None:
    assert sentences.of_front(section) == said
