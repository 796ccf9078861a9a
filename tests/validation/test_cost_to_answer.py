"""The designs that ours are compared with are right too: known answers without noise, and the published table."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ablate.attribution.indices import index_weights
from ablate.validation.check import loss_lattice, truth_table

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
REPORT = BENCHMARKS.parent / "reports" / "attribution"
GAME = loss_lattice()
OWEN = index_weights(GAME, "owen")


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cost_to_answer

    return cost_to_answer


def errors(cost: ModuleType, contender: object, kind: str) -> np.ndarray:
    """Errors (studies, effects) without any noise."""
    truths = truth_table(GAME, kind, np.random.default_rng(1), 400)  # type: ignore[arg-type]
    outcome, _ = cost.run_contender(contender, truths, 0.0, np.random.default_rng(2), OWEN)
    return np.asarray(outcome.errors)


def test_designs_that_assume_nothing_are_exact_without_noise(cost: ModuleType) -> None:
    for contender in (cost.every_variant(GAME, 6), cost.factorial(GAME, 0), cost.factorial(GAME, 2)):
        assert np.abs(errors(cost, contender, "three-way")).max() < 1e-12


def test_designs_that_assume_pairs_are_exact_for_pairs_and_biased_beyond(cost: ModuleType) -> None:
    for contender in (
        cost.optimal(GAME, 32),
        cost.every_variant(GAME, 6, order=2),
        cost.one_at_a_time(GAME, "both", 2),
    ):
        assert np.abs(errors(cost, contender, "two-way")).max() < 1e-12
        assert np.abs(errors(cost, contender, "three-way")).max() > 1e-4


def test_one_at_a_time_answers_another_question(cost: ModuleType) -> None:
    for index in ("last", "later", "first"):
        assert np.sqrt((errors(cost, cost.one_at_a_time(GAME, index, 2), "two-way") ** 2).mean()) > 0.003
    # Leave-one-out takes aux-free away with moe; with it off on both sides moe alone is left.
    moe = GAME.components.index("moe")
    with_dependants, without = (
        errors(cost, cost.one_at_a_time(GAME, i, 2), "two-way")[:, moe] for i in ("last", "later")
    )
    assert np.abs(with_dependants).mean() > 2 * np.abs(without).mean()


@pytest.mark.slow
def test_permutations_are_unbiased(cost: ModuleType) -> None:
    rng = np.random.default_rng(3)
    for contender in (cost.permutations(GAME, 4), cost.antithetic(GAME, 2)):
        total = np.zeros_like(OWEN)
        for _ in range(1500):
            plan = contender.plan(rng)
            for column, at in enumerate(GAME.index(list(plan.cells))):
                total[:, at] += plan.weights[:, column] / 1500
        assert np.abs(total - OWEN).max() < 0.02


def test_runs_are_counted(cost: ModuleType) -> None:
    rng = np.random.default_rng(4)
    counts = {
        cost.optimal(GAME, 32): 38,
        cost.every_variant(GAME, 6): 54,
        cost.factorial(GAME, 2): 256,
        cost.permutations(GAME, 8): 56,
        cost.antithetic(GAME, 4): 48,
        cost.one_at_a_time(GAME, "last", 8): 56,
    }
    for contender, runs in counts.items():
        assert len(contender.plan(rng).cells) == runs


def test_the_published_page_is_made_from_the_published_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import attribution_coverage

    document = json.loads((REPORT / "coverage.json").read_text())
    assert attribution_coverage.markdown(document) == (REPORT / "coverage.md").read_text()


def test_too_few_simulations_are_refused() -> None:
    command = [sys.executable, str(BENCHMARKS / "attribution_coverage.py"), "--simulations", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "too few to say anything" in done.stderr
