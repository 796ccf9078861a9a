"""The price of a plan is arithmetic on it, and the width to expect is that which the report will have."""

from __future__ import annotations

import math

import pytest
from factor_study import noise, planned, result, study

from ablate.attribution.verdicts import t_quantile
from ablate.documents import read_json
from ablate.presets.noise import FILE
from ablate.runs.plan import PlannedVariant
from ablate.sweep.price import Noise, expected_half_width, lines, price, published_noise

KNOWN = Noise(pair_sd=0.01, run_sd=0.02, origin="a study")


def test_sums_over_all_runs_with_their_branches() -> None:
    plan, runs = planned(study(preset="nano", disable=("mtp",)))
    plan = plan.with_speeds({v.name: 0.5 for v in plan.variants})
    found = price(plan, n_parallel=2, per_hour=3.0, noise=None)
    steps = {v.name: v.n_steps + v.n_branch_steps for v in plan.variants}
    assert all(v.n_branch_steps for v in plan.variants)
    assert found.flops == pytest.approx(sum(4 * v.flops * steps[v.name] / v.n_steps for v in plan.variants))
    assert found.device_s == pytest.approx(4 * 0.5 * sum(steps.values()))
    assert found.wall_s == pytest.approx(found.device_s / 2)
    assert found.cost == pytest.approx(3.0 * found.device_s / 3600)
    assert found.bytes_per_run == 16 * max(v.cost["trained_parameters"] for v in plan.variants)
    assert found.n_runs == len(runs) == 8
    assert "name a study of this preset with --noise" in " ".join(lines(found, 3.0))


def test_runs_that_have_ended_cost_nothing_more() -> None:
    plan, _ = planned(study(preset="nano", disable=("mtp",)))
    plan = plan.with_speeds({v.name: 0.5 for v in plan.variants})
    first, *others = plan.variants
    done = {*first.run_ids, others[0].run_ids[0], "a run of another study"}
    found = price(plan, n_parallel=2, per_hour=3.0, noise=None, done=done)
    assert (found.n_runs, found.n_left) == (8, 3)
    assert found.device_s == pytest.approx(3 * 0.5 * others[0].n_all_steps)
    assert found.cost == pytest.approx(3.0 * found.device_s / 3600)
    assert found.flops == pytest.approx(3 * others[0].flops * others[0].n_all_steps / others[0].n_steps)
    assert "8 runs in all, of which 5 have ended; what follows is of the rest." in next(lines(found, 3.0))
    nothing = price(plan, n_parallel=2, per_hour=3.0, noise=None)
    assert next(lines(nothing, 3.0)).endswith("8 runs in all.")


def test_what_is_not_known_is_said() -> None:
    plan, _ = planned(study(preset="nano", disable=("mtp",)))
    found = price(plan, n_parallel=1, per_hour=3.0, noise=None)
    assert found.cost is None
    assert "not known without the hours" in " ".join(lines(found, 3.0))
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="--price"):
            price(plan, n_parallel=1, per_hour=wrong, noise=None)


def test_the_width_of_pairs_is_that_of_their_t_interval() -> None:
    plan, _ = planned(study(preset="nano", disable=("mtp",), n_seeds=5))
    width, origin = expected_half_width(plan, KNOWN)
    assert width == pytest.approx(t_quantile(0.975, 4) * 0.01 / math.sqrt(5))
    assert origin == "a study"
    one, _ = planned(study(preset="nano", disable=("mtp",), n_seeds=1))
    assert expected_half_width(one, KNOWN)[0] is None


def test_without_a_study_named_the_noise_is_what_was_published_for_such_runs() -> None:
    asked = study(preset="cpu", disable=("mtp",))
    plan, _ = planned(asked)
    found = published_noise(plan, asked.load_preset())
    (written,) = (noise for noise in read_json(FILE, "the noise", "") if noise["preset"] == "cpu")
    assert found is not None
    assert found.pair_sd == written["pair_sd_nats"]
    assert "reports/cpu-mtp (mtp, 4 degrees" in found.origin
    other = study(preset="cpu", disable=("mtp",), budget=1e9)
    assert published_noise(planned(other)[0], other.load_preset()) is None


def test_the_width_of_a_lattice_is_that_of_the_report() -> None:
    """On average over draws: the interval's own width varies with the residual that it is taken from."""
    asked = study(preset="nano", design="lattice", disable=("mtp", "fp8", "mla"), n_seeds=3)
    plan, _ = planned(asked)
    expected, _ = expected_half_width(plan, Noise(pair_sd=0.01 * math.sqrt(2), run_sd=None, origin=""))
    jitter = noise(0.01)

    def loss(v: PlannedVariant, seed: int) -> float:
        return 3.0 + 0.1 * seed + jitter()

    squares = []
    for _ in range(12):
        effects = result(asked, loss).attribution.effects.values()
        ends = [(e.indices["owen"].low, e.indices["owen"].high) for e in effects]
        squares += [((high - low) / 2) ** 2 for low, high in ends]
    assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(expected, rel=0.25)
