"""What a report says was held equal, and what it says is not shown, in every design."""

import fake_study as fake
import pytest

from ablate.components.variants import Variant
from ablate.presets import preset
from ablate.report import build
from ablate.report.content import ReportContent


def of_levels(tmp_path, *levels, **cost) -> ReportContent:
    variants = [fake.variant(f"v{i}", each, range(2)) for i, each in enumerate(levels)]
    variants[0]["cost"] |= cost
    records = [fake.record(f"v{i}", s, 3.2 + 0.01 * i, each) for i, each in enumerate(levels) for s in range(2)]
    return build(fake.write_study(tmp_path / "s", fake.plan(variants, seeds=[0, 1], design="lattice"), records))


def test_a_design_has_the_limits_of_each_of_its_components(tmp_path):
    off = fake.FULL | {"mtp": "next-token"}
    content = of_levels(tmp_path, fake.FULL, off, fake.FULL | {"mla": "gqa"}, off | {"mla": "gqa"})
    said = " ".join(content.limits)
    assert "(mtp) is not made for loss alone" in said
    assert "(mla) is not made for loss alone" in said
    assert "(moe) is not made for loss alone" not in said


def test_the_arithmetic_that_equal_flops_leaves_out_is_told_where_equality_is(tmp_path):
    off = fake.FULL | {"mtp": "next-token"}
    (matched, *_) = of_levels(tmp_path, fake.FULL, off, uncounted_router_flops_per_token=60_000).held_equal
    assert matched.label == "Matched"
    assert "between 0 % and 1 % of a variant's FLOPs, most in v0" in matched.value
    (matched, *_) = of_levels(tmp_path / "none", fake.FULL, off).held_equal
    assert "router" not in matched.value


def test_the_router_is_priced_beside_the_flops_and_not_in_them():
    base = preset("nano")
    cost = Variant.full(base).resolve(base).model.cost(base.trainer.sequence_length).summary()
    share = cost["uncounted_router_flops_per_token"] / cost["training_flops_per_token"]
    assert share == pytest.approx(0.008, abs=0.004)
    dense = Variant.none().resolve(base).model.cost(base.trainer.sequence_length).summary()
    assert dense["uncounted_router_flops_per_token"] == 0


def test_noise_of_two_seeds_is_told_to_be_hardly_known(tmp_path):
    plan = fake.plan([fake.variant("full", fake.FULL, range(2)),
                      fake.variant("-mtp", fake.FULL | {"mtp": "next-token"}, range(2))], seeds=[0, 1])  # fmt: skip
    records = fake.records()
    content = build(fake.write_study(tmp_path / "s", plan, [*records[:2], *records[5:7]]))
    ((_, sd, *_, target, _),) = content.noise.rows
    value, ends = sd.split(" (")
    low, high = map(float, ends.rstrip(")").split(" to "))
    assert low == pytest.approx(0.446 * float(value), rel=0.1)
    assert high == pytest.approx(31.9 * float(value), rel=0.1)
    assert "up to" in target
    assert any("interval" in note for note in content.effect_notes if note.startswith("Noise: runs"))
