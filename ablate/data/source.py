"""Where documents come from: the standard library, files and folders, or a streamed Hugging Face dataset."""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.data.formats import COLUMNS, COMPRESSED, READABLE, Text, file_texts, is_readable, row_texts
from ablate.data.left_out import LeftOut, Unusable, printable

# A streamed dataset has no natural end that a machine can wait for; 256 MiB is about 60 M tokens at 4 bytes each.
DEFAULT_STREAM_BYTES = 256 * 1024**2
# Tests repeat themselves, `encodings` is tables, and `pydoc_data` is one generated file with 7 % of all text.
STDLIB_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
)
# These differ from machine to machine.
STDLIB_LOCAL = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")
# A file may change again within a tick of the file system's clock, and its time then stays the same.
CLOCK_TICK_NS = 20_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text with the name that its split is decided by: a path relative to the source, never a machine path."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Something that texts come from, opened but not read.

    `state` is equal as long as nothing in it has changed (for a dataset: always); None if that cannot be told yet.
    `left_out` is what has been left out so far, and grows while `texts`, which takes the name of the field that rows
    have their text in, is read.
    """

    name: str
    state: str | None
    left_out: LeftOut
    texts: Callable[[str], Iterator[Text]]
    default_max_bytes: int | None = None


def open_source(source: str) -> Source:
    """A source by its name: "stdlib", the path of a file or folder, or "hf:NAME[:CONFIG]" (its train split, streamed).

    Of a folder the files below it are read that end in what `formats` reads, in the order of their names; links to
    files are followed and links to folders are not. Raises ValueError for a source that is not there.
    """
    if source.startswith("hf:"):
        return _open_dataset(source)
    if source == "stdlib":
        root, left_out = Path(sysconfig.get_path("stdlib")), LeftOut()
        names = [name for name in _file_names(root, left_out, STDLIB_LEFT_OUT) if name.endswith(".py")]
        return _open_files(source, root, [name for name in names if not name.startswith(STDLIB_LOCAL)], left_out)
    path = Path(source)
    if source and path.is_dir():
        return _open_folder(source, path)
    if path.is_file():
        return _open_files(source, path.parent, [path.name], LeftOut(), alone=True)
    raise ValueError(
        f"{source!r} is neither a file nor a folder; give 'stdlib', a path to text, or 'hf:NAME' for a dataset"
    )


def documents(source: Source, *, max_bytes: int | None = None, text_field: str = "") -> list[Document]:
    """Documents of a source in its order, without blank ones and repeats of the same content, which it counts.

    max_bytes: UTF-8 bytes kept, counted from the first document; the last one is cut at a line border.
    text_field: of rows; dots lead into what is nested. Empty: "text", or a list of messages where there is none.
    Raises ValueError if there is no document, with what was wrong with the first file or row that is none.
    """
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes is {max_bytes}, but at least 1 byte of text is needed; leave it out for no cap")
    kept = list(_capped(_distinct(source.texts(text_field), source.left_out), max_bytes))
    if not kept:
        why = source.left_out.first or (f"left out: {source.left_out}" if source.left_out.counts else "no row in it")
        raise ValueError(
            f"the corpus {source.name!r} is empty: no document with text was found ({why}); give a source with text"
        )
    return kept


def _distinct(texts: Iterable[Text], left_out: LeftOut) -> Iterator[Document]:
    seen: set[bytes] = set()
    for name, text in texts:
        text = text.removeprefix("\ufeff")
        digest = hashlib.sha256(text.encode()).digest()
        if not text.strip():
            left_out.add("blank", name)
        elif digest in seen:
            left_out.add("repeating another's text", name)
        else:
            seen.add(digest)
            yield Document(name=name, text=text)


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


def _open_folder(source: str, root: Path) -> Source:
    left_out = LeftOut()
    names = []
    for name in _file_names(root, left_out):
        if is_readable(name):
            names.append(name)
        else:
            left_out.add("of unknown kind", name)
    if not names:
        endings = ", ".join((*READABLE, *(f"{READABLE[0]}{each}" for each in COMPRESSED), *COLUMNS))
        seen = f" (left out: {left_out})" if left_out.counts else ""
        raise ValueError(f"the folder {source!r} holds no file that ends in one of {endings}{seen}; add text files")
    return _open_files(source, root, names, left_out)


def _file_names(root: Path, left_out: LeftOut, passed_by: Collection[str] = ()) -> list[str]:
    """Paths of files below root with forward slashes, sorted; hidden files and folders are not corpora."""
    found: list[str] = []

    def unreadable(error: OSError) -> None:
        left_out.add("unreadable", os.path.relpath(error.filename, root))

    for folder, subfolders, files in os.walk(root, onerror=unreadable):
        place = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if place == "." else f"{place}/"
        subfolders[:] = sorted(name for name in subfolders if name not in passed_by)
        for name in [name for name in subfolders if name.startswith(".")]:
            left_out.add("hidden", f"{prefix}{name}/")
            subfolders.remove(name)
        for name in subfolders:
            if os.path.islink(os.path.join(folder, name)):
                left_out.add("linking to a folder", f"{prefix}{name}")
        for name in sorted(files):
            if name.startswith("."):
                left_out.add("hidden", f"{prefix}{name}")
            else:
                found.append(f"{prefix}{name}")
    return sorted(found)


def _open_files(source: str, root: Path, names: list[str], left_out: LeftOut, *, alone: bool = False) -> Source:
    """Regular files below root. A FIFO or a device is left out: reading it could wait for ever.

    A file that cannot be read is left out too, unless it is `alone`, all that was asked for.
    """
    regular, newest = [], 0
    state = hashlib.sha256(repr((str(root.resolve()), left_out.facts())).encode())
    for name in names:
        try:
            facts = (root / name).stat()
        except OSError as error:
            left_out.add("linking nowhere" if (root / name).is_symlink() else "unreadable", name)
            state.update(repr((name, error.errno)).encode())
            continue
        if not stat.S_ISREG(facts.st_mode):
            left_out.add("pipe, socket or device", name)
            continue
        regular.append(name)
        newest = max(newest, facts.st_ctime_ns, facts.st_mtime_ns)
        state.update(repr((name, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)).encode())

    def texts(text_field: str) -> Iterator[Text]:
        for name in regular:
            try:
                yield from file_texts(root / name, printable(name), text_field, left_out)
            except Unusable as error:
                if alone:
                    raise
                left_out.add_unusable(error, name)

    settled = newest < time.time_ns() - CLOCK_TICK_NS
    return Source(name=source, state=state.hexdigest() if settled else None, left_out=left_out, texts=texts)


def _open_dataset(source: str) -> Source:
    """No code of the dataset is run."""
    name, _, config = source.removeprefix("hf:").partition(":")
    if not name:
        raise ValueError(f"{source!r} names no dataset; give 'hf:NAME' or 'hf:NAME:CONFIG'")
    left_out = LeftOut()

    def rows() -> Iterator[tuple[int, Any]]:
        try:
            import datasets
        except ImportError as error:
            raise ValueError(f"{source!r} needs the datasets package: pip install 'dsv3-ablate[datasets]'") from error
        # The network can fail at the first row and at any later one.
        try:
            yield from enumerate(datasets.load_dataset(name, config or None, split="train", streaming=True), start=1)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the dataset {source!r} cannot be read ({error}); check its name and the network"
            ) from error

    def texts(text_field: str) -> Iterator[Text]:
        return row_texts(rows(), text_field, name, left_out)

    return Source(name=source, state="", left_out=left_out, texts=texts, default_max_bytes=DEFAULT_STREAM_BYTES)
