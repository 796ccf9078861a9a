"""Files and folders that are whole or absent: written beside their place, on the disk before they get their name.

A record is committed once and never replaced (`commit_once`); other texts are replaced at once (`replace_file`). The
program's own documents are sealed with their hash (`sealed`), a folder with those of its files (`commit_folder`).
A writer holds a lock on what it has not committed; what a killed one left is removed by the next in the same folder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ablate.documents import SEAL, read_sealed_document, text_hash

MANIFEST = "manifest.json"
WRITING = ".writing-"  # prefix of what is not committed yet
STALE_AFTER_S = 86_400  # where the file system has no locks: a writer that was killed a day ago is not coming back
COMMIT_ATTEMPTS = 5
NOT_HASHED: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
PLAIN_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,64}")

CURES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in your quota there",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount it writable, or choose another folder",
    errno.EACCES: "get the right to write there, or choose another folder",
    errno.EPERM: "get the right to write there, or choose another folder",
}


class CannotWrite(OSError):
    """The system refused a write: what was being written and where, why it could not be, and what to do."""

    def __init__(self, what: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.what = what

    def __str__(self) -> str:
        cure = CURES.get(self.errno or 0, "mend that")
        return f"cannot write {self.what}: {self.strerror}; {cure}, then give the same command again"


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Whatever the system refuses inside the block is a `CannotWrite` of `what`, which names the path."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(what, error) from error


def check_names(names: Iterable[str], where: str) -> None:
    """ValueError unless names that were read stay in the folder that they are files of."""
    for name in names:
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{where} is {name!r}, which is no name of a file here; put the file back from a copy")


def to_json(data: Any) -> str:
    """JSON for people to read. NaN and infinity are refused: a metric that is not a number is left out."""
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def sealed(data: Mapping[str, Any]) -> str:
    """The JSON of a document with the sha256 of its own text, so that every altered bit is seen."""
    text = to_json({**data, SEAL: ""})
    # Encoded once: only the document's own key stands at the start of a line behind one space.
    return text.replace(f'\n "{SEAL}": ""', f'\n "{SEAL}": "{text_hash(text)}"', 1)


def commit_once(path: Path, text: str, what: str = "the file") -> bool:
    """Create `path` whole or not at all, and only if it does not exist; durable when it returns.

    False if it existed, which is then left as it is. CannotWrite of `what` if the system refuses.
    """
    with writing(f"{what} {path}"), _written(path, text) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _sync(path.parent)
    return True


def replace_file(path: Path, text: str, what: str = "the file", *, durable: bool = True) -> None:
    """Create or replace `path` whole or not at all; durable when it returns. CannotWrite if the system refuses.

    Not `durable`: for a sealed text that is written anew where it does not stand, so that a power cut may take it.
    """
    with writing(f"{what} {path}"), _written(path, text, durable=durable) as temporary:
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)


@contextmanager
def _written(path: Path, text: str, *, durable: bool = True) -> Iterator[Path]:
    # Beside the destination, never in $TMPDIR: a rename or link across file systems would be a copy.
    with _unfinished(path.parent, Path.touch) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        yield temporary


@contextmanager
def _unfinished(parent: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    """A new name in parent that nobody collects while this process holds it; removed at the end if still there."""
    parent.mkdir(parents=True, exist_ok=True)
    collect(parent)
    path, lock = _create_held(parent, create)
    with lock:
        try:
            yield path
        finally:
            _remove(path)


def _create_held(parent: Path, create: Callable[[Path], None]) -> tuple[Path, ExitStack]:
    while True:
        path = _unfinished_name(parent)
        create(path)
        # It may be taken for abandoned between its creation and the lock.
        with ExitStack() as stack, suppress(FileNotFoundError):
            stack.enter_context(_held(path))
            if path.exists():
                return path, stack.pop_all()


def _unfinished_name(parent: Path) -> Path:
    return parent / f"{WRITING}{uuid.uuid4().hex}"


@contextmanager
def _held(path: Path, flags: int = 0) -> Iterator[bool]:
    """The lock that says that a writer lives; False where the file system has none. BlockingIOError: another has it."""
    descriptor, locked = os.open(path, os.O_RDONLY), True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        except BlockingIOError:
            raise
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def collect(folder: Path) -> None:
    """Remove what writers that are no more left unfinished in a folder; a living writer's stays."""
    for path in folder.glob(f"{WRITING}*"):
        # Committed meanwhile, in use, or not ours to remove: it is in nobody's way.
        with suppress(OSError), _held(path, fcntl.LOCK_NB) as locked:
            if locked or time.time() - path.stat().st_mtime > STALE_AFTER_S:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Take a folder away in one step, so that nobody finds half of it; one that is gone is none to remove."""
    aside = _unfinished_name(folder.parent)
    with suppress(FileNotFoundError):
        os.rename(folder, aside)
    _remove(aside)


def write_sealed(path: Path, value: Any, what: str = "the file") -> None:
    """Write a JSON value with a seal, in place of whatever was there. CannotWrite if the system refuses."""
    replace_file(path, sealed({"value": value}), what)


def read_sealed(path: Path) -> Any | None:
    """The value that write_sealed wrote, or None if the file is absent, torn or altered."""
    try:
        return read_sealed_document(path, "", "").get("value")
    except ValueError:
        return None


@contextmanager
def new_folder(parent: Path, what: str = "") -> Iterator[Path]:
    """An empty folder in parent for commit_folder; removed at the end if it was not committed.

    What the system refuses inside is a CannotWrite of `what`.
    """
    with writing(what or f"into the folder {parent}"), _unfinished(parent, Path.mkdir) as folder:
        yield folder


def commit_folder(
    folder: Path, final: Path, manifest: Mapping[str, Any], hashed: Mapping[str, Mapping[str, Any]] = NOT_HASHED
) -> None:
    """Seal the folder's files in manifest["files"] (bytes, sha256) and rename it to final; durable when it returns.

    hashed: bytes and sha256 of files, by name, from who wrote them; the others are read for theirs.
    If another process was first and its folder is sound, that one stays; a damaged one makes way.
    """
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = dict(hashed.get(path.name) or _file_facts(path))
        _sync(path)
    write_sealed(folder / MANIFEST, {**manifest, "files": files})
    for _ in range(COMMIT_ATTEMPTS):
        try:
            os.rename(folder, final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            if damage(final) is None:
                return
            remove_folder(final)
        else:
            _sync(final.parent)
            return
    raise OSError(f"{final} was replaced {COMMIT_ATTEMPTS} times while it was being written")


def damage(folder: Path, *needed: str) -> str | None:
    """What is wrong with a committed folder, or None: every file must have the size and sha256 in the manifest.

    `needed`: files that must be among them.
    """
    manifest = read_sealed(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        return f"{MANIFEST} is absent or damaged"
    for name in dict.fromkeys((*needed, *files)):
        try:
            if name not in files or not (folder / name).is_file():
                return f"{name} is absent"
            if _file_facts(folder / name) != files[name]:
                return f"{name} is not what the manifest says"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _file_facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
