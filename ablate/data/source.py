"""Where documents come from: the standard library, files and folders, or a streamed Hugging Face dataset."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT_SUFFIXES = (".txt", ".md", ".py")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")
PARQUET_SUFFIX = ".parquet"
# A streamed dataset has no natural end that a machine can wait for; 256 MiB is about 60 M tokens at 4 bytes each.
DEFAULT_STREAM_BYTES = 256 * 1024**2
# Tests repeat themselves, `encodings` is tables, and `pydoc_data` is one generated file with 7 % of all text, which
# would be 70 % of the held-out text because its name happens to fall there.
STDLIB_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
)
# These differ from machine to machine.
STDLIB_LOCAL = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text with the name that its split is decided by: a path relative to the source, never a machine path."""

    name: str
    text: str


def documents(source: str, *, max_bytes: int | None = None) -> list[Document]:
    """Documents of a source, sorted by name, without blank ones and without repeats of the same content.

    source: "stdlib", a path to a file or folder of .txt .md .py .jsonl .jsonl.gz .parquet, or "hf:NAME[:CONFIG]"
    (rows in the dataset's own order, 256 MiB unless max_bytes says otherwise).
    max_bytes: UTF-8 bytes kept, counted from the first document; the last one is cut at a line border.
    Raises ValueError for an absent, empty or binary source and for a row without text.
    """
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes is {max_bytes}, but at least 1 byte of text is needed; leave it out for no cap")
    if source.startswith("hf:"):
        max_bytes = DEFAULT_STREAM_BYTES if max_bytes is None else max_bytes
        found = _dataset_rows(source)
    elif source == "stdlib":
        found = _stdlib_documents()
    else:
        found = _path_documents(source)
    kept = list(_capped(_distinct(found), max_bytes))
    if not kept:
        raise ValueError(f"the corpus {source!r} is empty: no document with text was found; give a source with text")
    return kept


def _distinct(found: Iterable[Document]) -> Iterator[Document]:
    seen: set[bytes] = set()
    for document in found:
        digest = hashlib.sha256(document.text.encode()).digest()
        if document.text.strip() and digest not in seen:
            seen.add(digest)
            yield document


def _capped(found: Iterable[Document], max_bytes: int | None) -> Iterator[Document]:
    if max_bytes is None:
        yield from found
        return
    left = max_bytes
    for document in found:
        encoded = document.text.encode()
        if len(encoded) > left:
            # A cut in a character drops its torn bytes; one inside a line drops that line, unless it is the first.
            text = encoded[:left].decode(errors="ignore")
            text = text[: text.rfind("\n") + 1] or text
            if text.strip():
                yield Document(name=document.name, text=text)
            return
        left -= len(encoded)
        yield document
        if left == 0:
            return


def _stdlib_documents() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(_file_names(root, (".py",)))
    for name in names:
        parts = name.split("/")
        if STDLIB_LEFT_OUT.intersection(parts) or parts[0].startswith(STDLIB_LOCAL):
            continue
        try:
            yield Document(name=name, text=(root / name).read_bytes().decode())
        except UnicodeDecodeError:
            # A few sources of other Python versions declare another encoding; the corpus does without them.
            continue


def _path_documents(source: str) -> Iterator[Document]:
    path = Path(source)
    if path.is_dir():
        suffixes = (*TEXT_SUFFIXES, *JSONL_SUFFIXES, PARQUET_SUFFIX)
        names = sorted(_file_names(path, suffixes))
        if not names:
            raise ValueError(
                f"the folder {source!r} holds no file that ends in one of {', '.join(suffixes)}; add text files"
            )
        for name in names:
            yield from _file_documents(path / name, name)
    elif path.is_file():
        yield from _file_documents(path, path.name)
    else:
        raise ValueError(
            f"{source!r} is neither a file nor a folder; give 'stdlib', a path to text, or 'hf:NAME' for a dataset"
        )


def _file_names(root: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Paths below root with forward slashes; hidden files and folders are not corpora."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for file in files:
            if file.endswith(suffixes) and not file.startswith("."):
                yield (Path(folder) / file).relative_to(root).as_posix()


def _file_documents(path: Path, name: str) -> Iterator[Document]:
    """Documents of one file; a file of unknown ending is read as text, and refused if it is binary."""
    try:
        if name.endswith(JSONL_SUFFIXES):
            yield from _jsonl_documents(path, name)
        elif name.endswith(PARQUET_SUFFIX):
            yield from _parquet_documents(path, name)
        else:
            yield Document(name=name, text=_checked_text(path.read_bytes(), str(path)))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a readable, whole file") from error


def _checked_text(raw: bytes, where: str) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 text (byte {error.start}); give text, or convert it to UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"{where} is binary (NUL at character {text.index(chr(0))}); give UTF-8 text")
    return text


def _jsonl_documents(path: Path, name: str) -> Iterator[Document]:
    open_lines = gzip.open if name.endswith(".gz") else open
    with open_lines(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path} line {number}"
            if not line.strip():
                continue
            text = _checked_text(line, where).removeprefix("\ufeff")
            try:
                row = json.loads(text)
            except ValueError as error:
                raise ValueError(f'{where} is not JSON ({error}); each line must be like {{"text": "..."}}') from error
            yield _row_document(row, f"{name}:{number}", where)


def _parquet_documents(path: Path, name: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path} is Parquet and pyarrow is absent: pip install 'dsv3-ablate[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            if "text" not in table.schema_arrow.names:
                columns = ", ".join(table.schema_arrow.names)
                raise ValueError(f'{path} has no "text" column, only {columns}; rename the one with the text')
            number = 0
            for batch in table.iter_batches(columns=["text"]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield _row_document({"text": text}, f"{name}:{number}", f"{path} row {number}")
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error}); write it again") from error


def _dataset_rows(source: str) -> Iterator[Document]:
    """Rows of the train split, streamed; no code of the dataset is run."""
    name, _, config = source.removeprefix("hf:").partition(":")
    if not name:
        raise ValueError(f"{source!r} names no dataset; give 'hf:NAME' or 'hf:NAME:CONFIG'")
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{source!r} needs the datasets package: pip install 'dsv3-ablate[datasets]'") from error

    def rows() -> Iterator[Any]:
        # The network can fail at the first row and at any later one.
        try:
            yield from datasets.load_dataset(name, config or None, split="train", streaming=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the dataset {source!r} cannot be read ({error}); check its name and the network"
            ) from error

    for number, row in enumerate(rows(), start=1):
        yield _row_document(row, f"{name}:{number}", f"{source} row {number}")


def _row_document(row: Any, name: str, where: str) -> Document:
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(f'{where} has no "text" field that is a string; each row must be like {{"text": "..."}}')
    try:
        # JSON can spell half of a surrogate pair, which no UTF-8 file can hold.
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half a surrogate pair at character {error.start}; give whole text") from error
    return Document(name=name, text=text)
