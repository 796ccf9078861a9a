"""The benchmark: what is wrong has no seconds, what cannot run is listed, and what is written is read again."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ablate.bench import command, step, timing, tune
from ablate.bench.operation import Implementation, Operation, Result, Unavailable, _agreeing, run_operation
from ablate.bench.passes import forward
from ablate.bench.render import render
from ablate.components.variants import Variant
from ablate.kernels import rms_norm, table
from ablate.kernels.table import Configuration
from ablate.presets import preset
from ablate.spec import measured
from ablate.spec.machine import Machine
from ablate.spec.run import Spec

ROOT = Path(__file__).parents[2]
CPU = Machine(kind="cpu")
INTERPRETED = Machine(kind="cpu", interpreted=True)
CEILINGS = timing.Ceilings(bytes_per_s=1e9, flops_per_s=1e9, samples={})
DEVICE = torch.device("cpu")


def case_of(*implementations: Implementation, **options: Any) -> Operation:
    """Doubling a row of numbers."""
    return Operation(
        group="test",
        name="double",
        shape={"N": 64},
        small={"N": 8},
        inputs=lambda shape, seed: (torch.arange(1.0, shape["N"] + 1) + seed,),
        expected=lambda x: 2 * x,
        implementations=implementations,
        bytes=lambda shape: 8.0 * shape["N"],
        **options,
    )


def rows_of(operation: Operation, machine: Machine = CPU) -> dict[str, dict[str, Any]]:
    return {row["backend"]: row for row in run_operation(operation, machine, CEILINGS, 0.001)["backends"]}


def missing(x: Tensor) -> Tensor:
    raise ModuleNotFoundError("No module named 'elsewhere'")


def unavailable(x: Tensor) -> Tensor:
    raise Unavailable("it has no implementation with sevens")


def test_what_is_right_is_measured_and_compared_with_the_ceilings() -> None:
    row = rows_of(case_of(Implementation(name="right", prepare=forward(lambda x: x + x))))["right"]
    assert row["status"] == "measured"
    assert row["relative_error"] == 0
    assert row["seconds"]["q1"] <= row["seconds"]["median"] <= row["seconds"]["q3"]
    assert row["bytes_per_s"] == pytest.approx(64 / row["seconds"]["median"])
    assert row["share_of_ceiling"] == pytest.approx(64 / 1e9 / row["seconds"]["median"])


def test_what_is_wrong_has_no_seconds() -> None:
    rows = rows_of(
        case_of(
            Implementation(name="off by a twentieth", prepare=forward(lambda x: 2.1 * x)),
            Implementation(name="not a number", prepare=forward(lambda x: x / 0 * 0)),
            Implementation(name="another shape", prepare=forward(lambda x: 2 * x[:3])),
        )
    )
    assert [rows[name]["status"] for name in rows] == ["refused", "refused", "failed"]
    assert not any("seconds" in row for row in rows.values())
    assert "error is 5.0e-02, and 2e-02 is allowed" in rows["off by a twentieth"]["reason"]
    assert "shapes [(3,)], not [(8,)]" in rows["another shape"]["reason"]


def test_ours_is_allowed_less_than_others() -> None:
    implementations = [
        Implementation(name=needs or "other", prepare=forward(lambda x: 2.02 * x), needs=needs)
        for needs in ("", "triton")
    ]
    rows = rows_of(case_of(*implementations), INTERPRETED)
    assert (rows["other"]["status"], rows["triton"]["status"]) == ("measured", "refused")


def test_what_cannot_run_is_listed_with_the_reason() -> None:
    rows = rows_of(
        case_of(
            Implementation(name="cuda", prepare=forward(missing), needs="cuda"),
            Implementation(name="kernel", prepare=forward(missing), needs="triton"),
            Implementation(name="missing", prepare=forward(missing)),
            Implementation(name="unavailable", prepare=forward(unavailable)),
        )
    )
    assert {row["status"] for row in rows.values()} == {"unavailable"}
    assert rows["cuda"]["reason"] == "it needs a CUDA device"
    assert "9.0" in rows["kernel"]["reason"]
    assert "elsewhere" in rows["missing"]["reason"]
    assert rows["unavailable"]["reason"] == "it has no implementation with sevens"


def test_kernels_are_never_timed_in_the_interpreter() -> None:
    rows = rows_of(case_of(Implementation(name="ours", prepare=forward(lambda x: 2 * x), needs="triton")), INTERPRETED)
    assert rows["ours"]["status"] == "checked"
    assert "seconds" not in rows["ours"]


def test_a_result_that_only_large_shapes_spoil_is_refused() -> None:
    implementations = [
        Implementation(name="right", prepare=forward(lambda x: 2 * x)),
        Implementation(name="spoilt", prepare=forward(lambda x: 2 * x if len(x) < 32 else 3 * x)),
        Implementation(name="too large", prepare=forward(lambda x: 2 * x if len(x) < 32 else unavailable(x))),
    ]
    found = [Result(implementation, "checked") for implementation in implementations]
    assert [f.implementation.name for f in _agreeing(case_of(*implementations), found, DEVICE)] == ["right"]
    assert [f.status for f in found] == ["checked", "refused", "unavailable"]
    assert "from right" in found[1].reason


def test_candidates_and_their_inputs_take_turns() -> None:
    calls: list[str] = []
    candidates = {name: [lambda n=name, i=i: calls.append(f"{n}{i}") for i in range(2)] for name in "AB"}
    samples = timing.measure(candidates, DEVICE, 0.0)
    warm = 2 * 4
    assert calls[warm:] == ["A0", "A1", "B0", "B1"] * timing.ROUNDS
    assert [len(s.seconds) for s in samples.values()] == [2 * timing.ROUNDS] * 2


def test_sets_of_inputs_pass_the_cache() -> None:
    cuda = torch.device("cuda")
    assert [timing.n_sets(size, cuda) for size in (1, 100 * 2**20, 2**31)] == [4, 3, 2]
    assert timing.n_sets(1, DEVICE) == 1


def test_a_group_is_written_down_whole(tmp_path: Path) -> None:
    lines: list[str] = []
    document = command.run_bench("norm", smoke=True, out=tmp_path, say=lines.append)
    assert json.loads((tmp_path / "norm.json").read_text()) == document
    text = (tmp_path / "norm.md").read_text()
    assert text == render(document)
    assert "smoke test" in text
    assert len(lines) == len(document["operations"]) == 3
    assert document["environment"]["packages"]["torch"] == torch.__version__
    assert document["date"]
    for operation in document["operations"]:
        for row in operation["backends"]:
            assert ("seconds" in row) == (row["status"] == "measured")
            assert f"{operation['name']}" in text
            assert row["status"] == "measured" or f"{operation['name']}, {row['backend']}: {row['status']}" in text


def full_nano() -> Spec:
    nano = preset("nano")
    return Variant.full(nano).resolve(nano)


@pytest.mark.parametrize("group", list(command.GROUPS))
def test_every_slot_names_backends_that_models_have(group: str) -> None:
    spec = full_nano()
    for operation in command.GROUPS[group]():
        assert set(operation.shape) == set(operation.small)
        fills = {implementation.fills for implementation in operation.implementations if implementation.fills}
        assert bool(fills) >= bool(operation.slot)
        slot = operation.slot.partition("/")[0]
        for backend in fills if operation.slot else ():
            if operation.slot != "linear/standard":
                assert spec.model.with_backends({slot: backend}).backends[slot] == backend


def test_no_time_is_told() -> None:
    document = command.run_bench("loss", smoke=True, limit_s=0.0)
    assert document["operations"] == []
    assert all("no time was left" in text for text in document["skipped"])
    assert "no time was left" in render(document)


@pytest.mark.parametrize(
    ("group", "options", "sentence"),
    [
        ("norms", {}, "no group 'norms'.*attention"),
        ("kernels", {"tune": True, "smoke": False}, "this machine is: cpu"),
        ("step", {"preset": "h300"}, "unknown preset 'h300'"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="tuning is no error on a GPU")
def test_what_is_refused(group: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        command.run_bench(group, **({"smoke": True} | options))


def test_steps_have_rates_and_their_backends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = preset("nano")
    groups = {rung.name: rung for group in step.rungs(base, CPU) for rung in group}
    assert {"full", "none", "full without mtp", "comparable, transformers"} <= set(groups)
    monkeypatch.setattr(step, "rungs", lambda *_: [[groups["none"], groups["comparable, ours"]]])
    document = command.run_bench("step", smoke=True, out=tmp_path)
    for row in document["steps"]:
        assert row["status"] == "measured"
        assert row["tokens_per_s"] == pytest.approx(row["tokens_per_step"] / row["seconds"]["median"])
        flops = groups[row["name"]].spec.model.cost(base.trainer.sequence_length).training_flops_per_token
        peak = document["ceilings"]["flops_per_s"]
        assert row["mfu_of_measured_peak"] == pytest.approx(row["tokens_per_s"] * flops / peak)
        assert row["mfu_of_datasheet"] is None
    assert "attention library" in (tmp_path / "step.md").read_text()


def test_a_step_that_cannot_be_made_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    group = next(iter(step.rungs(preset("nano"), CPU)))
    without_package = ImportError("no", name="transformers")

    def broken(*_: Any) -> Any:
        raise without_package

    monkeypatch.setattr(step, "theirs", broken)
    monkeypatch.setattr(step, "rungs", lambda *_: [[group[-1]]])
    document = command.run_bench("step", smoke=True)
    assert document["steps"][0]["reason"] == "transformers is not installed"
    assert "transformers is not installed" in render(document)


def test_a_step_moves_weights_and_the_selection_bias() -> None:
    spec = full_nano().for_machine(CPU)
    window = step.windows(spec.model.vocab_size, 2, 32, DEVICE)
    model = None

    def keep(made: Any, *rest: Any) -> Any:
        nonlocal model
        model = made
        return original(made, *rest)

    original = step.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "training_step", keep)
        run = step.ours(spec, window, DEVICE)
    assert model is not None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run()
    still = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert not still


# Tuning.


def test_the_fastest_right_candidate_is_chosen_and_noise_changes_nothing() -> None:
    def row(n: int, **rest: Any) -> dict[str, Any]:
        return {"configuration": {"blocks": {"ROWS": n}, "num_warps": 4, "num_stages": 1}, **rest}

    shipped = row(1, seconds=1.0)
    assert tune.best([shipped, row(2, seconds=0.995)]) == shipped["configuration"]
    assert tune.best([shipped, row(2, seconds=0.9), row(3, fault="wrong")]) == row(2)["configuration"]
    assert tune.best([row(1, fault="spills"), row(2, seconds=2.0)]) == row(2)["configuration"]
    assert tune.best([row(1, fault="wrong")]) is None


def test_backends_are_those_fastest_over_all_cases_of_a_slot() -> None:
    def operation(name: str, slot: str, **seconds: float) -> dict[str, Any]:
        rows = [{"backend": b, "status": "measured", "seconds": {"median": s}} for b, s in seconds.items()]
        return {"group": "g", "name": name, "slot": slot, "backends": rows}

    operations = [
        operation("forward", "attention", library=3.0, triton=1.0, cudnn=0.1),
        operation("backward", "attention", library=1.0, triton=2.0),  # cuDNN failed here
        operation("alone", "norm", triton=1.0),
        operation("products", "linear/standard", library=1.0, triton=2.0),
        operation("fp8", "linear/fp8", library=2.0, triton=1.0),
    ]
    fills = {("g", c["name"], b): b for c in operations for b in ("library", "triton", "cudnn")}
    assert tune.backends(operations, fills) == {"attention": "triton"}


def test_tuning_tries_candidates_and_the_tables_read_what_it_wrote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "measured")
    other = Configuration(blocks={"ROWS": 8}, num_warps=4, num_stages=2)
    broken = Configuration(blocks={"ROWS": 3}, num_warps=4, num_stages=2)  # not a power of two
    monkeypatch.setattr(table.Table, "candidates", lambda *_: (other, broken))
    operation = next(c for c in command.GROUPS["norm"]() if c.name == "rms_norm backward")
    tuned = tune.tune_operation(operation, INTERPRETED, 0.001)
    by_kernel = {entry["kernel"]: entry for entry in tuned}
    assert set(by_kernel) == {"rms_norm_forward", "rms_norm_backward"}
    rows = by_kernel["rms_norm_backward"]["candidates"]
    assert ["seconds" in row for row in rows] == [True, True, False]
    assert "fault" in rows[2]
    rows[0]["seconds"], rows[1]["seconds"] = 2.0, 1.0
    document = {"tuned": tuned, "operations": [], "environment": {"packages": {"torch": "2"}}}
    try:
        written = json.loads(
            Path(tune.write(document, INTERPRETED, {}, measured.measured_file(INTERPRETED))).read_text()
        )
        assert set(written) == {"device", "date", "versions", "kernels", "backends"}
        assert written["kernels"]["rms_norm_backward"]["choices"][0]["when"] == {"D": [192, 384]}
        assert rms_norm.TABLE.choose("rms_norm_backward", INTERPRETED, D=256).blocks == {"ROWS": 8}
        assert rms_norm.TABLE.choose("rms_norm_backward", INTERPRETED, D=1024).blocks == {"ROWS": 16}
    finally:
        monkeypatch.undo()
        table.forget()


def test_what_is_forced_and_asked_reaches_the_threads_of_autograd() -> None:
    """A context variable would not: backward kernels on CUDA are launched by other threads."""
    import threading

    found = []
    wanted = Configuration(blocks={"ROWS": 2})

    def choose() -> None:
        found.append(rms_norm.TABLE.choose("rms_norm_forward", INTERPRETED, D=64))

    def elsewhere() -> None:
        thread = threading.Thread(target=choose)
        thread.start()
        thread.join()

    with tune.asking() as asked:
        elsewhere()
        with table.forced("rms_norm_forward", wanted):
            elsewhere()
    shipped, forced = found
    assert forced == wanted != shipped
    assert asked["rms_norm_forward"][1:] == ({"D": 64}, shipped)
    choose()
    assert found[-1] == shipped


# From a checkout on a machine with few packages.

BLOCKED = """
import sys
import weakref
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "optuna", "wandb", "typer", "lightning", "transformers", "pandas"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from ablate.bench import command
for operation in command.run_bench("norm", smoke=True)["operations"]:
    assert all(row["status"] in ("measured", "checked", "unavailable") for row in operation["backends"]), operation
for group in command.GROUPS.values():
    group()
try:
    command.run_bench("step", smoke=True)
except ValueError as fault:
    print(fault)
"""


def test_kernels_need_only_torch_and_triton() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "install lightning" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_script_refuses_without_a_gpu(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu.sh"
    done = subprocess.run(
        ["bash", str(script), "step"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OUT": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "--smoke" in done.stderr


def test_the_command_is_the_one_that_the_script_calls() -> None:
    from typer.testing import CliRunner

    from ablate.cli import app

    done = CliRunner().invoke(app, ["bench", "norm", "--smoke", "--json", "--limit", "0"])
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["smoke"]
    assert document["skipped"]
    assert "cli.py" in (ROOT / "benchmarks" / "gpu_stages.py").read_text(encoding="utf-8")


# What fails on a device, and must stop nothing else.


def broken(x: Tensor) -> Tensor:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def losing(*names: str) -> Operation:
    """Three implementations, of which those named lose the device."""
    return case_of(
        *(
            Implementation(name=name, prepare=forward(broken if name in names else lambda x: 2 * x))
            for name in ("first", "second", "third")
        )
    )


def test_a_lost_device_is_told_and_the_next_process_leaves_out_what_lost_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "GROUPS", {"test": lambda: [losing("second")]})
    monkeypatch.setattr(command, "NAMES", ("test",))
    monkeypatch.setattr("ablate.bench.operation.is_lost", lambda device: True)
    document = command.run_bench("test", smoke=True, out=tmp_path, resume=True)
    (rows,) = [operation["backends"] for operation in document["operations"]]
    assert [row["status"] for row in rows] == ["checked", "failed", "failed"]
    assert "not timed" in rows[0]["reason"]
    assert "not tried: the device was lost to second" in rows[2]["reason"]
    assert document["lost"] == [["double N64", "second"]]
    assert document["faults"] == ["the device was lost in double N64, to second"]
    again = command.run_bench("test", smoke=True, out=tmp_path, resume=True)
    (rows,) = [operation["backends"] for operation in again["operations"]]
    assert [row["status"] for row in rows] == ["measured", "failed", "measured"]
    assert again["faults"] == document["faults"]
    once_more = command.run_bench("test", smoke=True, out=tmp_path, resume=True)
    assert once_more["operations"] == again["operations"]  # nothing is measured twice
    with pytest.raises(ValueError, match="another machine or of a smoke test"):
        command.run_bench("test", out=tmp_path, resume=True)


def test_memory_that_is_short_for_all_suffices_for_each_once_the_others_are_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every implementation holds its inputs while it is prepared; two at a time are too many."""
    alive: list[Any] = []

    class Held:
        def __init__(self) -> None:
            alive.append(weakref.ref(self))

    def prepare(x: Tensor) -> Any:
        held = Held()
        return lambda: (held, 2 * x)[1]

    real = timing.measure

    def measure(candidates: Any, *rest: Any) -> Any:
        if len(candidates) > 1:
            raise torch.OutOfMemoryError("all together")
        assert sum(ref() is not None for ref in alive) == 1, "what was prepared before is still alive"
        return real(candidates, *rest)

    monkeypatch.setattr("ablate.bench.operation.measure", measure)
    rows = rows_of(case_of(*(Implementation(name=name, prepare=prepare) for name in ("first", "second"))))
    assert [row["status"] for row in rows.values()] == ["measured", "measured"]


def test_a_step_that_fails_is_a_fault_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from ablate.cli import app

    groups = {rung.name: rung for group in step.rungs(preset("nano"), CPU) for rung in group}
    monkeypatch.setattr(step, "rungs", lambda *_: [[groups["none"]], [groups["full without mtp"]]])
    monkeypatch.setattr(step, "ours", lambda *_: broken(torch.zeros(1)))
    done = CliRunner().invoke(app, ["bench", "step", "--smoke", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "fault: none: RuntimeError: CUDA error" in done.stderr
    assert "full without mtp" in done.stderr
    assert len(json.loads((tmp_path / "step.json").read_text())["steps"]) == 2
