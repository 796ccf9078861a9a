"""Sources: what is read, in which order, what is refused and how."""

from __future__ import annotations

import gzip
import json
import sys
import types
from pathlib import Path

import pytest

from ablate.data.source import documents


def test_folder_is_sorted_by_relative_path_whatever_the_listing_order(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import os

    walk = os.walk

    def reversed_walk(root):
        for here, subfolders, files in walk(root):
            subfolders.reverse()
            yield here, subfolders, files[::-1]

    expected = documents(str(folder))
    monkeypatch.setattr(os, "walk", reversed_walk)
    assert documents(str(folder)) == expected
    names = [document.name for document in expected]
    assert names == sorted(names)
    assert len(names) == 400
    assert "deep/1.txt" in names


def test_blank_repeated_hidden_and_foreign_files_are_left_out(tmp_path: Path):
    for name, text in {"b.txt": "same", "a.md": "same", "c.py": " \n", ".d.txt": "hidden", "e.csv": "1,2"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "f.txt").write_text("hidden too")
    assert [(document.name, document.text) for document in documents(str(tmp_path))] == [("a.md", "same")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_jsonl(tmp_path: Path, name: str):
    lines = "".join(json.dumps({"text": text, "id": 7}) + "\n" for text in ("eins", "zwei\nnaïve")) + "\n"
    raw = ("\ufeff" + lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    found = documents(str(tmp_path / name))
    assert [(document.name, document.text) for document in found] == [
        (f"{name}:1", "eins"),
        (f"{name}:2", "zwei\nnaïve"),
    ]


def test_parquet(tmp_path: Path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["eins", "zwei"], "id": [1, 2]}), path)
    assert [document.text for document in documents(str(path))] == ["eins", "zwei"]
    pyarrow.parquet.write_table(pyarrow.table({"body": ["eins"], "id": [1]}), path)
    with pytest.raises(ValueError, match='has no "text" column, only body, id'):
        documents(str(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        documents(str(path))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pip install 'dsv3-ablate\[parquet\]'"):
        documents(str(tmp_path))


def test_dataset_without_the_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'dsv3-ablate\[datasets\]'"):
        documents("hf:someone/text")


def test_dataset_is_streamed_up_to_the_cap(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def rows():
        for number in range(10**9):
            yield {"text": f"row {number:04}\n"}

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return rows()

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = documents("hf:someone/text:small", max_bytes=90)
    assert asked == [(("someone/text", "small"), {"split": "train", "streaming": True})]
    assert len(found) == 10
    assert found[0].name == "someone/text:1"


@pytest.mark.parametrize("rows_before", [None, 3])
def test_dataset_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, rows_before: int | None):
    def rows(count: int):
        yield from ({"text": f"row {number}"} for number in range(count))
        raise ConnectionError("the network is gone")

    def load_dataset(*arguments, **options):
        if rows_before is None:
            raise FileNotFoundError("no such dataset")
        return rows(rows_before)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"'hf:absent' cannot be read \((no such dataset|the network is gone)\)"):
        documents("hf:absent")


def test_dataset_rows_and_names_are_checked(monkeypatch: pytest.MonkeyPatch):
    dataset = types.SimpleNamespace(load_dataset=lambda *arguments, **options: iter([{"text": "a"}, {"body": "b"}]))
    monkeypatch.setitem(sys.modules, "datasets", dataset)
    with pytest.raises(ValueError, match='hf:rows row 2 has no "text" field'):
        documents("hf:rows")
    with pytest.raises(ValueError, match="names no dataset"):
        documents("hf:")


@pytest.mark.parametrize(
    ("max_bytes", "texts"),
    [
        (100, ["one\ntwo\n", "naïve\n"]),
        (15, ["one\ntwo\n", "naïve\n"]),
        (11, ["one\ntwo\n", "naï"[:2]]),
        (8, ["one\ntwo\n"]),
        (7, ["one\n"]),
        (2, ["on"]),
    ],
)
def test_cap_counts_bytes_and_cuts_at_a_line_or_a_character(tmp_path: Path, max_bytes: int, texts: list[str]):
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("naïve\n", encoding="utf-8")
    assert [document.text for document in documents(str(tmp_path), max_bytes=max_bytes)] == texts


REFUSED = {
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b" \n\n", "is empty"),
    "nul.txt": (b"text\0text", "is binary"),
    "latin.txt": ("naïve".encode("latin-1"), "not UTF-8 text"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "broken.jsonl line 2 is not JSON"),
    "digits.jsonl": (b"1" * 5000, "digits.jsonl line 1 is not JSON"),
    "field.jsonl": (b'{"text": "a"}\n\n{"body": "b"}\n', 'field.jsonl line 3 has no "text" field'),
    "type.jsonl": (b'{"text": 5}\n', 'type.jsonl line 1 has no "text" field'),
    "list.jsonl": (b'["text"]\n', 'list.jsonl line 1 has no "text" field'),
    "half.jsonl": (b'{"text": "\\ud800"}\n', "half a surrogate pair"),
    "plain.jsonl.gz": (b'{"text": "a"}\n', "cannot be read"),
    "torn.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:-9], "cannot be read"),
    "flipped.jsonl.gz": (gzip.compress(b'{"text": "a"}\n')[:10] + b"\xff" * 20, "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files(tmp_path: Path, name: str):
    raw, sentence = REFUSED[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=sentence):
        documents(str(tmp_path / name))


def test_absent_path_and_folder_without_text(tmp_path: Path):
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        documents(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"holds no file that ends in one of \.txt"):
        documents(str(tmp_path))
    with pytest.raises(ValueError, match="max_bytes is 0"):
        documents(str(tmp_path), max_bytes=0)
