"""Schedules on real ranks change nothing: a representative part of what benchmarks/equality.py goes through."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ablate.components.variants import Variant, on_ranks
from ablate.documents import read_document
from ablate.kernels.weight_gradients import linear_in_both, put_off, split_forward, work_off
from ablate.parallel.equality import Case, Equality, compare_all
from ablate.parallel.launch import launch
from ablate.presets import preset
from ablate.report.notes import equality_notes
from ablate.runs.store import EQUALITY
from ablate.spec.ranks import Ranks
from ablate.sweep import equality as of_studies

EQUAL = Equality(
    schedule="dualpipe",
    variant="full",
    ranks="pipeline=2, data=2, expert=2",
    n_micro_batches=6,
    transport="two-hop",
    losses_exact=True,
    loss_error=0.0,
    counts_exact=True,
    n_gradients=90,
    n_gradients_exact=90,
    gradient_error=0.0,
    norm_error=0.0,
    peak_live_chunks=(3, 3),
    seconds=0.1,
    tolerance=1e-12,
)


def case(schedule: str, ranks: Ranks, n_micro_batches: int, others: Mapping[str, str], recompute: str = "none") -> Case:
    small = on_ranks(preset("nano"), ranks)
    level = "on" if schedule == "dualpipe" else schedule
    spec = (Variant.full(small) | {"dualpipe": level, "distill": "raw"} | others).resolve(small)
    return Case(
        schedule=schedule,
        variant=str(others),
        model=spec.model,
        text=spec.data.text,
        pipeline=spec.trainer.pipeline,
        ranks=ranks,
        n_micro_batches=n_micro_batches,
        length=12,
        transport=spec.trainer.transport,
        recompute=recompute,
    )


def check(cases: list[Case]) -> None:
    for found in launch(compare_all, cases[0].ranks.world, cases)[0]:
        assert found.holds, found
        assert found.n_gradients_exact >= found.n_gradients - 2 * (found.ranks != ""), found


def test_two_ranks_compute_what_one_process_computes() -> None:
    two = Ranks(pipeline=2)
    check(
        [
            case("dualpipe", two, 6, {}),  # FP8 emulated, multi-token prediction, experts balanced by bias
            case("1f1b", two, 3, {"fp8": "bf16", "aux-free": "sequence-aux"}),
            case("zbv", two, 5, {"fp8": "bf16", "mtp": "parallel-heads"}),
            case("interleaved", two, 4, {"aux-free": "none"}),
            case("dualpipe", two, 6, {}, "full"),
            case("zb1p", two, 4, {"fp8": "bf16", "aux-free": "sequence-aux"}, "full"),
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [Ranks(pipeline=4), Ranks(pipeline=2, data=2)], ids=str)
def test_four_ranks_compute_what_one_process_computes(ranks: Ranks) -> None:
    cases = [
        case(name, ranks, 2 * ranks.pipeline + (0 if name == "interleaved" else 2), others)
        for name in ("dualpipe", "1f1b", "gpipe", "interleaved", "zb1p", "zbv", "dualpipev")
        for others in ({}, {"fp8": "bf16", "mtp": "next-token"})
    ]
    for found in launch(compare_all, ranks.world, cases)[0]:
        assert found.holds, found


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.n += func.overloadpacket is torch.ops.aten.mm
        return func(*args, **(kwargs or {}))


def test_each_product_of_a_split_backward_is_computed_once() -> None:
    x, weight = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    expected = x.clone().requires_grad_()
    g = torch.randn(3, 5, 6, dtype=torch.float64)
    F.linear(expected, weight).backward(g)
    assert weight.grad is not None
    whole, weight.grad = weight.grad.clone(), None
    ours = x.clone().requires_grad_()
    with split_forward():
        y: Tensor = linear_in_both(F.linear, ours, weight)
    with Products() as products, put_off() as waiting:
        y.backward(g)
    assert (products.n, len(waiting), weight.grad) == (1, 1, None), "the input part has the input's product alone"
    with Products() as products:
        work_off(waiting)
    assert products.n == 1
    assert torch.equal(ours.grad, expected.grad)  # type: ignore[arg-type]
    assert torch.equal(weight.grad, whole)  # type: ignore[arg-type]


class Told:
    """In the place of the pool of processes: what they found."""

    def __init__(self, found: list[Equality]) -> None:
        self.found = found

    def __call__(self, *args: object, **kwargs: object) -> Told:
        return self

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *args: object) -> None: ...

    def submit(self, *args: object) -> Told:
        return self

    def result(self) -> list[Equality]:
        return self.found


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"losses_exact": False, "loss_error": 1e-15}, True),  # experts are divided: sums have another order
        ({"losses_exact": False, "loss_error": 1e-15, "transport": "none"}, False),
        ({"counts_exact": False}, False),
        ({"gradient_error": 1e-11}, False),
        ({"norm_error": 1e-11}, False),
    ],
)
def test_a_study_whose_ranks_compute_something_else_does_not_run(
    change: dict[str, Any], holds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = replace(EQUAL, **change)
    monkeypatch.setattr(of_studies, "ProcessPoolExecutor", Told([EQUAL, found]))
    monkeypatch.setattr(of_studies, "cases", lambda named: [])
    said: list[str] = []
    with nullcontext() if holds else pytest.raises(ValueError, match=r"full \(dualpipe.*\) does not compute"):
        of_studies.check_equality([], said.append, tmp_path)
    assert ("NOT EQUAL" in said[-1]) is not holds
    kept = read_document(tmp_path / EQUALITY, "", "")["cases"]
    assert [case["holds"] for case in kept] == [True, holds]
    assert said[-1].startswith(kept[-1]["sentence"])
    (first, *_, last) = equality_notes(tmp_path)
    assert f"{1 + holds} of 2 variants equal" in first
    assert last == f"{kept[-1]['sentence']}."
