"""Windows tile the stream, targets are the next tokens, and the order depends on seed and step alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ablate.data.tokens import TokenFile, token_dtype
from ablate.data.windows import HASHED_STEPS, Windows, batch_indices, order_hash


def stream(folder: Path, tokens: int, *, vocab_size: int = 1000) -> TokenFile:
    ids = np.arange(tokens) % vocab_size
    path = folder / "train.bin"
    path.write_bytes(ids.astype(token_dtype(vocab_size)).tobytes())
    return TokenFile(path=path, name="train", hash="", vocab_size=vocab_size, tokens=tokens, documents=1, bytes=tokens)


@pytest.mark.parametrize(("tokens", "length"), [(101, 10), (100, 10), (2, 1), (50, 49), (99, 7)])
def test_windows_tile_the_stream(tmp_path: Path, tokens: int, length: int):
    windows = Windows(stream(tmp_path, tokens), length)
    rows = windows[:]
    assert rows.shape == (len(windows), length + 1)
    assert rows.dtype == np.int64
    targets = rows[:, 1:].reshape(-1)
    # Every token but the first is a target once, in order, until less than a window is left.
    assert targets.tolist() == list(range(1, len(windows) * length + 1))
    assert tokens - 1 - len(targets) < length
    assert (rows[:, 1:] == rows[:, :-1] + 1).all()
    assert (rows[:-1, -1] == rows[1:, 0]).all()


def test_indexing(tmp_path: Path):
    windows = Windows(stream(tmp_path, 101), 10)
    assert windows[3].tolist() == list(range(30, 41))
    assert windows[np.array([9, 0])].tolist() == [list(range(90, 101)), list(range(11))]
    assert windows[2:4].shape == (2, 11)
    assert windows[np.zeros((2, 3), dtype=int)].shape == (2, 3, 11)
    assert sum(1 for _ in windows) == 10
    for wrong in (10, -1, np.array([0, 10])):
        with pytest.raises(IndexError):
            windows[wrong]
    windows[0][:] = 5
    assert windows[0].tolist() == list(range(11))


def test_large_vocabularies_need_four_bytes(tmp_path: Path):
    assert token_dtype(65_536) == np.dtype("<u2")
    assert token_dtype(65_537) == np.dtype("<u4")
    windows = Windows(stream(tmp_path, 70_001, vocab_size=70_000), 7_000)
    assert windows[9][-2] == 69_999


def test_pickle_holds_the_path_and_not_the_tokens(tmp_path: Path):
    windows = Windows(stream(tmp_path, 10_001), 10)
    pickled = pickle.dumps(windows)
    assert len(pickled) < 1000
    assert (pickle.loads(pickled)[:] == windows[:]).all()


def test_corpus_smaller_than_a_sequence(tmp_path: Path):
    short = stream(tmp_path, 10)
    with pytest.raises(ValueError, match="the train text has 10 tokens, fewer than one window of 11"):
        Windows(short, 10)
    assert len(Windows(short, 9)) == 1
    with pytest.raises(ValueError, match="sequence_length is 0"):
        Windows(short, 0)


def test_torn_and_unknown_token_files(tmp_path: Path):
    torn = stream(tmp_path, 100)
    torn.path.write_bytes(torn.path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="has 199 bytes instead of 200"):
        Windows(torn, 10)
    with pytest.raises(ValueError, match="is not a token file"):
        Windows(torn.path, 10)


@pytest.mark.parametrize(("n_windows", "batch_size"), [(10, 2), (10, 3), (3, 10), (1, 4), (7, 7)])
def test_each_epoch_covers_all_windows_once(n_windows: int, batch_size: int):
    steps = 4 * n_windows
    batches = [batch_indices(n_windows=n_windows, seed=3, step=step, batch_size=batch_size) for step in range(steps)]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    epochs = np.concatenate(batches)[: n_windows * 4].reshape(4, n_windows)
    assert (np.sort(epochs) == np.arange(n_windows)).all()
    if n_windows >= 7:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_order_does_not_depend_on_what_was_asked_before():
    def batch(step: int, seed: int = 0) -> list[int]:
        return batch_indices(n_windows=50, seed=seed, step=step, batch_size=8).tolist()

    forwards = [batch(step) for step in range(40)]
    for seed in range(5):
        batch(99, seed=seed)
    assert [batch(step) for step in reversed(range(40))] == forwards[::-1]
    taken = batch_indices(n_windows=50, seed=0, step=0, batch_size=8)
    taken[:] = 0
    assert batch(0) == forwards[0]
    assert batch(0, seed=1) != forwards[0]


def test_order_is_the_one_that_old_records_saw():
    # A change of this line changes what every record's seed means.
    assert batch_indices(n_windows=10, seed=0, step=0, batch_size=10).tolist() == [1, 2, 8, 3, 4, 7, 0, 9, 6, 5]


@pytest.mark.parametrize("wrong", [{"n_windows": 0}, {"batch_size": 0}, {"step": -1}])
def test_impossible_batches(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="must be at least 1"):
        batch_indices(**({"n_windows": 5, "seed": 0, "step": 0, "batch_size": 2} | wrong))


def test_order_hash_tells_orders_and_data_apart():
    facts = {"corpus_hash": "a", "n_windows": 1000, "seed": 0, "batch_size": 4, "sequence_length": 16}
    others = [{"corpus_hash": "b"}, {"n_windows": 999}, {"seed": 1}, {"batch_size": 2}, {"sequence_length": 8}]
    hashes = [order_hash(**(facts | other)) for other in [{}, *others]]
    assert len(set(hashes)) == len(hashes)
    assert order_hash(**facts) == hashes[0]
    assert HASHED_STEPS == 64
