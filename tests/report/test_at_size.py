"""FLOPs per token at another size are that preset's closed form, and are never called measured."""

import fake_study as fake
import pytest

from ablate.report import build


def folder(tmp_path, off):
    plan = fake.plan([fake.variant("full", fake.FULL, range(5)), fake.variant("-mtp", off, range(5))])
    records = fake.records()[:5] + [fake.record("-mtp", s, x, off) for s, x in enumerate(fake.WITHOUT_LOSSES)]
    return fake.write_study(tmp_path / "s", plan, records)


def test_multi_token_prediction_costs_four_per_cent_at_the_size_of_v3(tmp_path):
    table = build(folder(tmp_path, fake.FULL | {"mtp": "next-token"})).at_size
    assert table.title.endswith("v3-671b")
    # 249.819 GFLOP a token without it and 259.997 with it, as `account` prints them; 4.8 and 6.0 MFLOP in the study.
    assert table.rows == (("mtp, instead of next-token", "0.80×", "0.96×", "–", "–"),)
    assert "is an assumption" in table.note


def test_a_component_that_the_preset_has_no_sizes_for_is_left_out_by_name(tmp_path):
    made = folder(tmp_path, fake.FULL | {"mtp": "next-token"})
    with pytest.raises(
        ValueError, match="shown at llama3-8b: mtp is left out: preset llama3-8b gives no sizes for mtp"
    ):
        build(made, "llama3-8b")
    with pytest.raises(ValueError, match="v3-671b"):
        build(made, "v3-671")
