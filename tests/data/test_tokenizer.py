"""Byte-level BPE: exact bytes, exact vocabulary size, literal special tokens."""

from __future__ import annotations

import numpy as np
import pytest
from sample_text import paragraph

from ablate.data import tokenizer as module
from ablate.data.tokenizer import END_OF_TEXT_ID, encode_texts, tokenizer_from_json, train_tokenizer, vocabulary_bytes

TEXTS = [paragraph(number) for number in range(20)]


@pytest.fixture(scope="module")
def trained() -> str:
    return train_tokenizer(TEXTS, vocab_size=300)


def decode(ids: np.ndarray, table: list[bytes]) -> list[str]:
    texts, current = [], b""
    for token_id in ids.tolist():
        if token_id == END_OF_TEXT_ID:
            texts.append(current.decode())
            current = b""
        else:
            current += table[token_id]
    assert current == b""
    return texts


def test_training_is_deterministic(trained: str):
    assert train_tokenizer(TEXTS, vocab_size=300) == trained


def test_every_byte_is_a_token_and_end_of_text_has_none(trained: str):
    table = vocabulary_bytes(tokenizer_from_json(trained))
    assert len(table) == 300
    assert table[END_OF_TEXT_ID] == b""
    assert {bytes([byte]) for byte in range(256)} <= set(table)
    assert len(set(table)) == 300


def test_any_text_comes_back_exactly(trained: str):
    texts = ["", "a<|endoftext|>b", " \r\n\t x", "naïve 数 \U0001f600", "\ufeff\0\x7f", *TEXTS]
    tokenizer = tokenizer_from_json(trained)
    ids = np.concatenate(list(encode_texts(tokenizer, texts)))
    assert decode(ids, vocabulary_bytes(tokenizer)) == texts


def test_long_texts_are_cut_into_pieces_and_come_back(trained: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 250)
    texts = ["x" * 1000, "", paragraph(1, lines=50), "\n" * 101]
    tokenizer = tokenizer_from_json(trained)
    arrays = list(encode_texts(tokenizer, texts))
    assert len(arrays) > 5
    assert decode(np.concatenate(arrays), vocabulary_bytes(tokenizer)) == texts


def test_training_on_a_sample_of_a_large_corpus(monkeypatch: pytest.MonkeyPatch):
    half = train_tokenizer(TEXTS[::2], vocab_size=300)
    monkeypatch.setattr(module, "TRAINING_CHARACTERS", -(-sum(map(len, TEXTS)) // 2))
    assert train_tokenizer(TEXTS, vocab_size=300) == half


def test_vocabulary_without_room_for_bytes():
    with pytest.raises(ValueError, match="vocab_size is 256, but a byte-level vocabulary has at least 257"):
        train_tokenizer(TEXTS, vocab_size=256)


def test_vocabulary_that_the_text_cannot_fill_names_the_largest():
    with pytest.raises(ValueError, match="supports only 258 tokens") as refused:
        train_tokenizer(["ab ab cd"], vocab_size=1000)
    assert "give at most 258" in str(refused.value)
    assert len(vocabulary_bytes(tokenizer_from_json(train_tokenizer(["ab ab cd"], vocab_size=258)))) == 258
