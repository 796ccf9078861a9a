"""Recovery of known truths: a simulated trainer end to end, coverage of the intervals, and the published table."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ablate.attribution.design.exchange import lattice_design, optimal_cells
from ablate.attribution.estimation.estimates import Observations, estimate
from ablate.attribution.gain.channels import MeasuredRun, VariantSpeed, measured_table
from ablate.attribution.gain.compute_gain import DecayedCurve, log_tokens_to, loss_slope, target_losses, token_gain
from ablate.attribution.gain.learning_rate import Trial, fit_surface, predict_optima, screening_design, tuned_effects
from ablate.attribution.indices import index_weights
from ablate.attribution.lattice import dividends, lattice, term_orders
from ablate.validation import designs, gains, rules
from ablate.validation.check import TRUTHS, Check, loss_lattice, with_replicated_ends
from ablate.validation.estimators import StudyPlan, blocked_plan, independent_plan, simulate
from ablate.validation.gains import simulated_gains
from ablate.validation.recovery import TOKENS, check_recovery, headline_target, recover, train_study
from ablate.validation.simulated import LossCurve, Noise, random_game, random_trainer, run_noise

ROOT = Path(__file__).parents[2]
GAME = loss_lattice()
OWEN = index_weights(GAME, "owen")


def fresh_runs() -> list[tuple[int, int]]:
    return [(run.cell, run.block) for run in lattice_design(GAME, block_size=1).runs]


def test_without_noise_every_channel_of_every_component_is_recovered() -> None:
    trainer = random_trainer(GAME, "three-way", np.random.default_rng(0), noise=Noise(run_sd=0.0))
    study = recover(trainer, fresh_runs())
    table, truth = study.measured, study.truth
    assert table.gains[:, 1:] == pytest.approx(truth[:, 1:], abs=1e-9)
    assert np.abs(table.gains[:, 0] - truth[:, 0]).max() < 0.004, "only the bend of the curve is left"
    assert truth[:, 0] == pytest.approx(OWEN @ trainer.gain)


def test_the_total_is_the_gap_between_the_ends() -> None:
    noise = Noise(run_sd=0.004, rate_sd=0.007)
    trainer = random_trainer(GAME, "saturating", np.random.default_rng(5), noise=noise)
    runs, speeds = train_study(trainer, [(cell, i) for i, cell in enumerate(GAME.cells)])
    target = headline_target(GAME, runs)
    table = measured_table(GAME, runs, speeds, target)
    seconds = []
    for cell in (0, GAME.full):
        i = int(GAME.index(cell)[0])
        (run,) = [r for r in runs if r.cell == cell]
        rate = np.mean(trainer.rates(i, restarts=2))
        seconds.append(log_tokens_to(run.curve, target) + np.log(trainer.flops_per_token[i]) - rate)
    assert table.total == pytest.approx(seconds[0] - seconds[1], abs=1e-9)


def test_eight_components_from_runs_that_vary_six() -> None:
    names = ("mla", "moe", "aux-free", "mtp", "fp8", "dualpipe", "alltoall", "distill")
    requires = {"aux-free": ["moe"], "alltoall": ["moe"]}
    eight = lattice(names, requires)
    rng = np.random.default_rng(40)
    trainer = random_trainer(GAME, "three-way", rng, noise=Noise(run_sd=0.004))
    runs, _ = train_study(trainer, fresh_runs())
    target = headline_target(GAME, runs)
    in_eight = [MeasuredRun(cell=eight.mask(GAME.names(r.cell)), cluster=r.cluster, curve=r.curve) for r in runs]
    speeds = {
        cell: VariantSpeed(flops_per_token=1e9, log_flops_per_s=(33.0 + 0.1 * rng.normal(), 33.0 + 0.1 * rng.normal()))
        for cell in eight.cells
    }
    neutral = ("dualpipe", "alltoall")
    table = measured_table(eight, in_eight, speeds, target, loss_neutral=neutral)
    small = measured_table(GAME, runs, {c: speeds[eight.mask(GAME.names(c))] for c in GAME.cells}, target)
    for k, name in enumerate(names):
        expected = (0.0, 0.0) if name in neutral else (small.gains[names_at(name), 0], small.errors[names_at(name), 0])
        assert (table.gains[k, 0], table.errors[k, 0]) == pytest.approx(expected, abs=1e-12)
    assert (table.errors[[5, 6], 2] > 0).all()
    assert table.by_channel[0] == pytest.approx(small.by_channel[0], abs=1e-9)
    rates = {cell: np.mean(speed.log_flops_per_s) for cell, speed in speeds.items()}
    assert table.by_channel[2] == pytest.approx(rates[eight.full] - rates[0], abs=1e-9)
    with pytest.raises(ValueError, match="moe is said to leave the loss alone, but aux-free requires it"):
        measured_table(eight, in_eight, speeds, target, loss_neutral=("moe", "alltoall"))


def names_at(name: str) -> int:
    return GAME.components.index(name)


def test_runs_that_cannot_be_used_are_named() -> None:
    trainer = random_trainer(GAME, "two-way", np.random.default_rng(6), noise=Noise(run_sd=0.0))
    runs, speeds = train_study(trainer, fresh_runs())
    with pytest.raises(ValueError, match=r"seed \d+, does not cross the target loss"):
        measured_table(GAME, runs, speeds, headline_target(GAME, runs) - 0.5)
    orphan = MeasuredRun(cell=GAME.mask(["aux-free"]), cluster=None, curve=runs[0].curve)
    with pytest.raises(ValueError, match="aux-free is on without moe"):
        measured_table(GAME, [*runs, orphan], speeds, headline_target(GAME, runs))
    with pytest.raises(ValueError, match="nothing is left over for the noise"):
        measured_table(GAME, runs[:48], speeds, headline_target(GAME, runs[:48]), order=5)
    del speeds[GAME.full]
    with pytest.raises(ValueError, match="full has no FLOPs per token"):
        measured_table(GAME, runs, speeds, headline_target(GAME, runs))


def test_the_trainer_repeats_itself_and_shares_seeds_across_variants() -> None:
    noise = Noise(seed_sd=0.02, run_sd=0.0)
    trainer = random_trainer(GAME, "two-way", np.random.default_rng(7), noise=noise)
    assert trainer.train(3, seed=4, tokens=TOKENS) == trainer.train(3, seed=4, tokens=TOKENS)
    shift = [
        np.array(trainer.train(v, seed=4, tokens=TOKENS).loss) - trainer.curve.loss(np.log(TOKENS), trainer.gain[v])
        for v in (0, 3, 47)
    ]
    assert shift[0] == pytest.approx(shift[1])
    assert shift[0] == pytest.approx(shift[2])
    other = trainer.train(3, seed=4, tokens=TOKENS, log2_lr=trainer.log2_best_lr[3] + 1.0)
    assert np.array(other.loss) - np.array(trainer.train(3, seed=4, tokens=TOKENS).loss) == pytest.approx(0.012)


def test_the_trainer_has_the_stated_noise() -> None:
    noise = Noise(seed_sd=0.02, slope_sd=0.01, run_sd=0.005, branch_sd=0.003)
    trainer = random_trainer(GAME, "two-way", np.random.default_rng(8), noise=noise)
    for variant, on in ((0, 0), (47, 6)):
        seen = np.array([trainer.train(variant, seed=s, tokens=TOKENS).loss for s in range(1500)])
        shared = 0.02**2 + on * 0.01**2 + 0.005**2
        covariance = np.full((3, 3), shared) + 0.003**2 * np.eye(3)
        assert np.cov(seen.T) == pytest.approx(covariance, rel=0.12)
        assert seen.mean(axis=0) == pytest.approx(trainer.curve.loss(np.log(TOKENS), trainer.gain[variant]), abs=0.003)


def test_random_truths_have_the_order_they_say() -> None:
    free = lattice(["a", "b", "c", "d"])
    for kind, highest in (("two-way", 2), ("three-way", 3), ("saturating", 4)):
        seen = np.zeros(5)
        for s in range(20):
            parts = np.abs(dividends(free, random_game(free, kind, np.random.default_rng(s))))
            seen = np.maximum(seen, [parts[term_orders(free) == k].max() for k in range(5)])
        assert (seen[1 : highest + 1] > 1e-7).all()
        assert (seen[highest + 1 :] < 1e-12).all()
    with pytest.raises(ValueError, match="choose one of two-way, three-way, saturating"):
        random_game(free, "four-way", np.random.default_rng(0))  # type: ignore[arg-type]


def independent(cells: tuple[int, ...], order: int | None) -> tuple[StudyPlan, list[int | None]]:
    return independent_plan(GAME, cells, OWEN, order=order), [None] * len(cells)


def blocked_study() -> tuple[StudyPlan, list[int | None]]:
    runs = lattice_design(GAME).runs
    seeds: list[int | None] = [run.block for run in runs]
    return blocked_plan(GAME, [run.cell for run in runs], [run.block for run in runs], OWEN), seeds


@pytest.mark.parametrize(
    ("build", "order"),
    [
        (lambda: independent(with_replicated_ends(GAME.cells, GAME), None), None),
        (lambda: independent(with_replicated_ends(optimal_cells(GAME, 32)[0], GAME), 2), 2),
        (blocked_study, None),
    ],
)
def test_the_matrices_are_the_estimators_of_real_tables(
    build: Callable[[], tuple[StudyPlan, list[int | None]]], order: int | None
) -> None:
    plan, clusters = build()
    rng = np.random.default_rng(8)
    truths = np.array([random_game(GAME, "three-way", rng) for _ in range(5)])
    noise = rng.normal(0.0, 0.005, (5, len(plan.cells)))
    outcome = simulate(plan, truths, noise, OWEN)
    runs = truths[:, GAME.index(list(plan.cells))] + noise
    for s in range(5):
        real = estimate(
            GAME,
            Observations(cells=plan.cells, values=tuple(runs[s].tolist()), clusters=tuple(clusters)),
            dict(zip(GAME.components, OWEN, strict=True)),
            order=order,
        )
        for k, line in enumerate(real.lines.values()):
            assert line.value == pytest.approx(outcome.errors[s, k] + OWEN[k] @ truths[s], abs=1e-12)
            assert line.standard_error == pytest.approx(outcome.standard_errors[s, k], rel=1e-9)
            assert line.df == outcome.df


def test_simulated_gains_are_those_of_token_gain() -> None:
    curve = LossCurve()
    rng = np.random.default_rng(9)
    fast = simulated_gains(0.15, 5, rng, 1)[0]
    rng = np.random.default_rng(9)
    x = np.log(np.array([0.25, 0.5, 1.0]) * curve.reference_tokens)
    sides = []
    for gain in (0.0, 0.15):
        trunk = rng.normal(0.0, 0.0035, (1, 5, 1))
        sides.append((curve.loss(x, gain) + trunk + rng.normal(0.0, 0.0035, (1, 5, 3)))[0])
    curves = [
        [DecayedCurve(seed=s, tokens=tuple(np.exp(x)), loss=tuple(row)) for s, row in enumerate(side)] for side in sides
    ]
    target = target_losses({"none": curves[0], "moe": curves[1]})[0]
    gain_at = token_gain(curves[0], curves[1], target.loss)
    assert target.worst == "none"
    assert gain_at.estimate == pytest.approx(fast.mean())
    assert gain_at.high - fast.mean() == pytest.approx(2.776445 * fast.std(ddof=1) / math.sqrt(5), rel=1e-5)


def test_noise_of_blocks_has_the_stated_variances() -> None:
    noise = Noise(seed_sd=0.02, slope_sd=0.01, run_sd=0.005)
    on = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    drawn = run_noise(on, np.array([5, 5, 9]), noise, np.random.default_rng(10), simulations=40_000)
    expected = np.array(
        [
            [0.02**2 + 0.005**2, 0.02**2, 0.0],
            [0.02**2, 0.02**2 + 2 * 0.01**2 + 0.005**2, 0.0],
            [0.0, 0.0, 0.02**2 + 0.01**2 + 0.005**2],
        ]
    )
    assert np.cov(drawn.T) == pytest.approx(expected, abs=1.2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "simulations"),
    [
        (designs.check_lattice, 10_000),
        (designs.check_optimal, 5_000),
        (designs.check_placebo, 5_000),
        (designs.check_blocks, 2_000),
        (gains.check_compute_gain, 50_000),
        (gains.check_learning_rate, 800),
        (rules.check_peeking, 500),
        (rules.check_equivalence, 20_000),
        (designs.check_planner, 1_000),
    ],
)
def test_reduced_coverage(check: Callable[[np.random.Generator, int], list[Check]], simulations: int) -> None:
    missed = [f"{c.name}, {c.setting}: {c.measured}" for c in check(np.random.default_rng(1), simulations) if not c.met]
    assert not missed


@pytest.mark.slow
def test_intervals_of_whole_studies_hold_the_truth_at_the_nominal_rate() -> None:
    checks = check_recovery(np.random.default_rng(2), 12)
    assert max(check.measured["largest gap"] for check in checks) < 1e-9
    # 432 intervals of 72 studies: .93 is two standard errors below the nominal rate.
    assert np.mean([check.measured["coverage"] for check in checks]) >= 0.93


@pytest.mark.slow
def test_two_stages_of_learning_rates_recover_the_tuned_gains() -> None:
    design = screening_design(GAME, rng=np.random.default_rng(50))
    cells = with_replicated_ends(GAME.cells, GAME)
    inside = []
    for s in range(40):
        noise = Noise(run_sd=0.004, branch_sd=0.002)
        trainer = random_trainer(GAME, TRUTHS[s % 3], np.random.default_rng((51, s)), noise=noise)
        screened = [
            Trial(
                cell=cell,
                log2_lr=rate,
                seed=0,
                loss=trainer.train(int(GAME.index(cell)[0]), seed=0, tokens=TOKENS, log2_lr=rate).loss[-1],
            )
            for cell, rate in design
        ]
        rates = predict_optima(fit_surface(GAME, screened))
        runs = []
        for seed, cell in enumerate(cells, start=1):
            at = int(GAME.index(cell)[0])
            curve = trainer.train(at, seed=seed, tokens=TOKENS, log2_lr=float(rates.log2_lr[at]))
            runs.append(MeasuredRun(cell=cell, cluster=None, curve=curve))
        speeds = {cell: VariantSpeed(flops_per_token=1e9, log_flops_per_s=(33.0, 33.0)) for cell in GAME.cells}
        target = headline_target(GAME, runs)
        table = measured_table(GAME, runs, speeds, target)
        slope = loss_slope([r.curve for r in runs if r.cell == 0], target)
        df = float(table.dfs[0, 0])
        tuned = tuned_effects(
            table.gains[:, 0], table.errors[:, 0], df=df, rates=rates, weights=OWEN, nats_per_unit=slope
        )
        truth = OWEN @ trainer.gain
        inside.append((tuned.low <= truth) & (truth <= tuned.high))
    # 240 intervals: .92 is two standard errors below the nominal rate.
    assert np.mean(inside) >= 0.92


def test_published_results_meet_their_bars_and_are_large_enough() -> None:
    document = json.loads((ROOT / "reports" / "attribution" / "coverage.json").read_text())
    assert document["simulations"] >= 3000
    assert all(check["met"] for check in document["checks"])
    for check in document["checks"]:
        # A recovered study gives six intervals and trains 54 runs, so a thousand of them say as much.
        least = 1000 if check["name"].startswith("end to end") else 3000
        assert check["simulations"] == 0 or check["simulations"] >= least
