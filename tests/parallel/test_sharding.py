"""Which rank steps which piece of a model, where the optimizer's states are divided."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ablate.components.variants import Variant, on_ranks
from ablate.parallel.gradients import owners
from ablate.parallel.layout import check_ranks
from ablate.presets import preset
from ablate.spec.decoding import encode
from ablate.spec.ranks import Ranks

SIZES = {("a", 0, 8): 80, ("b", 0, 5): 50, ("c", 0, 4): 40, ("d", 0, 1): 1, ("e", 0, 4): 4, ("e", 4, 8): 4}


def test_each_piece_has_one_of_its_holders_and_they_have_alike_much() -> None:
    held_by = dict.fromkeys(SIZES, (0, 1)) | {("c", 0, 4): (0, 1, 2), ("e", 4, 8): (1,)}
    found = owners(held_by, SIZES)
    assert found.keys() == SIZES.keys()
    assert all(owner in held_by[piece] for piece, owner in found.items())
    assert found["a", 0, 8] == 0
    assert found["b", 0, 5] == 1
    assert found["c", 0, 4] == 2, "who has nothing yet"
    assert found["e", 4, 8] == 1, "its only holder"
    assert found == owners(dict(reversed(held_by.items())), SIZES), "all ranks come to the same"


def test_states_are_divided_by_a_field_and_one_process_has_nobody_to_divide_with() -> None:
    small = on_ranks(preset("nano"), Ranks(data=2))
    small = replace(small, trainer=replace(small.trainer, batch_size=8))
    spec = (Variant.full(small) | {"distill": "raw"}).resolve(small)
    assert "zero_stage" not in encode(spec.trainer)
    divided = replace(spec.trainer, zero_stage=1)
    check_ranks(spec.model, divided)
    with pytest.raises(ValueError, match="zero_stage is 1, and one process has nobody"):
        check_ranks(spec.model, replace(divided, ranks=Ranks()))
