"""Sources: what is read, in which order, what is refused and how."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import socket
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from ablate.data import source as module
from ablate.data.left_out import LeftOut, left_out_from
from ablate.data.source import Document


def documents(source: str, **options: Any) -> list[Document]:
    return module.documents(module.open_source(source), **options)


def left_out(source: Path, **options: Any) -> tuple[list[str], LeftOut]:
    """The texts that there are, and what is left out."""
    opened = module.open_source(str(source))
    return [document.text for document in module.documents(opened, **options)], opened.left_out


def test_folder_is_sorted_by_relative_path_whatever_the_listing_order(folder: Path, monkeypatch: pytest.MonkeyPatch):
    walk = os.walk

    def reversed_walk(root, **options):
        for here, subfolders, files in walk(root, **options):
            subfolders.reverse()
            yield here, subfolders, files[::-1]

    expected = documents(str(folder))
    monkeypatch.setattr(os, "walk", reversed_walk)
    assert documents(str(folder)) == expected
    names = [document.name for document in expected]
    assert names == sorted(names)
    assert len(names) == 400
    assert "deep/1.txt" in names


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
    with pytest.raises(ValueError, match=r'has no column "text" .*, only body, id'):
        documents(str(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        documents(str(path))


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
    rows: Any = [{"text": "a"}, {"body": "b"}]
    dataset = types.SimpleNamespace(load_dataset=lambda *arguments, **options: iter(rows))
    monkeypatch.setitem(sys.modules, "datasets", dataset)
    assert left_out(Path("hf:rows"))[1].names == {"without text": ["rows:2"]}
    rows = itertools.repeat({"body": "b"})
    with pytest.raises(ValueError, match=r'rows:1 has no field "text" .* only body'):
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


ROWS = [{"text": "eins", "id": 7}, {"text": "zwei\nnaïve", "id": 8}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
REFUSED = {
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b" \n\n", r"is empty.*1 blank \(blank.txt\)"),
    "nul.txt": (b"text\0text", "is binary"),
    "latin.txt": ("naïve".encode("latin-1"), "not UTF-8 text"),
    "broken.jsonl": (b'{"text": \n', "broken.jsonl line 1 is not JSON"),
    "digits.jsonl": (b"1" * 5000, "digits.jsonl line 1 is not JSON"),
    "deep.json": (b"[" * 100_000, "deep.json is not JSON"),
    "lines.json": (b'{"text": "a"\n"text"}\n', "lines.json is not JSON"),
    "field.jsonl": (b'\n{"body": "b"}\n', 'field.jsonl:2 has no field "text".*, only body; .* --text-field'),
    "type.jsonl": (b'{"text": 5}\n', 'type.jsonl:1 has no field "text"'),
    "list.jsonl": (b'["text"]\n', 'list.jsonl:1 has no field "text"'),
    "null.jsonl": (b"null\n", 'null.jsonl:1 has no field "text"'),
    "many.jsonl": (b'{"body": "b"}\n' * 101 + b'{"text": "a"}\n', "many.jsonl:1 has no field"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', "half a surrogate pair"),
    "columns.csv": (b"body,id\nb,1\n", 'columns.csv has no column "text"'),
    "latin.csv": (b"text\n\xe9\n", "latin.csv is not UTF-8"),
    "plain.jsonl.gz": (b'{"text": "a"}\n', "cannot be read"),
    "torn.jsonl.gz": (gzip.compress(LINES.encode(), mtime=0)[:-9], "cannot be read"),
    "flipped.jsonl.gz": (gzip.compress(b'{"text": "a"}\n', mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files(tmp_path: Path, name: str):
    raw, sentence = REFUSED[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=sentence):
        documents(str(tmp_path / name))


@pytest.mark.parametrize("name", REFUSED)
def test_one_bad_file_does_not_stop_the_rest_and_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(REFUSED[name][0])
    (tmp_path / "z.txt").write_text("good")
    texts, lost = left_out(tmp_path)
    assert texts[-1] == "good"
    assert name in str(lost)
    assert sum(lost.counts.values()) == 1


def test_absent_path_and_folder_without_text(tmp_path: Path):
    for absent in (str(tmp_path / "absent"), ""):
        with pytest.raises(ValueError, match="neither a file nor a folder"):
            documents(absent)
    (tmp_path / "a.bin").write_bytes(b"\0")
    with pytest.raises(
        ValueError, match=r"holds no file that ends in one of \.txt.*left out: 1 of unknown kind \(a.bin"
    ):
        documents(str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="max_bytes is 0"):
        documents(str(tmp_path), max_bytes=0)


def test_everything_that_is_left_out_is_counted_and_named(tmp_path: Path):
    for name, text in {"b.txt": "same", "a.md": "same", "c.py": " \n", ".d.txt": "hidden", "e.bin": "?"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "f.txt").write_text("hidden too")
    (tmp_path / "g.jsonl").write_text('{"text": "row"}\n{"body": "b"}\nnot JSON\n')
    (tmp_path / "h.txt").symlink_to(tmp_path / "absent")
    (tmp_path / "i.txt").symlink_to(tmp_path / "a.md")
    (tmp_path / "j").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "k.txt")
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(tmp_path / "l.txt"))
    (tmp_path / os.fsdecode(b"m\xff.bin")).write_text("?")
    texts, lost = left_out(tmp_path)
    assert texts == ["same", "row"]
    assert {reason: (each["count"], each["names"]) for reason, each in lost.facts().items()} == {
        "hidden": (2, [".git/", ".d.txt"]),
        "linking to a folder": (1, ["j"]),
        "of unknown kind": (2, ["e.bin", "m\\xff.bin"]),
        "linking nowhere": (1, ["h.txt"]),
        "pipe, socket or device": (2, ["k.txt", "l.txt"]),
        "repeating another's text": (2, ["b.txt", "i.txt"]),
        "blank": (1, ["c.py"]),
        "without text": (1, ["g.jsonl:2"]),
        "not JSON": (1, ["g.jsonl:3"]),
    }
    assert str(lost).startswith(
        "1 blank (c.py); 2 hidden (.git/ and .d.txt); 1 linking nowhere (h.txt); 1 linking to a folder (j)"
    )
    assert left_out_from(json.loads(json.dumps(lost.facts()))).facts() == lost.facts()


def test_many_of_a_kind_are_counted_and_the_first_are_named(tmp_path: Path):
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text("same")
    _, lost = left_out(tmp_path)
    assert str(lost) == "29 repeating another's text (01.txt, 02.txt, 03.txt and 26 more)"
    assert len(lost.facts()["repeating another's text"]["names"]) == 20


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders_are_named(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c").mkdir(mode=0)
    (tmp_path / "b.txt").chmod(0)
    assert left_out(tmp_path)[1].names == {"unreadable": ["c", "b.txt"]}


FORMATS = {
    "rows.ndjson": LINES,
    "rows.JSONL": LINES,
    "lines.json": LINES,
    "list.json": json.dumps(ROWS, indent=1),
    "comma.csv": 'id,text\n7,eins\n8,"zwei\nnaïve"\n',
    "semicolon.csv": 'id;text\r\n7;eins\r\n8;"zwei\nnaïve"\r\n',
    "tab.tsv": 'text\tid\neins\t7\n"zwei\nnaïve"\t8\n',
}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FORMATS)
def test_rows_mean_what_the_ending_says_alone_and_in_a_folder(tmp_path: Path, name: str, packed: str):
    raw = ("\ufeff" + FORMATS[name]).encode()
    path = tmp_path / (name + packed)
    if packed == ".zst":
        path.write_bytes(pytest.importorskip("pyarrow").compress(raw, codec="zstd", asbytes=True))
    else:
        path.write_bytes(gzip.compress(raw) if packed else raw)
    for source in (path, tmp_path):
        found = documents(str(source))
        assert [(d.name, d.text) for d in found] == [(f"{path.name}:1", "eins"), (f"{path.name}:2", "zwei\nnaïve")]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.md.gz", "a.log", "a.log.gz", "a.txt.zst"])
def test_text_loses_its_byte_order_mark_however_it_is_packed(tmp_path: Path, name: str):
    raw = "\ufeffnaïve\n".encode()
    if name.endswith(".zst"):
        raw = pytest.importorskip("pyarrow").compress(raw, codec="zstd", asbytes=True)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert [document.text for document in documents(str(tmp_path / name))] == ["naïve\n"]
    assert "\ufeff" not in json.dumps(list(left_out(tmp_path / name)[0]))


def test_torn_zstandard_is_found(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    whole = pyarrow.compress(os.urandom(5000).hex().encode(), codec="zstd", asbytes=True)
    (tmp_path / "a.txt.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        documents(str(tmp_path / "a.txt.zst"))


def test_two_frames_of_zstandard_are_one_file(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    frames = [pyarrow.compress(text, codec="zstd", asbytes=True) for text in (b"eins ", b"zwei")]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert [document.text for document in documents(str(tmp_path))] == ["eins zwei"]


@pytest.mark.parametrize("name", ["a.txt.zst", "rows.parquet", "rows.arrow"])
def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"pip install 'dsv3-ablate\[parquet\]'"):
        documents(str(tmp_path))


def test_a_folder_that_the_datasets_library_saved(tmp_path: Path):
    pytest.importorskip("pyarrow")
    import pyarrow.ipc

    table = pyarrow.table({"id": [1, 2], "text": ["eins", "zwei"]})
    for split, new in (("train", pyarrow.ipc.new_stream), ("test", pyarrow.ipc.new_file)):
        (tmp_path / split).mkdir()
        with new(tmp_path / split / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)
            table = pyarrow.table({"id": [3], "text": ["drei"]})
        (tmp_path / split / "state.json").write_text('{"_split": "train"}')
    texts, lost = left_out(tmp_path)
    assert texts == ["drei", "eins", "zwei"]
    assert lost.names == {"without text": ["test/state.json:1", "train/state.json:1"]}
    path = tmp_path / "train" / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read"):
        documents(str(path))


FIELDS = [
    ("body", {"body": "x", "text": "y"}, "x"),
    ("body", {"body": "\ufeffx"}, "x"),
    ("a.b", {"a": {"b": "x"}}, "x"),
    ("a.b", {"a.b": "x"}, "x"),
    ("a.1.b", {"a": [{}, {"b": "x"}]}, "x"),
    ("a", {"a": ["x", "y"]}, "x\n\ny"),
    ("", {"messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "x"}]}, "user: hi\n\nbot: x"),
    ("", {"conversations": [{"from": "human", "value": "hi"}]}, "human: hi"),
    ("", {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]}, "user: hi"),
    ("chat.messages", {"chat": {"messages": [{"content": "hi"}, {"content": 5}]}}, "hi\n\n"),
]  # fmt: skip


@pytest.mark.parametrize(("text_field", "row", "text"), FIELDS)
def test_the_field_of_the_text(tmp_path: Path, text_field: str, row: Any, text: str):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert left_out(tmp_path / "rows.jsonl", text_field=text_field)[0] == [text]


@pytest.mark.parametrize("text_field", ["absent", "text.absent", "text.0", "list.9", "list.x", "."])
def test_a_field_that_leads_nowhere_is_named(tmp_path: Path, text_field: str):
    (tmp_path / "rows.jsonl").write_text('{"text": "x", "list": [1]}')
    with pytest.raises(ValueError, match=f'no field "{text_field}".*only text, list'):
        documents(str(tmp_path / "rows.jsonl"), text_field=text_field)


def test_the_field_of_a_parquet_column(tmp_path: Path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pyarrow.table({"a": [{"b": "x", "c": 1}], "m": [[{"role": "user", "content": "hi"}]]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert left_out(tmp_path, text_field="a.b")[0] == ["x"]
    assert left_out(tmp_path, text_field="m")[0] == ["user: hi"]


def test_the_state_changes_with_any_file_and_is_none_while_it_may_still_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.txt"
    path.write_text("a")
    with monkeypatch.context() as patched:
        patched.setattr(module, "CLOCK_TICK_NS", 10**12)
        assert module.open_source(str(tmp_path)).state is None

    def state() -> str | None:
        time.sleep(2 * module.CLOCK_TICK_NS / 1e9)
        return module.open_source(str(tmp_path)).state

    states = [state(), state()]
    assert states[0] == states[1] is not None
    before = path.stat()
    path.write_text("b")  # of the same size, and then of the same age
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    states.append(state())
    path.unlink()
    (tmp_path / "b.txt").write_text("b")
    states.append(state())
    (tmp_path / "c.bin").write_text("c")
    states.append(state())
    assert len(set(states)) == 4
