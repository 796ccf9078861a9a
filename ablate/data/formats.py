"""The texts of one file: what its ending says it is, plain or compressed.

A row (of JSON, CSV, Parquet, Arrow or a dataset) has its text in a field: a string, or a list of messages.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.data.left_out import LeftOut, Unusable

TEXT = (".txt", ".md", ".py")
JSON_LINES = (".jsonl", ".ndjson")
JSON = (".json",)
TABLES = (".csv", ".tsv")
COLUMNS = (".parquet", ".arrow")
COMPRESSED = (".gz", ".zst")
READABLE = (*TEXT, *JSON_LINES, *JSON, *TABLES)  # as they are, or compressed
FIELDS = ("text", "messages", "conversations")  # where a row's text is sought unless a field is named
ROWS_WITHOUT_TEXT = 100

CURE = "name the one with the text with --text-field"

Text = tuple[str, str]  # the name of a document, and its text
Row = tuple[int, Any]  # its number from 1, and what it holds; an Unusable that says why it cannot be read


def is_readable(name: str) -> bool:
    """Whether the ending of a file's name is one of those that mean text or rows."""
    return _ending(name).endswith((*READABLE, *COLUMNS))


def _ending(name: str) -> str:
    """The name in lower case, without the ending of a compressed text or table."""
    name = name.lower()
    plain = name.removesuffix(".gz").removesuffix(".zst")
    return name if plain.endswith(COLUMNS) else plain


def file_texts(path: Path, name: str, text_field: str, left_out: LeftOut) -> Iterator[Text]:
    """Texts of a file, in its order; a file of unknown ending is text. Rows without a text are told to `left_out`.

    Raises Unusable where a file cannot be read, or no further; ValueError if a package that it needs is absent.
    """
    try:
        ending = _ending(name)
        if ending.endswith(COLUMNS):
            yield from row_texts(_columns(path, text_field), text_field, name, left_out)
            return
        with _opened(path) as file:
            if ending.endswith(JSON_LINES):
                yield from row_texts(_json_lines(file, path), text_field, name, left_out)
            elif ending.endswith(JSON):
                yield from row_texts(_json(file.read(), path), text_field, name, left_out)
            elif ending.endswith(TABLES):
                yield from row_texts(_table(file, text_field, path), text_field, name, left_out)
            else:
                yield name, _decoded(file.read(), str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise Unusable("unreadable", f"{path} cannot be read ({error}); give a readable, whole file") from error


def row_texts(rows: Iterable[Row], text_field: str, name: str, left_out: LeftOut) -> Iterator[Text]:
    """The texts of rows that have one, under the file's name and the row's number; others are told to `left_out`.

    Raises Unusable if the first 100 rows have none: their field has another name, and a stream would never end.
    """
    without: list[tuple[Unusable, str]] = []  # before the first row with a text
    given = False
    for number, row in rows:
        place = f"{name}:{number}"
        try:
            if isinstance(row, Unusable):
                raise row
            text = _row_text(row, text_field, place)
        except Unusable as error:
            if given:
                left_out.add_unusable(error, place)
            else:
                without.append((error, place))
            if len(without) == ROWS_WITHOUT_TEXT:
                raise without[0][0] from None
            continue
        while without:
            left_out.add_unusable(*without.pop(0))
        given = True
        yield place, text
    for fault, place in without:
        left_out.add_unusable(fault, place)


def _opened(path: Path) -> io.BufferedReader:
    ending = path.suffix.lower()
    if ending == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))
    if ending == ".zst":
        pyarrow = _pyarrow(f"{path} is compressed with Zstandard")
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _pyarrow(why: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError(f"{why} and pyarrow is absent: pip install 'dsv3-ablate[parquet]'") from error
    return pyarrow


def _decoded(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        sentence = f"{where} is not UTF-8 text (byte {error.start}); give text, or convert it to UTF-8"
        raise Unusable("not UTF-8", sentence) from error
    if "\0" in text:
        raise Unusable("binary", f"{where} is binary (NUL at character {text.index(chr(0))}); give UTF-8 text")
    return text


def _json_lines(lines: Iterable[bytes], path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, _parsed(line, f"{path} line {number}")
            except Unusable as error:
                yield number, error


def _json(raw: bytes, path: Path) -> Iterator[Row]:
    """One value, a list of them, or (as many publish them under this ending) one on each line."""
    try:
        whole = _parsed(raw, str(path))
    except Unusable as error:
        lines = list(_json_lines(io.BytesIO(raw), path)) if error.reason == "not JSON" else []
        if len(lines) < 2 or isinstance(lines[0][1], Unusable):
            raise
        yield from lines
        return
    yield from enumerate(whole if isinstance(whole, list) else [whole], start=1)


def _parsed(raw: bytes, where: str) -> Any:
    text = _decoded(raw, where)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        sentence = f'{where} is not JSON ({error}); a row must be like {{"text": "..."}}'
        raise Unusable("not JSON", sentence) from error


def _table(file: io.BufferedReader, text_field: str, path: Path) -> Iterator[Row]:
    """Rows of comma-, semicolon- or tab-separated text by the names in its first line."""
    csv.field_size_limit(sys.maxsize)  # by default 128 KiB, which is less than a document
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
            head = lines.readline()
            for delimiter in (",", ";", "\t"):
                columns = next(csv.reader([head], delimiter=delimiter), [])
                if _column(columns, text_field):
                    yield from enumerate(csv.DictReader(lines, columns, delimiter=delimiter), start=1)
                    return
        raise Unusable("without text", f"{path} has no column {_named(text_field)} in its first line; {CURE}")
    except UnicodeDecodeError as error:
        sentence = f"{path} is not UTF-8 text (byte {error.start}); give text, or convert it to UTF-8"
        raise Unusable("not UTF-8", sentence) from error
    except csv.Error as error:
        raise Unusable("not CSV", f"{path} is not a table ({error}); write it again") from error


def _columns(path: Path, text_field: str) -> Iterator[Row]:
    """Rows of a Parquet file, or of an Arrow file such as `Dataset.save_to_disk` writes; only one column is read."""
    is_parquet = path.suffix.lower() == ".parquet"
    pyarrow = _pyarrow(f"{path} is {'Parquet' if is_parquet else 'Arrow'}")
    number = 0
    try:
        for batch in _parquet(path, text_field) if is_parquet else _arrow(path, text_field):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        kind = "Parquet" if is_parquet else "Arrow"
        raise Unusable("unreadable", f"{path} is not a whole {kind} file ({error}); write it again") from error


def _parquet(path: Path, text_field: str) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as table:
        column = _needed_column(table.schema_arrow.names, text_field, path)
        yield from table.iter_batches(columns=[column])


def _arrow(path: Path, text_field: str) -> Iterator[Any]:
    import pyarrow.ipc

    with pyarrow.memory_map(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"  # the other form is a stream, which is what the datasets library writes
        file.seek(0)
        reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
        column = _needed_column(reader.schema.names, text_field, path)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            yield batch.select([column])


def _needed_column(columns: Sequence[str], text_field: str, path: Path) -> str:
    column = _column(columns, text_field)
    if column is None:
        sentence = f"{path} has no column {_named(text_field)}, only {', '.join(columns)}; {CURE}"
        raise Unusable("without text", sentence)
    return column


def _column(columns: Sequence[str], text_field: str) -> str | None:
    """The column that the text is in: of that name, or of the first part of a dotted one."""
    tops = [top for name in _fields(text_field) for top in (name, name.split(".")[0]) if top in columns]
    return tops[0] if tops else None


def _fields(text_field: str) -> tuple[str, ...]:
    return (text_field,) if text_field else FIELDS


def _named(text_field: str) -> str:
    return " or ".join(f'"{name}"' for name in _fields(text_field))


def _row_text(row: Any, text_field: str, where: str) -> str:
    for name in _fields(text_field):
        value = _value(row, name)
        text = "\n\n".join(map(_message, value)) if isinstance(value, list) else value
        if isinstance(text, str):
            break
    else:
        only = f", only {', '.join(map(str, row))}" if isinstance(row, Mapping) else ""
        sentence = f"{where} has no field {_named(text_field)} that is a string or a list of messages{only}; {CURE}"
        raise Unusable("without text", sentence)
    try:
        # JSON can spell half of a surrogate pair, which no UTF-8 file can hold.
        text.encode()
    except UnicodeEncodeError as error:
        sentence = f"{where} holds half a surrogate pair at character {error.start}; give whole text"
        raise Unusable("not UTF-8", sentence) from error
    return text


def _value(row: Any, name: str) -> Any:
    """What a dotted name leads to, through tables by name and through lists by number; None if it leads nowhere."""
    if isinstance(row, Mapping):
        if name in row:
            return row[name]
        first, _, rest = name.partition(".")
        return _value(row[first], rest) if rest and first in row else None
    first, _, rest = name.partition(".")
    if isinstance(row, list) and first.isdecimal() and int(first) < len(row):
        return _value(row[int(first)], rest) if rest else row[int(first)]
    return None


def _message(message: Any) -> str:
    """A message as text: who speaks, and what is said (a string, or parts of which some are text)."""
    if not isinstance(message, Mapping):
        return message if isinstance(message, str) else ""
    role = message.get("role", message.get("from"))
    said = message.get("content", message.get("value", message.get("text")))
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in _as_list(said)]
    content = "\n".join(part for part in parts if isinstance(part, str))
    return f"{role}: {content}" if role and content else content


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
