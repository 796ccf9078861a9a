"""Trainer.fit on ranks equals one process; a checkpoint does not know how many ranks wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fitted import on_a_rank, state_file
from torch import Tensor

from ablate.model.weights import load_tensors
from ablate.parallel.launch import launch
from ablate.spec.ranks import Ranks

PIPELINE, MESH, ONE = Ranks(pipeline=2), Ranks(pipeline=2, data=2), Ranks()


def fit(ranks: Ranks, schedule: str, place: Path, resume: Path | str = "") -> dict[str, Tensor]:
    """In processes of their own: float64 is their default."""
    launch(on_a_rank, ranks.world, ranks, schedule, str(place), str(resume))
    return load_tensors(state_file(place))


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[n].double() - b[n].double()).abs().max().item() for n in a)


@pytest.mark.slow
def test_training_on_ranks_and_on_one_process_and_across_them(tmp_path: Path) -> None:
    alone = fit(ONE, "", tmp_path / "one")
    down = fit(PIPELINE, "on", tmp_path / "two")
    wide = fit(MESH, "1f1b", tmp_path / "four")
    for found in (down, wide):
        assert difference(found, alone) < 1e-12
        assert all((found[n] == alone[n]).all() for n in alone if n.endswith("bias_E"))
    assert len(list((tmp_path / "four").glob("tensors*"))) == 4, "a file a rank"
    assert difference(fit(PIPELINE, "on", tmp_path / "again", tmp_path / "two"), down) == 0, (
        "the same layout, bit for bit"
    )
    for ranks, schedule, resume in ((ONE, "", "four"), (PIPELINE, "zbv", "four"), (MESH, "on", "one")):
        name = f"{ranks.world} from {resume}"
        assert difference(fit(ranks, schedule, tmp_path / name, tmp_path / resume), alone) < 1e-12, name
