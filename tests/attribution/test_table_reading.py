"""What people export is read as they meant it: formats, levels, numbers, seeds, states, histories, arms, covariates."""

import bz2
import gzip
import io
import json
import lzma
import sqlite3
import sys

import numpy as np
import optuna
import pandas as pd
import pytest
from scipy import stats

from ablate.attribution.table.attribute import attribute
from ablate.attribution.table.names import is_seed, is_step, lower_is_better

ON = [1.7268, 1.7523, 1.7326, 1.7351]
OFF = [1.6895, 1.6957, 1.7042, 1.6883]
SEEDS = ["6242", "2026", "3740", "3242"]
PAIRED = stats.ttest_rel(ON, OFF)


def table(on="True", off="False", sep=",", number=str, seeds=SEEDS, metric="val_loss"):
    lines = [sep.join(["rope", "seed", metric])]
    for seed, x, y in zip(seeds, ON, OFF, strict=True):
        lines += [sep.join([on, seed, number(x)]), sep.join([off, seed, number(y)])]
    return "\n".join(lines) + "\n"


def frame():
    return pd.read_csv(io.StringIO(table()))


def read(tmp_path, content, **options):
    path = tmp_path / "table"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return attribute(path, **options)


def only(found):
    (effect,) = found.effects.values()
    return effect.indices["last"]


def assert_paired(found, scale=1.0):
    interval = PAIRED.confidence_interval(0.95)
    number = only(found)
    expected = [scale * x for x in (np.mean(ON) - np.mean(OFF), interval.low, interval.high)]
    assert sorted([number.estimate, number.low, number.high]) == pytest.approx(sorted(expected))
    return found


def decimal_comma(value):
    return str(value).replace(".", ",")


def parquet():
    data = io.BytesIO()
    frame().to_parquet(data)
    return data.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        table(sep=";", number=decimal_comma),
        table(sep="\t", number=decimal_comma),
        table(number=lambda v: f'"{decimal_comma(v)}"'),
        "sep=;\n" + table(sep=";"),
        table(sep="|"),
        "# exported yesterday\n\n" + table(),
        table(sep="   "),
        table().replace("\n", "\r\n"),
        table().replace("\n", "\r"),
        table().replace("\n", ",\n"),
        table().encode("utf-8-sig"),
        table(sep="\t").encode("utf-16"),
        "|rope|seed|val_loss|\n|:--|---|---|\n|" + table("✓", "", sep="|").split("\n", 1)[1].replace("\n", "|\n|")[:-1],
        gzip.compress(table().encode(), mtime=0),
        bz2.compress(table().encode()),
        lzma.compress(table().encode()),
        frame().to_csv().encode(),
        parquet(),
        *(frame().to_json(orient=layout) for layout in ("records", "split", "columns", "index", "table")),
        frame().to_json(orient="records", lines=True),
        json.dumps({"columns": list(frame().columns), "data": frame().to_numpy().tolist()}),
        pd.DataFrame({"summary": frame()[["val_loss"]].assign(nothing=np.nan).to_dict("records"),
                      "config": frame()[["rope", "seed"]].to_dict("records"), "name": list("abcdefgh")}).to_csv(),
    ],
)  # fmt: skip
def test_formats(tmp_path, content):
    assert_paired(read(tmp_path, content))


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(table().encode(), mtime=0))))
    assert_paired(attribute("-"))


@pytest.mark.parametrize(
    "pair",
    ["yes/no", "Y/N", "1.0/0.0", "✓/✗", "✔/–", "✅/❌", "enabled/disabled", "with/without", "+a/-a", "a/no a", "x/"],
)
def test_levels(tmp_path, pair):
    assert_paired(read(tmp_path, table(*pair.split("/"))))


def test_levels_with_a_slash_and_text_of_two_values(tmp_path):
    assert_paired(read(tmp_path, table("w/ rope", "w/o rope")))
    assert_paired(read(tmp_path, table("rope", "learned"), on=["rope=rope"]))
    assert_paired(read(tmp_path, table("learned", "rope"), on=["rope=learned"]))
    with pytest.raises(
        ValueError, match=r"column rope has 2 values \(rope, learned\); say which of them is on with --on"
    ):
        read(tmp_path, table("rope", "learned"))


@pytest.mark.parametrize(
    ("number", "scale"),
    [
        (lambda v: f"{v:.4f}%", 1),
        (lambda v: f"{v * 1e8:,.0f}".replace(",", "."), 1e8),
        (lambda v: f'"{v * 1e7:,.1f}"', 1e7),
        (lambda v: f'"{v * 1e7:,.1f}"'.translate(str.maketrans(",.", ".,")), 1e7),
        (lambda v: f"{v * 1e5:,.0f}".replace(",", "\u202f"), 1e5),
        (lambda v: f"{v * 1e5:,.0f}".replace(",", "'"), 1e5),
        (lambda v: f"{v} ± 0.02", 1),
        (lambda v: f"{v} +/- 0.02", 1),
        (lambda v: f"{v}(12)", 1),
        (lambda v: f"\u2212{v}", -1),
        (lambda v: f"{v * 1e-9:.4e}", 1e-9),
    ],
)
def test_numbers(tmp_path, number, scale):
    assert_paired(read(tmp_path, table(number=number, metric="wer")), scale)


def test_cells_may_be_long_and_hold_any_separator_of_lines(tmp_path):
    note = f'"a\nb{chr(0x2028)}c{chr(0x85)}d{chr(11)}' + "x" * 200_000 + '"'
    lines = table().splitlines()
    content = "\n".join([lines[0] + ",note", *(f"{line},{note}" for line in lines[1:])])
    assert_paired(read(tmp_path, content))
    with pytest.raises(ValueError, match="line 5: val_loss is 'wide'"):
        read(tmp_path, content.replace("False,6242,1.6895", "False,6242,wide"))


@pytest.mark.parametrize("name", ["seed", "random_seed", "trainSeed", "run", "rep", "fold_idx", "seed_everything"])
def test_a_seed_is_one_under_any_name_and_never_a_component(tmp_path, name):
    content = table(seeds=["0", "1", "2", "3"]).replace("seed", name)
    assert_paired(read(tmp_path, content))
    two = "\n".join(content.splitlines()[:5])
    assert list(read(tmp_path, two).effects) == ["rope"]


def test_seeds_are_named_and_keep_64_bits(tmp_path):
    assert not any(map(is_seed, ("run_time", "run_id", "repetition_penalty", "brand")))
    assert_paired(read(tmp_path, table(seeds=[str(2**64 - k) for k in range(1, 5)])))
    big = pd.read_csv(io.StringIO(table(seeds=[str(2**63 - k) for k in range(1, 5)])))
    assert_paired(attribute(big))
    assert_paired(read(tmp_path, table().replace("seed", "lot"), seed="lot"))
    assert_paired(read(tmp_path, table(seeds=[f"{s}.0" for s in SEEDS]).replace("False,6242.0", "False,6242")))


def test_one_seed_run_again_and_again_pairs_nothing(tmp_path):
    found = read(tmp_path, table(seeds=["1337"] * 4))
    expected = stats.ttest_ind(ON, OFF, equal_var=False).confidence_interval(0.95)
    assert (only(found).low, only(found).high) == pytest.approx((expected.low, expected.high))
    assert "seed is 1337 in every row" in found.warnings[0]


def test_unfinished_and_blank_rows_are_left_out_and_counted(tmp_path):
    states = "\n".join(f"{line},{'State' if i == 0 else 'finished'}" for i, line in enumerate(table().splitlines()))
    found = assert_paired(read(tmp_path, states + "\nTrue,777,,crashed\nTrue,778,1.1,running\n"))
    assert found.warnings == ("2 of 10 rows left out because their run did not finish (1 crashed, 1 running)",)
    found = assert_paired(read(tmp_path, table() + "True,777,\n"))
    assert found.warnings == ("1 row left out because val_loss is blank (line 10)",)
    found = read(tmp_path, table().replace("True,6242,", ",6242,"))
    assert "1 row left out because rope is blank (line 2)" in found.warnings
    with pytest.raises(ValueError, match="line 2: val_loss is 'nan'; a diverged"):
        read(tmp_path, table().replace("1.7268", "nan"))


@pytest.mark.parametrize("nothing", ["N/A", "null", "None", "--"])
def test_words_for_nothing_are_blank(tmp_path, nothing):
    assert (
        "1 row left out because rope is blank"
        in read(tmp_path, table().replace("True,6242,", f"{nothing},6242,")).warnings[0]
    )
    assert "1 row left out because val_loss is blank" in read(tmp_path, table() + f"True,777,{nothing}\n").warnings[0]
    assert list(attribute(arms("none", {"rope": -0.3})).effects) == ["pos=rope"]


def test_a_column_that_is_mostly_blank_is_no_component_but_named(tmp_path):
    lines = table().splitlines()
    gap = "\n".join([lines[0] + ",offload", lines[1] + ",True", lines[2] + ",False", *(x + "," for x in lines[3:])])
    assert "not used although they vary: offload" in assert_paired(read(tmp_path, gap)).warnings[0]
    found = read(tmp_path, gap, components=["offload"])
    assert found.effects["offload"].verdict == "confounded with rope"


def test_steps_are_no_runs(tmp_path):
    rows = [(level, s, step, 3 - step / 10 - level * step / 25 + (s * level) / 50)
            for s in range(3) for level in (0, 1) for step in range(1, 6)]  # fmt: skip
    history = pd.DataFrame(rows, columns=["a", "seed", "epoch", "loss"])
    with pytest.raises(ValueError, match=r"the rows are steps of 6 runs \(column epoch\).*--last"):
        attribute(history)
    found = attribute(history.sample(frac=1, random_state=0), last=True)
    assert only(found).estimate == pytest.approx(-0.18)
    assert found.warnings[0] == "24 rows left out: of each run only the last epoch counts"
    assert only(attribute(history, where=["epoch=2"])).estimate == pytest.approx(-0.06)
    with pytest.raises(ValueError, match="steps of 2 runs"):
        attribute(history[history.seed == 0].drop(columns="seed"))
    finals = history[history.epoch == 5].assign(epoch=[5, 4, 5, 5, 3, 5])
    assert "not used although they vary: epoch" in attribute(finals).warnings[0]
    assert [is_step(n) for n in ("trainer/global_step", "tokens_per_step", "step_time_s")] == [True, False, False]


def test_what_changes_together_with_a_component_takes_its_verdict(tmp_path):
    lines = table().splitlines()
    both = "\n".join([lines[0] + ",block", *(f"{x},{512 if x[0] == 'T' else 256}" for x in lines[1:])])
    found = read(tmp_path, both)
    assert found.effects["rope"].verdict == "confounded with block"
    assert found.effects["rope"].runs_to_resolve is None
    assert "rope is confounded with block" in found.warnings[0]
    crossed = "\n".join([lines[0] + ",block", *(f"{x},{512 if i % 4 < 2 else 256}" for i, x in enumerate(lines[1:]))])
    found = read(tmp_path, crossed)
    assert found.effects["rope"].verdict == "harm"
    assert "not used although they vary: block" in found.warnings[0]
    result = both.replace("block", "n_params")
    assert read(tmp_path, result).effects["rope"].verdict == "harm", "what follows from a component is no rival of it"


def trials(n=60, effect=0.0):
    """A search that settled on one component and a good learning rate together."""
    generator = np.random.default_rng(3)
    moe = generator.random(n) < 0.5
    log_lr = generator.uniform(-4, -3, n) + moe * generator.uniform(0.2, 1.0, n)
    value = 3 + 0.3 * (log_lr + 2.5) ** 2 + effect * moe + generator.normal(0, 0.01, n)
    return pd.DataFrame({"number": range(n), "value": value, "params_lr": 10**log_lr, "params_use_moe": moe})


@pytest.mark.parametrize("effect", [0.0, -0.1])
def test_a_learning_rate_is_a_covariate(effect):
    found = attribute(trials(effect=effect), lower_is_better=True)
    number = only(found)
    assert number.low < effect < number.high
    assert number.high - number.low < 0.03
    assert found.effects["params_use_moe"].verdict == ("gain" if effect else "not resolved")
    alone = attribute(trials(), lower_is_better=True, components=["params_use_moe"])
    assert alone.effects["params_use_moe"].verdict == "confounded with params_lr"


def test_a_covariate_that_is_constant_among_the_rows_that_count_is_none():
    data = trials().assign(params_lr=0.001)
    data.loc[0, ["params_lr", "value"]] = [0.002, np.nan]
    assert np.isfinite(only(attribute(data, lower_is_better=True)).high)


def test_the_covariate_is_that_of_least_squares():
    data = trials().rename(columns={"params_lr": "lr"})
    number = only(attribute(data, lower_is_better=True, components=["params_use_moe", "lr"], metric="value"))
    x = np.log(data.lr)
    x = (x - x.mean()) / x.std()
    design = np.column_stack([np.ones(60), data.params_use_moe, x, x**2, x**3]).astype(float)
    beta, left, _, _ = np.linalg.lstsq(design, data.value, rcond=None)
    error = (left[0] / 55 * np.linalg.inv(design.T @ design)[1, 1]) ** 0.5
    assert number.estimate == pytest.approx(beta[1])
    assert number.high == pytest.approx(beta[1] + stats.t.ppf(0.975, 55) * error)


def arms(reference, others, column="pos"):
    return pd.DataFrame(
        [{column: arm, "seed": s, "loss": 3 + 0.1 * s + shift + 0.01 * ((s * 7 + i) % 3)}
         for s in range(4) for i, (arm, shift) in enumerate({reference: 0.0, **others}.items())]
    )  # fmt: skip


def test_values_of_one_factor_are_compared_with_its_baseline_or_the_one_named():
    found = attribute(arms("none", {"rope": -0.3, "alibi": 0.2}))
    assert {name: effect.verdict for name, effect in found.effects.items()} == {"pos=rope": "gain", "pos=alibi": "harm"}
    assert found.total.estimate is None
    data = arms("learned", {"rope": -0.3, "alibi": 0.2})
    with pytest.raises(ValueError, match=r"pos has 3 values \(learned, rope, alibi\).*--on pos=VALUE"):
        attribute(data)
    named = attribute(data, on=["pos=rope"])
    assert named.effects["pos=rope instead of alibi"].indices["last"].estimate == pytest.approx(-0.5, abs=0.02)
    assert list(named.effects) == ["pos=rope instead of learned", "pos=rope instead of alibi"]


def test_arms_of_one_run_each_have_effects_without_intervals():
    found = attribute({"model": ["baseline", "+mla", "+moe"], "ppl": [20, 19, 21.5]})
    assert found.effects["model=+moe"].indices["first"].estimate == pytest.approx(1.5)
    assert found.effects["model=+moe"].indices["first"].low is None


def test_a_factor_beside_a_component():
    data = pd.concat([arms("none", {"rope": -0.3, "alibi": 0.2}).assign(moe=m) for m in (0, 1)])
    data["loss"] -= 0.05 * data.moe + 0.001 * data.seed * data.moe
    found = attribute(data, components=["moe", "pos"])
    assert [effect.verdict for effect in found.effects.values()] == ["gain", "gain", "harm"]
    assert {effect.verdict_from for effect in found.effects.values()} == {"first"}
    assert found.effects["moe"].indices["owen"].estimate is None


@pytest.mark.parametrize("out", [False, True])
def test_more_than_twelve_arms_one_at_a_time(out):
    names = [f"c{i}" for i in range(20)]
    rows = [
        {**{name: (i == j) != out for j, name in enumerate(names)}, "seed": s,
         "loss": 3 + s + (-1 if out else 1) * (0.5 if i == 3 else 0.0) + 0.001 * ((s * 5 + i) % 7)}
        for s in range(4) for i in range(-1, 20)
    ]  # fmt: skip
    found = attribute(pd.DataFrame(rows))
    index = "last" if out else "first"
    effect = found.effects["c3"]
    assert (effect.verdict, effect.verdict_from) == ("harm", index)
    assert effect.indices[index].estimate == pytest.approx(0.5, abs=0.01)
    assert found.design["kind"] == ("leave-one-out" if out else "add-one-in")
    assert [e.verdict for e in found.effects.values()].count("harm") == 1
    rows[5]["c7"] = rows[5]["c8"] = not rows[5]["c7"]
    with pytest.raises(ValueError, match=r"20 components vary .* --component"):
        attribute(pd.DataFrame(rows))


def test_means_are_read_as_the_runs_behind_them(tmp_path):
    x, y = np.array(ON), np.array(OFF[:3])
    expected = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    forms = (
        "rope,loss_mean,loss_std,n\non,{0},{1},4\noff,{2},{3},3\n",
        "rope,loss,n_seeds\non,{0} ± {1},4\noff,{2} ± {3},3\n",
        "rope;loss;se;count\non;{0};{4};4\noff;{2};{5};3\n",
    )
    sds = x.std(ddof=1), y.std(ddof=1)
    for form in forms:
        found = read(tmp_path, form.format(x.mean(), sds[0], y.mean(), sds[1], sds[0] / 2, sds[1] / 3**0.5))
        assert (only(found).low, only(found).high) == pytest.approx((expected.low, expected.high))
    bare = read(tmp_path, "rope,loss\non,1.727 ± 0.012\noff,1.690 ± 0.012\n")
    assert (only(bare).estimate, only(bare).low) == (pytest.approx(0.037), None)
    assert "add a column n with the number of runs" in bare.warnings[0]
    with pytest.raises(ValueError, match=r"line 3: mean of n = 2.5 runs"):
        read(tmp_path, "rope,loss,sd,n\non,1,.1,3\noff,2,.1,2.5\n")


def test_equal_differences_of_pasted_results_get_a_word(tmp_path):
    found = read(tmp_path, "a,seed,loss\n" + "".join(f"on,{s},3.{s}1\noff,{s},3.{s}2\n" for s in range(3)))
    assert only(found).high - only(found).low > 0.01
    assert any("agree to the last digit" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("name", "lower"),
    [("val_loss", True), ("valLoss", True), ("eval/ppl", True), ("flops", True), ("step_time_s", True), ("f1", False),
     ("tokens_per_s", False), ("tok/s", False), ("flops_per_s", False), ("answer", None), ("power", None),
     ("closs", None), ("accumulated_loss", True), ("time_to_accuracy", None)],
)  # fmt: skip
def test_a_direction_comes_from_whole_words(tmp_path, name, lower):
    assert lower_is_better(name) is lower
    if lower is None:
        with pytest.raises(ValueError, match="give --lower-is-better or --higher-is-better"):
            read(tmp_path, table(metric=name))


def study(storage, name, direction):
    made = optuna.create_study(storage=storage, study_name=name, direction=direction)
    for i in range(8):
        parameters = {"moe": i % 2 == 0, "mtp": i % 4 < 2}
        spaces = {key: optuna.distributions.CategoricalDistribution((True, False)) for key in parameters}
        value = 3 - 0.1 * parameters["moe"] + 0.003 * (i % 3)
        made.add_trial(optuna.trial.create_trial(params=parameters, distributions=spaces, value=value))
    made.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, params={}, distributions={}))
    return made


def test_studies_of_optuna_go_straight_in(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = tmp_path / "study.db"
    made = study(f"sqlite:///{path}", "one", "minimize")
    before = path.read_bytes()
    found = attribute(path)
    assert {name: effect.verdict for name, effect in found.effects.items()} == {
        "params_moe": "gain", "params_mtp": "not resolved",
    }  # fmt: skip
    assert found.warnings[0] == "1 of 9 rows left out because their run did not finish (1 fail)"
    assert path.read_bytes() == before
    csv = attribute(made.trials_dataframe(), lower_is_better=True)
    assert csv.effects["params_moe"].indices == found.effects["params_moe"].indices
    study(f"sqlite:///{path}", "two", "maximize")
    with pytest.raises(ValueError, match=r"holds 2 studies \(one, two\); name one with --study"):
        attribute(path)
    assert attribute(path, study="two").effects["params_moe"].verdict == "harm"
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
    study(optuna.storages.JournalStorage(backend), "one", "minimize")
    assert attribute(tmp_path / "journal").effects["params_moe"].verdict == "gain"
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("create table runs (a)")
    with pytest.raises(ValueError, match="not one of Optuna's"):
        attribute(other)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (gzip.compress(table().encode(), mtime=0)[:40], {}, "cannot read .*; give a whole, readable file"),
        (parquet()[:100], {}, "cannot read .*; write the Parquet file again"),
        (b"SQLite format 3\0" + bytes(90), {}, "cannot read .*; give a whole SQLite file"),
        (b"PK\x03\x04", {}, "save the sheet as CSV"),
        (b"a,b\0", {}, "zero bytes"),
        ('{"a": [1,', {}, "as JSON: .*; give a list of rows"),
        ("[" * 100_000, {}, "as JSON"),
        ('{"a": 1, "loss": 2}\n{"a": 0,\n', {}, "line 2 is no JSON"),
        (table().replace("val_loss", '"val\nloss"').replace("1.7268", '"' + "y\n" * 999 + '"'), {}, "val loss is 'y"),
        ("[1, 2]", {}, "no table; give a list of objects"),
        ('a,loss\non,"1\noff,2\n', {}, "line 3: .*see to the quotes"),
        ("a,loss\non,1,7\noff,2,1\n", {}, "line 2 has 3 fields .* stands in quotes"),
        (table(number=lambda v: f"{v} nats"), {}, "line 2: val_loss is '1.7268 nats', which is not a plain number"),
        ("a,,loss\non,x,1\noff,y,2\n", {}, "column 2 has no name"),
        ("Step,r - loss,r - loss__MIN,r - loss__MAX\n1,2,2,2\n", {}, "the export of a chart"),
        (table(number=lambda v: f"{v}%").replace("1.7268%", "1.7268"), {}, "line 3: .* percent sign"),
        (table(sep=";", number=lambda v: decimal_comma(v) + "1").replace("1,72681", "1,2.5"), {}, "line 2: .*one way"),
        (table(), {"where": ["rope=maybe"]}, "no row has rope=maybe; the column holds True, False"),
        (table(), {"where": ["ropes=True"]}, "no column 'ropes'; did you mean 'rope'"),
        (table(), {"on": ["rope"]}, "--on is 'rope'; it takes COLUMN=VALUE"),
        (table(), {"seed": "sed"}, "--seed: the table has no column 'sed'; did you mean 'seed'"),
        (table(), {"components": ["val_loss"]}, "'val_loss' is the metric, the seed or a size"),
        (table(), {"last": True}, "no column of steps or epochs"),
        (table().replace("seed", "data_seed,init_seed").replace("6242", "1,2").replace("2026", "1,3")
         .replace("3740", "2,2").replace("3242", "2,3"), {}, "several columns look like seeds .* --seed"),
        ("a,seed,loss,lr\non,1,1,1\non,1,2,2\noff,1,2,1\noff,2,2,1\n", {}, "line 3 .* differ in lr: choose with"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_sentence_with_its_cure(tmp_path, content, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path, content, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
