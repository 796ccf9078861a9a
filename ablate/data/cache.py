"""What is said when prepared corpora cannot be put into their cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
