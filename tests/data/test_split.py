"""The split: by name, stable, disjoint, and never empty."""

from __future__ import annotations

import pytest
from sample_text import paragraph

from ablate.data.source import Document
from ablate.data.split import split_documents
from ablate.randomness import fraction


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


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 300, 900])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_both_sides_have_text_and_no_content_in_common(count: int, share: float):
    found = many(count)
    train, held_out = split_documents(found, share)
    assert train
    assert held_out
    assert not {document.text for document in train} & {document.text for document in held_out}
    characters = sum(len(document.text) for document in found)
    assert sum(len(document.text) for document in train + held_out) == characters
    assert share / 2 < sum(len(document.text) for document in held_out) / characters < share * 1.5


def test_few_documents_are_all_judged_by_their_ends():
    _, held_out = split_documents(many(399), 0.05)
    assert [document.name for document in held_out] == [f"{number}.txt (tail)" for number in range(399)]
    _, held_out = split_documents(many(400), 0.05)
    assert 10 < len(held_out) < 40
    assert not [document.name for document in held_out if "tail" in document.name]


@pytest.mark.parametrize(("count", "share"), [(40, 0.05), (500, 0.05), (60, 0.5), (21, 0.1)])
def test_no_giant_rules_the_held_out_text(count: int, share: float):
    giants = [Document(name=f"giant {number}", text=paragraph(-number, lines=20_000)) for number in range(1, 4)]
    train, held_out = split_documents([*giants, *many(count)], share)
    total = sum(len(document.text) for document in held_out)
    assert max(len(document.text) for document in held_out) <= 0.1 * total
    characters = sum(len(document.text) for document in [*giants, *many(count)])
    assert total + sum(len(document.text) for document in train) == characters


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_of_few_none_has_more_than_twice_an_even_share(count: int):
    giant = Document(name="giant", text=paragraph(1, lines=20_000))
    _, held_out = split_documents([giant, *many(count - 1)], 0.2)
    total = sum(len(document.text) for document in held_out)
    assert len(held_out) == count
    assert max(len(document.text) for document in held_out) <= 2 / count * total


def test_the_work_grows_with_the_documents_and_not_with_their_square(monkeypatch: pytest.MonkeyPatch):
    compared = []

    class Rank(float):
        def __lt__(self, other: float) -> bool:
            compared.append(other)
            return float(self) < other

    monkeypatch.setattr("ablate.data.split.fraction", lambda name: Rank(fraction(name)))
    split_documents(many(2000), 0.05)
    assert len(compared) < 4000


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


def test_ends_that_stand_elsewhere_too_train():
    licence = "all rights reserved\n"
    body = paragraph(1, lines=200)[: 19 * len(licence) - 1] + "\n"
    found = [Document(name="a", text=body + licence), Document(name="b", text=licence), *many(3)]
    train, held_out = split_documents(found, 0.05)
    assert licence in [document.text for document in train]
    assert "a" in [document.name for document in train]
    assert [document.name for document in held_out] == ["0.txt (tail)", "1.txt (tail)", "2.txt (tail)"]


def test_an_end_that_others_share_is_held_out_of_none():
    footer = "all rights reserved\n" * 3
    found = [Document(name=f"{n}", text=paragraph(n, lines=20)[: 20 * len(footer)] + footer) for n in range(5)]
    train, held_out = split_documents([*found, *many(3)], 0.05)
    assert train[:5] == found
    assert len(held_out) == 3


@pytest.mark.parametrize("share", [0, -0.1, 0.51, float("nan")])
def test_share_out_of_range(share: float):
    with pytest.raises(ValueError, match="held_out_share is"):
        split_documents(many(3), share)


def test_too_little_text():
    with pytest.raises(ValueError, match="too little text to hold out 5%"):
        split_documents([Document(name="a", text="x")], 0.05)
