"""Byte-level BPE: trained on the train split, encoded in bounded pieces, decoded back to exact bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
MIN_VOCABULARY = 257  # 256 bytes and <|endoftext|>
# Merges are learnt from about this many characters, taken evenly over the corpus: more text moves no frequent pair.
TRAINING_CHARACTERS = 64 * 1024**2
# Longer documents are encoded in pieces, and a batch holds about this much, so memory does not grow with the corpus.
PIECE_CHARACTERS = 256 * 1024
BATCH_CHARACTERS = 2 * 1024**2


class SmallVocabulary(ValueError):
    """The texts support `reached` tokens, fewer than were asked for."""

    def __init__(self, asked: int, reached: int) -> None:
        super().__init__(
            f"vocab_size is {asked}, but this corpus supports only {reached} tokens "
            f"(no pair that is left occurs twice); give at most {reached}, or more text"
        )
        self.reached = reached


def check_vocab_size(vocab_size: int) -> None:
    """Raise ValueError for a vocabulary without room for every byte."""
    if vocab_size < MIN_VOCABULARY:
        raise ValueError(
            f"vocab_size is {vocab_size}, but a byte-level vocabulary has at least {MIN_VOCABULARY} tokens "
            f"(256 bytes and {END_OF_TEXT}); give {MIN_VOCABULARY} or more"
        )


def train_tokenizer(texts: Sequence[str], *, vocab_size: int) -> str:
    """tokenizer.json of a byte-level BPE with exactly vocab_size tokens, <|endoftext|> being token 0.

    Raises ValueError if the texts run out of pairs that occur twice before vocab_size is reached: the
    model would have rows that no text can use, and so parameters and FLOPs that the study did not ask for.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    check_vocab_size(vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stride = -(-sum(map(len, texts)) // TRAINING_CHARACTERS) or 1
    tokenizer.train_from_iterator(itertools.islice(_pieces(texts), 0, None, stride), trainer)
    reached = tokenizer.get_vocab_size()
    if reached != vocab_size:
        raise SmallVocabulary(vocab_size, reached)
    return tokenizer.to_str()


def tokenizer_from_json(text: str) -> Tokenizer:
    """A tokenizer that reads a literal "<|endoftext|>" inside a text as characters, not as the end of a document."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode_texts(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids of the texts in order, as uint32 arrays of arbitrary length; each text ends with <|endoftext|>."""
    batch: list[str] = []
    ends: list[bool] = []
    characters = 0
    for text in texts:
        pieces = list(_pieces([text]))
        for number, piece in enumerate(pieces, start=1):
            batch.append(piece)
            ends.append(number == len(pieces))
            characters += len(piece)
            if characters >= BATCH_CHARACTERS:
                yield _encode_batch(tokenizer, batch, ends)
                batch, ends, characters = [], [], 0
    if batch:
        yield _encode_batch(tokenizer, batch, ends)


def _encode_batch(tokenizer: Tokenizer, batch: list[str], ends: list[bool]) -> np.ndarray:
    ids: list[int] = []
    for encoding, end in zip(tokenizer.encode_batch_fast(batch, add_special_tokens=False), ends, strict=True):
        ids.extend(encoding.ids)
        if end:
            ids.append(END_OF_TEXT_ID)
    return np.array(ids, dtype=np.uint32)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Each text cut into pieces of at most PIECE_CHARACTERS, behind a line's end where there is one."""
    for text in texts:
        start = 0
        while len(text) - start > PIECE_CHARACTERS:
            line_end = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1
            end = line_end if line_end > start else start + PIECE_CHARACTERS
            yield text[start:end]
            start = end
        yield text[start:]


def vocabulary_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The UTF-8 bytes that each token id stands for; b"" for <|endoftext|>."""
    byte_of = _byte_of_character()
    table = []
    for token_id in range(tokenizer.get_vocab_size()):
        token = tokenizer.id_to_token(token_id)
        assert token is not None, token_id
        table.append(b"" if token_id == END_OF_TEXT_ID else bytes(byte_of[character] for character in token))
    return table


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet backwards: printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}
