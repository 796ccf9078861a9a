"""Where prepared corpora live, and what is said when they cannot be put there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ablate.spec.machine import cache_folder


def default_cache() -> Path:
    """Where prepared corpora live unless a folder is named: $XDG_CACHE_HOME/dsv3-ablate or ~/.cache/dsv3-ablate."""
    return cache_folder()


@contextmanager
def writing(cache: Path) -> Iterator[None]:
    """Turn what the file system refuses inside the block into one sentence (ValueError)."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ValueError(
            f"the cache folder {cache} cannot be written ({error.strerror or error}); "
            "give a folder that can be, or set XDG_CACHE_HOME to one"
        ) from error
