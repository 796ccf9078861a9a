"""Streams by sentence: the bits that studies already depend on never change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ablate.components.distill.batches import teacher_indices, teacher_slots
from ablate.data.windows import batch_indices
from ablate.model.transformer import initialise
from ablate.randomness import fraction, raw_bits, uniform
from ablate.spec.model import Init
from ablate.teachers.teacher import draws


def test_every_stream_has_the_bits_that_it_always_had() -> None:
    order = [batch_indices(n_windows=10, seed=3, step=step, batch_size=4).tolist() for step in (1, 3)]
    assert order == [[7, 6, 5, 2], [5, 9, 0, 7]]
    assert fraction("a/b.py") == 0.8490034640218781
    place = {"seed": 1, "step": 2}
    assert np.flatnonzero(teacher_slots(**place, batch_size=8, share=0.5)).tolist() == [3, 7]
    assert teacher_indices(**place, n_windows=9, batch_size=5).tolist() == [6, 1, 8, 4, 0]
    assert draws(2, "hello", 3).tolist() == [0.8379272195601531, 0.7979549860437394, 0.8636644704726002]
    linear = torch.nn.Linear(2, 2, bias=False)
    initialise(linear, Init(scheme="normal", scale=1.0), 5)
    assert linear.weight.flatten().tolist() == pytest.approx([0.05707489, -0.77568471, 1.49320757, -0.78266895])


def test_sentences_have_streams_of_their_own() -> None:
    streams = [raw_bits(sentence, 4).tolist() for sentence in ("a", "b", "a ")]
    assert streams[0] == raw_bits("a", 4).tolist()
    assert len({tuple(stream) for stream in streams}) == 3
    assert all(0 <= draw < 1 for draw in uniform("a", 1000))
