"""Tables from anywhere: the JSON document, textbook intervals, one sentence for every wrong table."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ablate.attribution.design.exchange import lattice_design
from ablate.attribution.indices import index_weights
from ablate.attribution.lattice import lattice
from ablate.attribution.table.attribute import attribute
from ablate.attribution.table.names import lower_is_better as guess_direction
from ablate.attribution.table.text import render_text

ON = [2.95, 3.01, 2.97, 2.93]
OFF = [3.00, 3.04, 3.03, 2.99]


def write(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def lines_of(header, rows):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def grid(parts, seeds, effects, noise, seed=0, shared=True):
    """A frame with every feasible cell on every seed, additive effects, and a level per seed."""
    generator = np.random.default_rng(seed)
    rows = []
    for s in range(seeds):
        level = generator.normal(0, 0.1)
        for cell in parts.cells:
            on = parts.names(cell)
            loss = 3 + level * shared + sum(effects.get(name, 0.0) for name in on) + generator.normal(0, noise)
            key = {"seed": s} if shared else {}
            rows.append({**{name: "on" if name in on else "off" for name in parts.components}, **key, "loss": loss})
    return pd.DataFrame(rows)


def test_one_component_with_matching_seeds_is_the_paired_t(tmp_path):
    rows = [("on", s, v) for s, v in enumerate(ON)] + [("off", s, v) for s, v in enumerate(OFF)]
    found = attribute(write(tmp_path, lines_of("mtp,seed,loss", rows))).to_json()
    expected = stats.ttest_rel(ON, OFF).confidence_interval(0.95)
    for index in ("first", "last", "owen", "shapley"):
        number = found["effects"]["mtp"][index]
        assert number == pytest.approx({"estimate": -0.05, "low": expected.low, "high": expected.high})
    assert found["total"] == pytest.approx({"estimate": -0.05, "low": expected.low, "high": expected.high})
    effect = found["effects"]["mtp"]
    assert (effect["n"], effect["verdict"], effect["runs_to_resolve"]) == (4, "gain", 0)
    assert found["warnings"] == []


@pytest.mark.parametrize("seeded", [True, False])
def test_one_component_with_other_seeds_is_welch(tmp_path, seeded):
    off = [*OFF, 3.2]
    rows = [("1", s, v) for s, v in enumerate(ON)] + [("0", s + 100, v) for s, v in enumerate(off)]
    header = "mtp,seed,loss" if seeded else "mtp,loss"
    rows = rows if seeded else [(level, value) for level, _, value in rows]
    effect = attribute(write(tmp_path, lines_of(header, rows)), confidence=0.9).to_json()["effects"]["mtp"]
    expected = stats.ttest_ind(ON, off, equal_var=False).confidence_interval(0.9)
    assert (effect["last"]["low"], effect["last"]["high"]) == pytest.approx((expected.low, expected.high))
    assert effect["n"] == 9


def test_the_document_has_every_part_and_is_json():
    parts = lattice(["mla", "moe", "aux-free"], {"aux-free": ["moe"]})
    frame = grid(parts, 4, {"mla": -0.05, "moe": -0.02}, 0.002)
    document = attribute(frame, requires=["aux-free=moe"], margin=0.005).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert {"total", "effects", "interactions", "residual_sd", "design", "warnings"} <= set(document)
    assert list(document["effects"]) == ["mla", "moe", "aux-free"]
    assert [document["effects"][c]["verdict"] for c in document["effects"]] == [
        "gain", "gain", "no effect within the margin",
    ]  # fmt: skip
    shapley = document["effects"]["mla"]["shapley"]
    assert (shapley["estimate"], shapley["low"], shapley["high"]) == (None, None, None)
    assert "prerequisites forbid" in shapley["reason"]
    total = sum(effect["owen"]["estimate"] for effect in document["effects"].values())
    assert total == pytest.approx(document["total"]["estimate"])
    nested = next(pair for pair in document["interactions"] if pair["components"] == ["moe", "aux-free"])
    assert nested["estimate"] is None
    assert "not applicable" in nested["reason"]
    assert document["design"]["kind"] == "lattice"
    assert document["design"]["requires"] == {"aux-free": ["moe"]}
    assert document["residual_sd"] == pytest.approx(0.002, rel=0.5)


def test_every_number_of_a_seeded_lattice_is_the_t_over_seeds():
    parts = lattice("abc")
    frame = grid(parts, 5, {"a": -0.05}, 0.01, seed=4)
    document = attribute(frame).to_json()
    per_seed = frame["loss"].to_numpy().reshape(5, 8)
    for index in ("first", "last", "owen", "shapley"):
        for name, weights in zip(parts.components, index_weights(parts, index), strict=True):
            expected = stats.ttest_1samp(per_seed @ weights, 0).confidence_interval(0.95)
            number = document["effects"][name][index]
            assert (number["low"], number["high"]) == pytest.approx((expected.low, expected.high))


def test_direction_changes_the_verdict_and_never_the_estimate():
    parts = lattice("ab")
    frame = grid(parts, 5, {"a": -0.3, "b": 0.3}, 0.001).rename(columns={"loss": "value"})
    lower, higher = (attribute(frame, lower_is_better=lower).to_json()["effects"] for lower in (True, False))
    assert [lower[c]["verdict"] for c in "ab"] == ["gain", "harm"]
    assert [higher[c]["verdict"] for c in "ab"] == ["harm", "gain"]
    assert lower["a"]["owen"] == higher["a"]["owen"]
    assert lower["a"]["owen"]["estimate"] == pytest.approx(-0.3, abs=0.01)
    with pytest.raises(ValueError, match="'value' does not say whether lower or higher is better"):
        attribute(frame)
    assert attribute(frame.rename(columns={"value": "tokens_per_s"})).effects["a"].verdict == "harm"
    assert [guess_direction(name) for name in ("val_loss", "tokens_per_s", "step_time_s", "x")] == [
        True, False, True, None,
    ]  # fmt: skip


def test_log_estimates_are_those_of_the_logarithm(tmp_path):
    rows = [("on", s, np.exp(v)) for s, v in enumerate(ON)] + [("off", s, np.exp(v)) for s, v in enumerate(OFF)]
    found = attribute(write(tmp_path, lines_of("a,seed,seconds", rows)), log=True).to_json()
    assert found["effects"]["a"]["owen"]["estimate"] == pytest.approx(-0.05)
    assert found["log"] is True
    with pytest.raises(ValueError, match="line 3: seconds is -1, and a logarithm"):
        attribute(write(tmp_path, "a,seconds\non,1\noff,-1\n"), log=True)


def test_levels_may_be_written_in_many_ways():
    frame = {"a": [1, "0", "TRUE", "False", "yes", "no", "On", "OFF"], "loss": [1, 2, 1.1, 2.1, 1.2, 2.2, 1.3, 2.3]}
    assert attribute(frame).effects["a"].indices["last"].estimate == pytest.approx(-1.0)
    booleans = pd.DataFrame({"a": [True, False, True, False], "loss": [1.0, 2.0, 1.1, 2.1]})
    assert attribute(booleans).effects["a"].indices["last"].estimate == pytest.approx(-1.0)
    floats = pd.DataFrame({"a": [1.0, 0.0, 1.0, 0.0], "seed": [0.0, 0.0, 1.0, 1.0], "loss": [1.0, 2.0, 1.1, 2.2]})
    assert attribute(floats).design["seed_layout"] == "complete"


def test_leave_one_out_tables_define_last_only(tmp_path):
    cells = [("on", "on"), ("off", "on"), ("on", "off")]
    values = np.random.default_rng(0).normal(0, 0.01, (4, 3)) + [2.0, 2.1, 2.0]
    rows = [(*cell, s, values[s, k]) for s in range(4) for k, cell in enumerate(cells)]
    document = attribute(write(tmp_path, lines_of("a,b,seed,loss", rows))).to_json()
    effect = document["effects"]["a"]
    expected = stats.ttest_rel(values[:, 0], values[:, 1]).confidence_interval(0.95)
    assert (effect["last"]["low"], effect["last"]["high"]) == pytest.approx((expected.low, expected.high))
    assert (effect["verdict"], effect["verdict_from"]) == ("gain", "last")
    for index in ("first", "owen", "shapley"):
        assert effect[index]["estimate"] is None
        assert "no run of none" in effect[index]["reason"]
    assert document["total"]["estimate"] is None
    assert document["design"]["kind"] == "leave-one-out"


def test_add_one_in_and_first_last_tables():
    parts = lattice("abc")
    frame = grid(parts, 3, {"a": -0.05, "b": 0.02}, 0.001)
    size = frame[["a", "b", "c"]].eq("on").sum(axis=1)
    added = attribute(frame[size <= 1]).to_json()
    assert added["design"]["kind"] == "add-one-in"
    assert added["effects"]["b"]["verdict"] == "harm"
    assert added["effects"]["b"]["last"]["estimate"] is None
    both = attribute(frame[size != 9]).to_json()
    assert both["design"]["kind"] == "factorial"
    four = grid(lattice("abcd"), 3, {"a": -0.05, "b": 0.02}, 0.001)
    size = four[list("abcd")].eq("on").sum(axis=1)
    ends = attribute(four[size.isin([0, 1, 3, 4])]).to_json()
    assert ends["design"]["kind"] == "first-last"
    assert ends["effects"]["a"]["owen"]["estimate"] == pytest.approx(-0.05, abs=0.005)
    assert any("more than 2 components are zero" in warning for warning in ends["warnings"])


def test_fractions_name_what_they_assume():
    parts = lattice("abcd")
    frame = grid(parts, 3, {"a": -0.05}, 0.001)
    even = frame[frame[list("abcd")].eq("on").sum(axis=1) % 2 == 0]
    document = attribute(even).to_json()
    assert document["design"]["kind"] == "fraction"
    assert document["effects"]["a"]["owen"]["estimate"] == pytest.approx(-0.05, abs=0.004)
    assert document["effects"]["a"]["verdict"] == "gain"
    assert "assume" in document["warnings"][0]
    pair = document["interactions"][0]
    assert pair["estimate"] is None


def test_one_run_a_variant_gets_a_stated_noise_or_none():
    small = attribute(grid(lattice("ab"), 1, {"a": -0.05}, 0.001, shared=False)).to_json()
    number = small["effects"]["a"]["owen"]
    assert number["estimate"] == pytest.approx(-0.05, abs=0.01)
    assert (number["low"], small["effects"]["a"]["verdict"]) == (None, "not resolved")
    assert small["effects"]["a"]["runs_to_resolve"] is None
    assert "no variant ran twice" in number["reason"]
    larger = attribute(grid(lattice("abcde"), 1, {"a": -0.05}, 0.001, shared=False)).to_json()
    assert larger["effects"]["a"]["verdict"] == "gain"
    assert "at most 3 components" in larger["warnings"][0]
    assert larger["residual_sd"] == pytest.approx(0.001, rel=0.9)


def test_one_seed_for_everything_is_told_and_gets_no_interval():
    document = attribute(grid(lattice("abc"), 1, {"a": -0.05}, 0.001)).to_json()
    assert document["effects"]["a"]["owen"]["low"] is None
    assert "one seed for all variants" in document["effects"]["a"]["owen"]["reason"]


def test_a_seed_missing_on_one_side_refuses_the_interval(tmp_path):
    rows = [("on", s, v) for s, v in enumerate(ON)] + [("off", s, v) for s, v in enumerate(OFF[:3])]
    found = attribute(write(tmp_path, lines_of("mtp,seed,loss", rows)))
    effect = found.to_json()["effects"]["mtp"]
    assert (effect["owen"]["low"], effect["verdict"]) == (None, "not resolved")
    assert "seed 3 has no run of none" in effect["owen"]["reason"]
    assert effect["owen"]["reason"] in found.warnings
    assert render_text(found).count("seed 3 has no run of none") == 1


def test_a_lattice_in_blocks_of_seeds_is_read_as_such():
    parts = lattice(["mla", "moe", "aux-free", "mtp", "fp8", "distill"], {"aux-free": ["moe"]})
    generator = np.random.default_rng(6)
    design = lattice_design(parts)
    level = generator.normal(0, 0.1, design.blocks)
    rows = [
        {**{name: int(name in parts.names(run.cell)) for name in parts.components}, "seed": run.block,
         "loss": 3 + level[run.block] - 0.05 * (run.cell & 1) + generator.normal(0, 0.003)}
        for run in design.runs
    ]  # fmt: skip
    document = attribute(pd.DataFrame(rows), requires=["aux-free=moe"], margin=0.005).to_json()
    assert document["design"] | {"kind": "lattice", "seed_layout": "blocked", "seeds": 15} == document["design"]
    verdicts = {name: effect["verdict"] for name, effect in document["effects"].items()}
    assert verdicts.pop("mla") == "gain"
    assert set(verdicts.values()) <= {"no effect within the margin", "not resolved"}
    assert document["effects"]["mla"]["owen"]["estimate"] == pytest.approx(-0.05, abs=0.005)
    assert document["residual_sd"] == pytest.approx(0.003, rel=0.5)


def test_identical_records_have_no_effect_and_no_winner():
    parts = lattice("abc")
    for shared in (True, False):
        frame = grid(parts, 3, {}, 0.0, shared=shared)
        frame["loss"] = 0.1
        found = attribute(frame)
        for effect in found.effects.values():
            number = effect.indices["owen"]
            assert number.estimate == number.low + number.high == 0.0
            assert number.high > 0.02, "a table that shows one digit cannot show less than rounding to it hides"
            assert effect.verdict == "not resolved"
        assert "gain" not in render_text(found)
        assert any("rounding (to 0.1)" in warning for warning in found.warnings)


def test_constant_columns_are_told_and_left_out():
    frame = grid(lattice("ab"), 4, {"a": -0.05}, 0.001)
    frame["fp8"] = "on"
    found = attribute(frame, requires=["a=fp8"])
    assert list(found.effects) == ["a", "b"]
    assert "fp8 is on in every row" in found.warnings[0]
    frame["fp8"] = "off"
    with pytest.raises(ValueError, match="line 3: a is on without fp8"):
        attribute(frame, requires=["a=fp8"])


def test_blocks_change_the_owen_value_only():
    parts = lattice("abc")
    frame = grid(parts, 3, {}, 0.05, seed=9)
    plain, blocked = attribute(frame).to_json(), attribute(frame, blocks=["a,b"]).to_json()
    mean = frame["loss"].to_numpy().reshape(3, 8).mean(0)
    expected = index_weights(lattice("abc", blocks=["ab"]), "owen") @ mean
    for i, name in enumerate("abc"):
        assert blocked["effects"][name]["owen"]["estimate"] == pytest.approx(expected[i])
        assert blocked["effects"][name]["shapley"] == plain["effects"][name]["shapley"]
    assert blocked["design"]["blocks"] == [["a", "b"], ["c"]]


def test_gain_and_harm_must_survive_holm():
    """Two effects whose own intervals just exclude zero: one alone would be a gain, six together are not."""
    differences = np.array([1.0, 0.2, 0.6, 0.9]) * -0.01
    for components in (1, 6):
        parts = lattice([f"c{i}" for i in range(components)])
        cells = [0, *(1 << i for i in range(components))]
        rows = [
            {**{n: int(n in parts.names(cell)) for n in parts.components}, "seed": s,
             "loss": 3.0 + (differences[s] if cell == 1 else 0.001 * (-1) ** s * (cell > 1))}
            for s in range(4) for cell in cells
        ]  # fmt: skip
        found = attribute(pd.DataFrame(rows))
        number = found.effects["c0"].indices["first"]
        assert number.high < 0
        assert found.effects["c0"].verdict == ("gain" if components == 1 else "not resolved")
        if components > 1:
            assert any("Holm" in warning for warning in found.warnings)
            assert found.effects["c0"].simultaneous.high > number.high
            assert found.effects["c0"].runs_to_resolve > 0


@pytest.mark.slow
def test_placebo_components_win_or_lose_at_most_at_the_nominal_rate():
    parts = lattice("abc")
    called = 0
    for seed in range(150):
        found = attribute(grid(parts, 4, {}, 0.01, seed=seed))
        called += any(effect.verdict in ("gain", "harm") for effect in found.effects.values())
    assert called / 150 < 0.09


def test_pandas_and_csv_and_row_order_agree(tmp_path):
    frame = grid(lattice("ab"), 3, {"a": -0.05}, 0.01)
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False, float_format="%.17g")
    shuffled = frame.sample(frac=1, random_state=1)
    one, two, three = (a.to_json() for a in (attribute(frame), attribute(path), attribute(shuffled)))
    assert one == two
    assert three["effects"]["a"]["owen"] == pytest.approx(one["effects"]["a"]["owen"])


def test_the_text_shows_numbers_verdicts_and_warnings():
    frame = grid(lattice(["mla", "moe", "aux-free"], {"aux-free": ["moe"]}), 4, {"mla": -0.05}, 0.002)
    text = render_text(attribute(frame, requires=["aux-free=moe"], margin=0.005))
    assert text.isascii()
    assert "mla" in text
    assert "gain" in text
    assert "Total, full minus none" in text
    assert "paired t over 4 seeds" in text
    assert "not applicable" not in text
    assert max(map(len, text.splitlines())) < 180


GOOD = "a,b,seed,loss\non,on,0,1\noff,on,0,2\non,off,0,3\noff,off,0,4\non,on,1,1\noff,on,1,2\non,off,1,3\noff,off,1,4\n"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (GOOD.replace("on,off,0,3\n", "on,off,0,wide\n"), {}, "line 4: loss is 'wide', which is not a number"),
        (GOOD.replace("on,off,0,3\n", "on,off,0,nan\n"), {}, "line 4: loss is 'nan'; a diverged"),
        (GOOD.replace("on,off,0,3\n", "on,off,0,inf\n"), {}, "line 4: loss is 'inf'"),
        (GOOD.replace("on,off,0,3\n", "onn,off,0,3\n"), {}, "line 4: a is 'onn'"),
        (GOOD.replace("on,off,0,3\n", "on,off,,3\n"), {}, "line 4 has no seed"),
        (GOOD + "on,on,1,5\n", {}, "line 10 repeats seed 1 of the variant in line 6"),
        (GOOD.replace("on,off,0,3\n", "on,off,0\n"), {}, "line 4 has 3 fields and the header has 4"),
        (GOOD, {"requires": ["b=a"]}, "line 3: b is on without a, which it requires"),
        (GOOD, {"requires": ["b=a", "a=b"]}, "circle"),
        (GOOD, {"requires": ["b"]}, "'b' cannot be read; write A=B"),
        (GOOD, {"requires": ["b=mlaa"]}, "names 'mlaa', which is not a component"),
        (GOOD, {"blocks": ["a,,b"]}, "'a,,b' cannot be read"),
        (GOOD, {"blocks": ["a,x"]}, "names 'x'"),
        (GOOD, {"metric": "los"}, "no column 'los'; did you mean 'loss'"),
        (GOOD, {"metric": "seed"}, "cannot be the metric"),
        (GOOD, {"margin": -0.1}, "margin -0.1"),
        (GOOD, {"confidence": 95}, "confidence 95"),
        ("a,b,seed,loss\non,on,0,1\noff,off,0,2\n", {}, "do not determine the effects of a, b"),
        ("a,b,loss\non,on,1\noff,off,2\non,off,3\n", {}, "add runs of a=off b=on"),
        ("a,loss\non,1\n", {}, "the table has 1 run;"),
        ("a,loss\n", {}, "the table has 0 runs"),
        ("a,loss\non,1\non,2\n", {}, "never change"),
        ("x,loss\n3,1\n4,2\n", {"metric": "loss"}, "x has two values: say which is on, as in --on x=3"),
        ("x,loss\n3,1\n4,2\n5,2\n", {"metric": "loss"}, "no component column: of x none holds"),
        ("loss\n1\n2\n", {}, "no component column: there is no other"),
        ("a,loss,time\non,1,2\noff,2,3\n", {}, r"several possible metrics \(loss, time\)"),
        ("a,note\non,x\noff,y\n", {}, "no column holds numbers"),
        ("a,ok\non,1\noff,0\n", {}, "name it with --metric"),
        ("a,a,loss\non,on,1\noff,off,2\n", {}, "'a' appears twice"),
        ("", {}, "no header"),
        (",loss\non,1\noff,2\n", {}, "no header"),
    ],
)
def test_wrong_tables_get_one_sentence(tmp_path, text, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        attribute(write(tmp_path, text), **options)
    assert "\n" not in str(caught.value)


def test_other_ways_to_be_wrong(tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        attribute(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match=r"columns have \[1, 2\] rows"):
        attribute({"a": ["on", "off"], "loss": [1.0]})
    ignored = attribute(pd.DataFrame({"a": [1, 0, 1, 0], "loss": [1.0, 2.0, 1.1, 2.2], "note": list("wxyz")}))
    assert "not used although they vary: note" in ignored.warnings[0]
    named = attribute(pd.DataFrame({"a": [1, 0, 1, 0], "solved": [1, 0, 1, 1]}), metric="solved", lower_is_better=False)
    assert list(named.effects) == ["a"]


def test_the_p_values_of_pairs_are_adjusted_over_all_pairs():
    found = attribute(grid(lattice("abcd"), 5, {}, 0.01, seed=3))
    raw = [
        2 * stats.t.sf(abs(n.estimate) / ((n.high - n.low) / 2 / stats.t.ppf(0.975, 4)), 4)
        for n in (pair.number for pair in found.interactions)
    ]
    expected = stats.false_discovery_control(raw)
    assert [pair.adjusted_p for pair in found.interactions] == pytest.approx(expected.tolist())
    assert not np.allclose(raw, expected)
