"""Any file of results -> one sheet: separated text, Markdown, JSON, Parquet, Optuna's storages, W&B's exports.

What a file is, is read off its content and not off its name, so that standard input and odd endings work too.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.attribution.table.sheet import Sheet, one_line, sheet_of
from ablate.attribution.table.trials import is_journal, read_journal, read_sqlite

if TYPE_CHECKING:
    from pandas import DataFrame

COMPRESSED = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress}
SEPARATORS = ",;\t|"
LONGEST_CELL = 1 << 30


def read_sheet(source: str | Path | DataFrame | Mapping[str, list[object]], study: str | None = None) -> Sheet:
    """Cells of a file ("-": standard input), a data frame or a mapping of columns. ValueError says what cannot be read.

    study: which one of an Optuna storage with several.
    """
    if not isinstance(source, str | Path):
        return sheet_of(source)
    name = "standard input" if str(source) == "-" else str(source)
    try:
        data = sys.stdin.buffer.read() if str(source) == "-" else Path(source).read_bytes()
        unpack = next((unpack for magic, unpack in COMPRESSED.items() if data.startswith(magic)), None)
        data = unpack(data) if unpack else data
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as problem:
        raise ValueError(f"cannot read {name}: {problem}; give a whole, readable file with a table") from problem
    if data.startswith(b"SQLite format 3\0"):
        return read_sqlite(data, name, study)
    if data.startswith((b"PAR1", b"ARROW1")):
        return _columnar(data, name)
    if data.startswith(b"PK\x03\x04"):
        raise ValueError(f"{name} is a spreadsheet or a zip archive; save the sheet as CSV and give that")
    text, warning = _decoded(data, name)
    if is_journal(text):
        return read_journal(text, name, study)
    sheet = _json(text, name) if text.lstrip()[:1] in ("{", "[") else _separated(text, name)
    sheet = _expanded(_without_index(sheet))
    _refuse_charts(sheet)
    return replace(sheet, warnings=(warning, *sheet.warnings)) if warning else sheet


def _decoded(data: bytes, name: str) -> tuple[str, str]:
    """The text, and a warning where it had to be read as Windows-1252."""
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text, warning = data.decode(encoding), ""
    except UnicodeDecodeError:
        try:
            text, warning = data.decode("cp1252"), f"{name} is not in UTF-8 and was read as Windows-1252"
        except UnicodeDecodeError as problem:
            raise ValueError(f"cannot read {name}: {problem}; give a table as UTF-8 text") from problem
    if "\0" in text:
        raise ValueError(
            f"cannot read {name}: it holds zero bytes, so it is no text; give CSV, JSON, Parquet or SQLite"
        )
    return text, warning


def _columnar(data: bytes, name: str) -> Sheet:
    import pandas as pd

    try:
        read = pd.read_parquet if data.startswith(b"PAR1") else pd.read_feather
        # Nullable types: a 64-bit integer beside a blank stays an integer.
        return sheet_of(read(io.BytesIO(data), dtype_backend="numpy_nullable"), "row")
    except ImportError:
        raise ValueError(
            f"{name} is Parquet or Arrow; install dsv3-ablate[parquet], or give the table as CSV"
        ) from None
    except (OSError, ValueError) as problem:
        line = str(problem).splitlines()[0]
        raise ValueError(f"cannot read {name}: {line}; write the Parquet file again, or give CSV") from problem


def _json(text: str, name: str) -> Sheet:
    """JSON lines, a list of rows, or one of pandas' and W&B's layouts of a table; nested keys joined by dots."""
    import pandas as pd

    try:
        data = json.loads(text, parse_constant=str, parse_float=str)
    except (ValueError, RecursionError) as problem:
        data = _json_lines(text, f"cannot read {name} as JSON: {problem}; give a list of rows, or one row per line")
    layout = "give a list of objects, one per run"
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        names, rows = data.get("columns"), data["data"]
        data = rows if names is None or not all(isinstance(row, list) for row in rows) else [
            dict(zip(map(str, names), row, strict=False)) for row in rows
        ]  # fmt: skip
    if isinstance(data, dict) and data and all(key.isdigit() and isinstance(row, dict) for key, row in data.items()):
        data = list(data.values())
    if isinstance(data, dict) and data and all(isinstance(column, dict) for column in data.values()):
        rows = dict.fromkeys(key for column in data.values() for key in column)
        return sheet_of({name: [column.get(key) for key in rows] for name, column in data.items()}, "row")
    if isinstance(data, dict) and data and all(isinstance(column, list) for column in data.values()):
        return sheet_of(data, "row")
    if not isinstance(data, list) or not data or not all(isinstance(row, dict) for row in data):
        raise ValueError(f"{name} is JSON, but no table; {layout}")
    return sheet_of(pd.json_normalize(data).astype(object), "row")


def _json_lines(text: str, otherwise: str) -> list[object]:
    """One row per line. ValueError names the line that is none, or says `otherwise` where already the first is none."""
    rows = []
    for at, line in enumerate(text.split("\n"), start=1):  # other separators of lines may stand inside a string
        try:
            rows += [json.loads(line, parse_constant=str, parse_float=str)] if line.strip() else []
        except (ValueError, RecursionError) as problem:
            raise ValueError(
                f"line {at} is no JSON: {problem}; correct it or take it out" if rows else otherwise
            ) from None
    return rows


def _separated(text: str, name: str) -> Sheet:
    """Text with a header line; the separator is the one that makes most fields of the header."""
    text, given = _excel_directive(text)
    lines = io.StringIO(text, newline="").readlines()
    for at, line in enumerate(lines):  # remarks above the header
        if line.strip() and not (line.startswith("#") and not any(mark in line for mark in SEPARATORS)):
            break
        lines[at] = "\n"
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("|"):
        lines = [
            "\n" if re.fullmatch(r"[\s|:-]+", line) else re.sub(r"^\||\|$", "", line.strip()) + "\n" for line in lines
        ]
        first = next(line for line in lines if line.strip())
    separator = given or max(SEPARATORS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
    if separator not in first and len(first.split()) > 1:
        lines, separator = ["\t".join(line.split()) + "\n" for line in lines], "\t"
    header, rows = _records(lines, separator, name)
    columns = {column: [row[at] for _, row in rows] for at, column in enumerate(header)}
    for at, column in enumerate(header):
        if not column and at and any(row[at] for _, row in rows):
            raise ValueError(f"{name}: column {at + 1} has no name in the header line; give every column a name")
    if len(header) > 1 or header == [""]:
        columns = {column: cells for column, cells in columns.items() if column or header[0] == column}
    return Sheet(columns=columns, places=[f"line {line}" for line, _ in rows], decimal_comma=separator != ",")


def _excel_directive(text: str) -> tuple[str, str]:
    """The text after Excel's first line `sep=;`, blanked so that lines still count, and that separator."""
    found = re.match(r'"?sep=(.)"?(?=\r|\n)', text)
    return (text[found.end() :], found.group(1)) if found else (text, "")


def _records(lines: list[str], separator: str, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows with their lines. ValueError: no header, a column twice, ragged rows, a quote that never ends."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    header: list[str] = []
    rows = []
    try:
        for fields in reader:
            cells = [field.strip() for field in fields]
            if not any(cells):
                continue
            if not header:
                header = [one_line(cell) for cell in cells]
                continue
            while len(cells) > len(header) and not cells[-1]:
                cells.pop()
            if len(cells) != len(header):
                raise ValueError(
                    f"line {reader.line_num} has {len(cells)} fields and the header has {len(header)}; make them equal "
                    f"(a text or a decimal comma that contains the separator {separator!r} stands in quotes)"
                )
            rows.append((reader.line_num, cells))
    except csv.Error as problem:
        raise ValueError(f"{name}, line {reader.line_num}: {problem}; see to the quotes there") from problem
    repeated = next((column for column in header if column and header.count(column) > 1), None)
    if not header or not any(header):
        raise ValueError(f"{name} has no header line with a name for every column; the first line names the columns")
    if repeated:
        raise ValueError(f"{name}: the column {repeated!r} appears twice in the header; give every column its own name")
    return header, rows


def _without_index(sheet: Sheet) -> Sheet:
    """Without the row numbers that pandas writes as a first column of no name."""
    first = next(iter(sheet.columns), None)
    if first is None or not re.fullmatch(r"|index|Unnamed: 0(\.\d+)?|__index_level_0__", first):
        return sheet
    cells = sheet.columns[first]
    if len(set(cells)) == len(cells) and all(re.fullmatch(r"\d+", cell) for cell in cells):
        return sheet.without(first)
    if first:
        return sheet
    raise ValueError("the table has no header line with a name for every column: the first column has none")


def _expanded(sheet: Sheet) -> Sheet:
    """With cells that hold a whole mapping (W&B's API writes config and summary so) as one column per key."""
    for name, cells in sheet.columns.items():
        if cells and all(cell.startswith("{") and cell.endswith("}") for cell in cells):
            parsed = [_mapping(cell) for cell in cells]
            if any(row is None for row in parsed):
                continue
            keys = dict.fromkeys(key for row in parsed if row for key in row)
            inner = sheet_of({f"{name}.{key}": [(row or {}).get(key) for row in parsed] for key in keys})
            sheet = replace(sheet, columns={**sheet.without(name).columns, **inner.columns})
    return sheet


def _mapping(cell: str) -> dict[str, object] | None:
    """A cell that holds JSON or a Python literal, flattened; None for other text."""
    import ast

    import pandas as pd

    quoted = re.sub(r"(?<=[\s:\[,(])(-?(?:nan|inf|NaN|Infinity))(?=\s*[,}\])])", r"'\1'", cell)
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(cell if parse is json.loads else quoted)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict):
            return pd.json_normalize([found]).astype(object).iloc[0].to_dict()
    return None


def _refuse_charts(sheet: Sheet) -> None:
    """W&B's export of a chart has one column per run and cannot say what was on in it."""
    curves = [name.removesuffix("__MIN") for name in sheet.columns if name.endswith("__MIN")]
    if curves and all(curve in sheet.columns for curve in curves):
        raise ValueError(
            f"this is the export of a chart (a column per run, such as {curves[0]!r}) and does not say which "
            f"components were on; export the table of runs instead"
        )
