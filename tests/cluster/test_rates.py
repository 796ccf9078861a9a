"""Kernel rates against the published tables that they stand for, and the profile against itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ablate.cluster.bench import bench_corrections
from ablate.cluster.hardware import cluster
from ablate.cluster.inputs import assumptions, draw
from ablate.cluster.profile import corrections, predicted, profile
from ablate.cluster.rates import Rates
from ablate.cluster.work import Attention, Product

H800 = cluster("h800-2048")
DENSE = [  # rows, outer, inner, TFLOP/s: DeepGEMM's README, H800
    (4096, 7168, 16384, 1520),
    (4096, 4096, 7168, 1410),
    (4096, 7168, 2048, 1168),
    (4096, 24576, 1536, 1212),
    (4096, 2112, 7168, 1127),
    (4096, 32768, 512, 775),
    (128, 7168, 16384, 645),
    (64, 7168, 16384, 336),
]
GROUPED = [(4 * 8192, 4096, 7168, 4, 1346), (4 * 8192, 7168, 2048, 4, 1214)]


def rates() -> Rates:
    one = assumptions()["nvlink_efficiency"]
    balanced = type(one)(value=1.0, low=1.0, high=1.0, label="exact", source="a benchmark's rows are even")
    draws = draw(assumptions() | {"routing_imbalance": balanced}, n_samples=0)
    return Rates(cluster=H800, draws=draws, low_precision=True)


@pytest.mark.parametrize(("rows", "outer", "inner", "published"), DENSE)
def test_fp8_products_are_within_a_tenth_of_the_published_table(
    rows: int, outer: int, inner: int, published: float
) -> None:
    product = Product(name="x", rows=rows, inner=inner, outer=outer)
    rate = product.flops / rates().product_seconds(product, "fp8_product", 132)[0] / 1e12
    assert rate == pytest.approx(published, rel=0.10)


@pytest.mark.parametrize(("rows", "outer", "inner", "groups", "published"), GROUPED)
def test_grouped_products_too(rows: int, outer: int, inner: int, groups: int, published: float) -> None:
    product = Product(name="x", rows=rows, inner=inner, outer=outer, groups=groups)
    rate = product.flops / rates().product_seconds(product, "fp8_grouped", 132)[0] / 1e12
    assert rate == pytest.approx(published, rel=0.10)


@pytest.mark.parametrize(("length", "forward", "backward"), [(2048, 522, 352), (4096, 599, 404), (8192, 643, 442)])
def test_attention_is_within_three_percent_of_the_published_table(length: int, forward: float, backward: float) -> None:
    core = Attention(flops=1e15, length=length)
    found = [rates().attention_seconds(core, f"attention_{p}", 132)[0] for p in ("forward", "backward")]
    assert 1e3 / found[0] == pytest.approx(forward, rel=0.03)
    assert 2.5e3 / found[1] == pytest.approx(backward, rel=0.03)


def test_a_product_is_never_faster_than_its_bytes() -> None:
    product = Product(name="x", rows=1, inner=16384, outer=16384)
    assert rates().product_seconds(product, "bf16_product", 132)[0] >= 2 * 16384**2 / H800.memory_bytes_per_s


def test_the_profile_gives_its_own_seconds_back() -> None:
    """A factor is measured over predicted; the base rates that it replaces have no range any more."""
    measured = profile("v3-on-h800")
    inputs, names = corrections(measured, H800, assumptions())
    assert set(names) == set(measured.seconds)
    one = inputs["fp8_product"]
    balanced = type(one)(value=1.0, low=1.0, high=1.0, label="exact", source="forced")
    times = predicted(measured, H800, draw(inputs | {"routing_imbalance": balanced}, n_samples=0))
    for kind, name in names.items():
        share = 1.0 if kind in ("dispatch", "combine") else measured.busy.union / measured.busy.kernels
        assert times[kind][0] * inputs[name].value == pytest.approx(measured.seconds[kind] * share)
        assert inputs[name].label == "measured elsewhere"
    assert inputs["fp8_product"].fixed
    assert not inputs["bf16_product"].fixed


def test_a_profile_of_other_devices_is_refused() -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="the cluster has B200"):
        corrections(profile("v3-on-h800"), replace(H800, device="B200"), assumptions())


def bench_document(device: str, seconds: float) -> dict:  # type: ignore[type-arg]
    row = {"backend": "library", "status": "measured", "seconds": {"median": seconds, "q1": seconds, "q3": seconds}}
    operation = {
        "group": "moe",
        "name": "grouped product",
        "shape": {"N": 32768, "E": 64, "I": 2048, "O": 1408},
        "backends": [row, {"backend": "triton", "status": "failed"}],
    }
    machine = {"kind": "cuda", "name": device}
    return {"machine": machine, "environment": {}, "date": "2026-01-01", "operations": [operation]}


def test_this_machines_bench_replaces_the_published_rate(tmp_path: Path) -> None:
    h200 = cluster("h200-8")
    product = Product(name="x", rows=32768, inner=2048, outer=1408, groups=64)
    expected = float(
        Rates(cluster=h200, draws=rates().draws, low_precision=False).product_seconds(product, "bf16_grouped", 132)[0]
    )
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench_document("NVIDIA H200", 2 * expected)))
    inputs, names = bench_corrections(path, h200, assumptions())
    assert names == {"bf16_grouped": "measured_bf16_grouped"}
    assert inputs["measured_bf16_grouped"].value == pytest.approx(2.0)
    assert inputs["measured_bf16_grouped"].label == "measured here"
    assert inputs["bf16_grouped"].fixed


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (bench_document("AMD EPYC", 1.0), "the cluster has H200"),
        ({"machine": {"name": "NVIDIA H200"}}, "not as bench writes it"),
        (bench_document("NVIDIA H200", 1.0) | {"operations": []}, "no timed operation"),
    ],
)
def test_bench_results_that_do_not_serve_are_refused(tmp_path: Path, document: dict, said: str) -> None:  # type: ignore[type-arg]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=said):
        bench_corrections(path, cluster("h200-8"), assumptions())
