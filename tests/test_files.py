"""Files are whole or absent, documents are sealed, and whatever a file holds is data or one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablate import files
from ablate.documents import read_document, read_json, read_sealed_document, read_toml
from ablate.files import (
    CannotWrite,
    collect,
    commit_folder,
    commit_once,
    damage,
    new_folder,
    read_sealed,
    remove_folder,
    replace_file,
    sealed,
)

DATA = {"name": "x", "losses": [1.0000000000000002, 1e-05, -0.0], "nested": {"text": "é\u001b\n", "none": None}}
BAD_JSON = {
    "empty": b"",
    "blank": b" \n",
    "binary": bytes(range(256)),
    "zeros": bytes(512),
    "deep": b"[" * 100_000,
    "deep enough": b"[" * 100 + b"]" * 100,
    "deep objects": b'{"a":' * 100_000,
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "beyond a float": b'{"a": 1e999}',
    "an integer beyond a float": b'{"a": 1' + b"0" * 400 + b"}",
    "an integer of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "twice": b'{"a": 1, "a": 2}',
    "half a character": b'{"a": "\\ud800"}',
    "half a character as key": b'{"\\ud800": 1}',
    "latin-1": '{"a": "é"}'.encode("latin-1"),
    "torn": b'{"a": 1, "b',
}
BAD_TOML = {
    "binary": bytes(range(256)),
    "deep": b"a = " + b"[" * 100_000,
    "nan": b"a = nan",
    "an integer beyond a float": b"a = 0x" + b"f" * 9000,
    "an integer of 5000 digits": b"a = " + b"9" * 5000,
    "twice": b"a = 1\na = 2",
}


def reading(path: Path, read: Callable[..., Any]) -> str:
    """The sentence that reading ends with."""
    with pytest.raises(ValueError, match="cannot read the thing") as caught:
        read(path, "the thing", "make another")
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert str(path) in message
    assert message.endswith("; make another")
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=list(BAD_JSON))
def test_bad_json_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    reading(path, read_json)
    reading(path, read_document)


@pytest.mark.parametrize("content", BAD_TOML.values(), ids=list(BAD_TOML))
def test_bad_toml_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    reading(tmp_path / "x.toml", read_toml)


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "not a file" in reading(tmp_path / "pipe", read_json)
    assert "not a file" in reading(tmp_path, read_json)
    assert "No such file" in reading(tmp_path / "absent", read_json)
    reading(tmp_path / "loop", read_json)


def test_every_altered_bit_of_a_document_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    text = sealed(DATA).encode()
    path.write_bytes(text)
    assert read_document(path, "the thing", "make another") == DATA
    for bit in range(0, 8 * len(text), 7):
        altered = bytearray(text)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        reading(path, read_sealed_document)
    path.write_text(json.dumps(DATA))
    assert read_document(path, "the thing", "") == DATA  # of a version that did not seal
    path.write_text(json.dumps(DATA | {"sha256": ""}))
    assert "altered" in reading(path, read_document)
    reading(path, read_sealed_document)


def test_only_the_documents_own_key_takes_the_seal(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    own = {"nested": {"sha256": "", "deeper": [{"sha256": ""}]}, "text": '\n "sha256": ""', "a": '"sha256": ""', "z": 1}
    path.write_text(sealed(own))
    assert read_sealed_document(path, "the thing", "") == own
    plain = json.dumps(own | {"sha256": ""}, indent=1, sort_keys=True) + "\n"
    assert json.loads(path.read_text())["sha256"] == hashlib.sha256(plain.encode()).hexdigest()


def folder(place: Path, content: bytes = b"x" * 99) -> Path:
    with new_folder(place.parent) as made:
        (made / "data").write_bytes(content)
        commit_folder(made, place, {"about": "it"})
    return place


def test_damage_of_a_folder_is_told(tmp_path: Path) -> None:
    made = folder(tmp_path / "made")
    assert damage(made, "data") is None
    assert damage(made, "more") == "more is absent"
    draw = random.Random(0)
    for name in ("data", "manifest.json"):
        good = (made / name).read_bytes()
        for content in (b"", good[:-1], good + b"x", *BAD_JSON.values()):
            (made / name).write_bytes(content)
            assert name in str(damage(made))
        for _ in range(50):
            bit = draw.randrange(8 * len(good))
            (made / name).write_bytes(good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :])
            assert name in str(damage(made))
        (made / name).unlink()
        assert name in str(damage(made))
        (made / name).mkdir()
        assert name in str(damage(made))
        (made / name).rmdir()
        (made / name).write_bytes(good)
    assert damage(made) is None


def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    value = {"name": "é", "n": 1.5}
    seal = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"sha256": seal, "value": value}, indent=1))
    assert read_sealed(path) == value
    path.write_text(json.dumps({"sha256": seal, "value": value | {"n": 1.25}}, indent=1))
    assert read_sealed(path) is None


def test_a_damaged_folder_makes_way_and_a_sound_one_stays(tmp_path: Path) -> None:
    made = folder(tmp_path / "made")
    folder(made, b"another")
    assert (made / "data").read_bytes() == b"x" * 99
    (made / "data").write_bytes(b"torn")
    folder(made, b"another")
    assert (made / "data").read_bytes() == b"another"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    remove_folder(made)
    remove_folder(made)
    assert list(tmp_path.iterdir()) == []


def _write_and_wait(place: Path, ready: Any, kind: str) -> None:
    def wait(*_: Any) -> None:
        ready.set()
        import time

        time.sleep(60)

    if kind == "folder":
        with new_folder(place):
            wait()
    files.os.link = wait  # type: ignore[attr-defined]
    commit_once(place / "x.json", "{}")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_collected_and_a_living_ones_stays(kind: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    writer = context.Process(target=_write_and_wait, args=(tmp_path, ready, kind))
    writer.start()
    assert ready.wait(20)
    collect(tmp_path)
    replace_file(tmp_path / "other", "text")
    assert len(list(tmp_path.glob(".writing-*"))) == 1
    writer.kill()
    writer.join()
    replace_file(tmp_path / "other", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "make room on that disk"),
        (errno.EDQUOT, "make room in your quota"),
        (errno.EROFS, "mount it writable"),
        (errno.EACCES, "get the right to write there"),
        (errno.EIO, "mend that"),
    ],
)
def test_a_refused_write_says_what_where_and_what_to_do(
    number: int, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "known").write_text("old")
    monkeypatch.setattr(files.os, "fsync", refuse)
    for path, write in ((tmp_path / "new", commit_once), (tmp_path / "known", replace_file)):
        with pytest.raises(CannotWrite) as caught:
            write(path, "text", "the thing")
        message = str(caught.value)
        assert message.startswith(f"cannot write the thing {path}: {os.strerror(number)}; {cure}")
        assert caught.value.errno == number
    with pytest.raises(CannotWrite, match="cannot write the folder"):
        folder_of_two(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["known"]
    assert (tmp_path / "known").read_text() == "old"


def folder_of_two(parent: Path) -> None:
    with new_folder(parent, f"the folder {parent}") as made:
        (made / "data").write_bytes(b"x")
        commit_folder(made, parent / "made", {})


def _write_under_a_limit(path: Path, answer: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        replace_file(path, "x" * 5000, "the thing")
    except CannotWrite as error:
        answer.send(str(error))


def test_a_file_that_the_system_cuts_short_never_gets_its_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    writer = context.Process(target=_write_under_a_limit, args=(tmp_path / "x", theirs))
    writer.start()
    assert mine.recv().startswith(f"cannot write the thing {tmp_path / 'x'}: File too large; raise the limit")
    writer.join()
    assert list(tmp_path.iterdir()) == []
