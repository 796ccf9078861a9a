"""The split: by name, stable, disjoint, and never empty."""

from __future__ import annotations

import pytest
from sample_text import paragraph

from ablate.data.source import Document
from ablate.data.split import split_documents


def many(count: int) -> list[Document]:
    return [Document(name=f"{number}.txt", text=paragraph(number)) for number in range(count)]


def test_a_document_keeps_its_side_when_others_come():
    sides = []
    for count in (400, 800):
        train, held_out = split_documents(many(count), 0.05)
        sides.append(({document.name for document in train}, {document.name for document in held_out}))
    assert sides[0][0] < sides[1][0]
    assert sides[0][1] < sides[1][1]
    assert 0.02 < len(sides[1][1]) / 800 < 0.08


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 300])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_both_sides_have_text_and_no_content_in_common(count: int, share: float):
    found = many(count)
    train, held_out = split_documents(found, share)
    assert train
    assert held_out
    assert not {document.text for document in train} & {document.text for document in held_out}
    characters = sum(len(document.text) for document in found)
    assert sum(len(document.text) for document in train + held_out) == characters


def test_whatever_the_luck_of_the_names_both_sides_get_a_document():
    for number in range(40):
        found = [Document(name=f"{number} {side}", text=f"{number} {side}") for side in ("a", "b")]
        train, held_out = split_documents(found, 0.5)
        assert (len(train), len(held_out)) == (1, 1)


def test_one_document_is_cut_near_its_end_at_a_line():
    text = paragraph(1, lines=200)
    (train,), (held_out,) = split_documents([Document(name="a", text=text)], 0.05)
    assert train.text + held_out.text == text
    assert train.text.endswith("\n")
    assert 0.03 < len(held_out.text) / len(text) < 0.07
    assert (train.name, held_out.name) == ("a (head)", "a (tail)")


@pytest.mark.parametrize("text", ["x" * 1000, "head\n" + "x" * 995])
def test_one_document_without_a_line_near_the_border_is_cut_at_the_border(text: str):
    (_,), (held_out,) = split_documents([Document(name="a", text=text)], 0.05)
    assert held_out.text == "x" * 50


def test_tails_that_also_train_are_dropped():
    licence = "all rights reserved\n"
    body = paragraph(1, lines=5)
    found = [Document(name="a", text=body + licence), Document(name="b", text=licence), *many(3)]
    train, held_out = split_documents(found, 0.05)
    assert licence in [document.text for document in train]
    assert "a (head)" in [document.name for document in train]
    assert [document.name for document in held_out] == ["0.txt (tail)", "1.txt (tail)", "2.txt (tail)"]


@pytest.mark.parametrize("share", [0, -0.1, 0.51, float("nan")])
def test_share_out_of_range(share: float):
    with pytest.raises(ValueError, match="held_out_share is"):
        split_documents(many(3), share)


def test_too_little_text():
    with pytest.raises(ValueError, match="too little text to hold out 5%"):
        split_documents([Document(name="a", text="x")], 0.05)
