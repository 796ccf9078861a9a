"""Files and folders that are whole or absent: written beside their place, on the disk before they get their name.

A record is committed once and never replaced (`commit_once`); other texts are replaced at once (`replace_file`). The
program's own JSON is sealed with its hash (`write_sealed`), and a folder with those of its files (`commit_folder`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
WRITING = ".writing-"  # prefix of what is not committed yet
STALE_AFTER_S = 86_400  # a writer that was killed a day ago is not coming back
COMMIT_ATTEMPTS = 5


def to_json(data: Any) -> str:
    """JSON for people to read. NaN and infinity are refused: a metric that is not a number is left out."""
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def commit_once(path: Path, text: str) -> bool:
    """Create `path` whole or not at all, and only if it does not exist; durable when it returns.

    False if it existed, which is then left as it is.
    """
    temporary = _written(path, text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync(path.parent)
    return True


def replace_file(path: Path, text: str) -> None:
    """Create or replace `path` whole or not at all; durable when it returns."""
    temporary = _written(path, text)
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _written(path: Path, text: str) -> Path:
    # Beside the destination, never in $TMPDIR: a rename or link across file systems would be a copy.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{WRITING}{uuid.uuid4().hex}")
    with open(temporary, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def write_sealed(path: Path, value: Any) -> None:
    """Write a JSON value with its own sha256, in place of whatever was there."""
    replace_file(path, json.dumps({"sha256": _json_hash(value), "value": value}, indent=1, sort_keys=True))


def read_sealed(path: Path) -> Any | None:
    """The value that write_sealed wrote, or None if the file is absent, torn or altered."""
    try:
        sealed = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(sealed, dict) or sealed.get("sha256") != _json_hash(sealed.get("value")):
        return None
    return sealed["value"]


def _json_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def new_folder(parent: Path) -> Iterator[Path]:
    """An empty folder in parent for commit_folder; removed at the end if it was not committed."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(parent)
    folder = parent / f"{WRITING}{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    for folder in parent.glob(f"{WRITING}*"):
        try:
            if time.time() - folder.stat().st_mtime > STALE_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            # Its writer has just committed it.
            continue


def commit_folder(folder: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """Seal the folder's files in manifest["files"] (bytes, sha256) and rename it to final; durable when it returns.

    If another process was first and its folder is sound, that one stays; a damaged one makes way.
    """
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = _file_facts(path)
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
            # Renaming first takes the damaged folder away in one step, so nobody finds half of it.
            # Another process may have done so already.
            with new_folder(final.parent) as aside, suppress(FileNotFoundError):
                os.rename(final, aside / "damaged")
        else:
            _sync(final.parent)
            return
    raise OSError(f"{final} was replaced {COMMIT_ATTEMPTS} times while it was being written")


def damage(folder: Path) -> str | None:
    """What is wrong with a committed folder, or None: every file must have the size and sha256 in the manifest."""
    manifest = read_sealed(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return f"{MANIFEST} is absent or damaged"
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is absent"
        if path.stat().st_size != facts["bytes"] or _file_facts(path) != facts:
            return f"{name} is not what the manifest says"
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
