"""Tuned learning rates: known optima are found, the range is the same for all, and both sides are shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import ablate.report as reports
from ablate.runs.plan import read_plan
from ablate.runs.searching import Tuning
from ablate.runs.store import Store
from ablate.runs.study import Study

FULL = "full without distill"


def tuned(played: Any, **fields: Any) -> Study:
    study: Study = replace(played.study, learning_rates="tuned", tuning=Tuning(**fields))
    return study


def rates(played: Any) -> dict[str, float]:
    return {v.name: v.learning_rate for v in read_plan(Store(played.out).plan_file).variants}


def test_each_variant_gets_its_own_optimum_and_both_designs_are_shown(played: Any) -> None:
    study = tuned(played)
    said = played.conduct(study)
    assert rates(played)[FULL] == pytest.approx(played.runs.BEST[True], rel=0.05)
    assert rates(played)["-mtp"] == pytest.approx(played.runs.BEST[False], rel=0.05)
    assert any(
        each.startswith("tuning: 5 learning rates from 0.001414 to 0.01131 of each of 2 variants") for each in said
    )
    done = [played.attempts(folder) for folder in ("tuning", "shared", ".")]
    assert done == [10, 6, 6]
    played.conduct(study)
    assert [played.attempts(folder) for folder in ("tuning", "shared", ".")] == done
    content = reports.build(played.out)
    reports.write(content)
    assert content.tuning is not None
    ((_, shared, _, own, _, moved, _),) = content.tuning.sides.rows
    # At the shared rate 0.004 full is 0.585 octaves from its best: 0.05 x 0.585^2 = 0.0171 nats of the rate's.
    assert float(moved.replace("−", "-")) == pytest.approx(-0.0171, abs=0.004)
    assert shared != own
    document = reports.to_json(content)["tuning"]
    assert document["rates"]["-mtp"]["learning_rate"] == rates(played)["-mtp"]
    (effect,) = document["effects"]
    assert effect["own"]["estimate"] - effect["shared"]["estimate"] == pytest.approx(-0.0171, abs=0.004)
    assert "Response curves" in (played.out / "report.md").read_text()
    assert (played.out / "report.html").read_text().count("fitted surface") == 1


@pytest.mark.slow
def test_the_intervals_at_the_own_rates_are_widened(played: Any) -> None:
    played.conduct(tuned(played, trials=3))
    content = reports.build(played.out)
    assert content.tuning is not None
    (comparison,) = content.result.comparisons
    from ablate.attribution.study.tuning import contrast, widened

    found = content.tuning.found
    wide = widened(comparison.loss, contrast(found, FULL, "-mtp"), found)
    assert comparison.loss.low is not None
    assert wide.low is not None
    assert wide.low < comparison.loss.low
    assert wide.estimate == comparison.loss.estimate


def test_a_rate_that_diverges_somewhere_is_used_nowhere(played: Any) -> None:
    """Above 0.03 every variant diverges: the fit and the range end below it, for all alike."""
    said = played.conduct(tuned(played, octaves=3.2, trials=7, shared=False))
    assert any("no variant's fit uses that rate or a higher one" in each for each in said)
    content = reports.build(played.out)
    assert content.tuning is not None
    assert content.tuning.found.used[1] < 3.0
    assert rates(played)[FULL] == pytest.approx(played.runs.BEST[True], rel=0.05)
    assert "not run" in content.tuning.sides.rows[0]
    assert any("not run at the shared rate" in note for note in content.tuning.notes)


@pytest.mark.slow
def test_an_optimum_outside_the_range_is_held_at_its_end_and_said(played: Any) -> None:
    played.conduct(tuned(played, octaves=0.3, shared=False))
    content = reports.build(played.out)
    assert content.tuning is not None
    assert content.tuning.found.clipped == (FULL,)
    assert rates(played)[FULL] == pytest.approx(0.004 * 2**0.3, rel=1e-3)
    assert any("lies at an end of the screened range" in note for note in content.tuning.notes)


@pytest.mark.slow
def test_of_a_lattice_some_variants_are_screened_and_the_rest_predicted(played: Any) -> None:
    study = replace(tuned(played, trials=3, shared=False), design="lattice", disable=("mtp", "mla", "fp8"), n_seeds=1)
    played.conduct(replace(study, block_size=1))
    screening = read_plan(Store(played.out / "tuning").plan_file)
    assert len(screening.variants) == 3 * 5  # K + 2 variants
    planned = read_plan(Store(played.out).plan_file).variants
    assert len(planned) == 8
    for v in planned:
        assert v.learning_rate == pytest.approx(played.runs.BEST[v.levels["mtp"] == "on"], rel=0.1), v.name
    assert reports.build(played.out).tuning is not None


@pytest.mark.slow
def test_a_tuning_is_seen_in_the_storage(played: Any) -> None:
    import optuna

    played.conduct(tuned(played, trials=3, shared=False))
    storage = optuna.storages.RDBStorage(f"sqlite:///{played.out}/tuning/optuna.db")
    names = optuna.get_all_study_names(storage)
    assert [len(optuna.load_study(study_name=name, storage=storage).get_trials()) for name in names] == [3, 3]
    storage.engine.dispose()


def test_tuning_without_its_word_and_at_equal_seconds_is_refused(played: Any) -> None:
    with pytest.raises(ValueError, match=r'learning_rates is not "tuned"'):
        replace(played.study, tuning=Tuning())
    with pytest.raises(ValueError, match="match flops or tokens"):
        replace(played.study, learning_rates="tuned", match="seconds", budget=1.0)
    for way in ({"until": "resolved"}, {"precision": "0.01"}):  # rounds of seeds would be left out in silence
        with pytest.raises(ValueError, match=r"settings are tried first.*give n_seeds"):
            replace(played.study, learning_rates="tuned", n_seeds=None, **way)
    with pytest.raises(ValueError, match=r"tuning\.trials is 2"):
        Tuning(trials=2)
