"""A teacher's text on disk: written once with its manifest, verified when read, split into training and held-out."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from ablate.data.corpus import Corpus, held_out_documents
from ablate.data.source import open_source
from ablate.files import MANIFEST, commit_folder, new_folder, read_sealed
from ablate.randomness import fraction
from ablate.spec.decoding import FORBID_UNKNOWN, decode
from ablate.spec.machine import cache_folder

FORMAT = 1
TEXT = "text.jsonl.gz"
HELD_OUT_SHARE = 0.1  # of the documents that prompts came from


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherDocument:
    """One text that a teacher wrote, and the training document and the kind of prompt that it was written from."""

    document: str
    text: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Where a teacher's text comes from. FLOPs are None for a teacher that does not tell its size."""

    teacher: Mapping[str, Any]  # what the teacher says of itself
    corpus_source: str
    corpus_hash: str
    temperature: float
    seed: int
    prompt_tokens: int  # of the corpus's vocabulary, at most, a prompt
    max_tokens: int  # of the teacher's vocabulary, at most, a text
    filters: Mapping[str, Any]
    n_prompts: int
    prompts_hash: str  # sha256 over the prompts in order
    n_kept: int
    dropped: Mapping[str, int]  # filter -> texts, each counted by the first filter that dropped it
    n_tokens: int  # kept, in the corpus's vocabulary
    n_bytes: int  # kept
    n_forward_tokens: int  # that the teacher read or wrote, dropped texts included
    flops_per_token: float | None  # forward
    writing_flops: float | None
    text_hash: str  # sha256 of the uncompressed text
    made_on: str  # date, ISO 8601
    made_with: Mapping[str, str]
    # What texts written before the kinds of prompts do not say.
    n_prompts_by_kind: Mapping[str, int] = field(default_factory=dict)
    n_kept_by_kind: Mapping[str, int] = field(default_factory=dict)
    n_prompts_left_out: int = 0  # since held-out text has 13 of their words in a row too
    n_opening_bytes: int = 0  # kept: what the texts begin with, which the training documents gave
    writing_s: float | None = None
    held_out_bits_per_byte: float | None = None  # of the teacher on the corpus's held-out text
    held_out_hash: str = ""  # sha256 of the held-out text that the filters saw
    format: int = FORMAT

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN


def ready_made() -> tuple[str, ...]:
    """Names of the texts that ship with the package."""
    return tuple(sorted(path.name for path in _shipped().iterdir() if path.is_dir()))


def _shipped() -> Path:
    return Path(str(resources.files("ablate.components.distill"))) / "teacher_text"


def folder_of(text: str) -> Path:
    """Folder of a teacher's text: a ready-made one by name, another by path."""
    return _shipped() / text if text in ready_made() else Path(text)


def written_for(source: str) -> Path:
    """Where `dsv3-ablate distill` puts the text for a source of documents if no other folder is named."""
    place = str(Path(source).resolve()) if Path(source).exists() else source
    return cache_folder() / "teacher-texts" / hashlib.sha256(place.encode()).hexdigest()[:16]


def text_for(text: str, source: str) -> str:
    """`text` if it continues documents of `source`, else what was written for that source; ValueError without one."""
    continues = read_manifest(text).corpus_source
    if continues == source:
        return text
    known = written_for(source)
    if (known / MANIFEST).is_file():
        return str(known)
    if not source.startswith("hf:"):
        open_source(source)  # one that is not there is told before a text is asked for
    raise ValueError(
        f"the teacher text {text} continues documents of {continues}, and this corpus is {source}; write one for it "
        f"with `dsv3-ablate distill --data {source} --teacher smollm2-135m`, which is then found, or leave distill off"
    )


def check_held_out(text: str, corpus: Corpus) -> None:
    """ValueError if a text was filtered against other held-out text than the corpus has now.

    A ready-made one is taken beside every release of Python (see README.md).
    """
    expected = read_manifest(text).held_out_hash
    if text not in ready_made() and expected and expected != held_out_hash(corpus):
        raise ValueError(
            f"the corpus {corpus.source} has other held-out text than when the teacher text {text} was written, so "
            "the two may overlap; remove that folder and write the text again with `dsv3-ablate distill`"
        )


def held_out_hash(corpus: Corpus) -> str:
    """sha256 of the corpus's held-out documents, whatever its vocabulary."""
    digest = hashlib.sha256()
    for document in held_out_documents(corpus):
        digest.update(f"{document.name}\n{len(document.text)}\n{document.text}".encode())
    return digest.hexdigest()


def read_manifest(text: str) -> Manifest:
    """The manifest of a teacher's text; ValueError if there is none, or it was altered."""
    path = folder_of(text) / MANIFEST
    try:
        facts = path.stat()
    except OSError:
        raise ValueError(
            f"there is no teacher text {text!r} (no {MANIFEST} in {path.parent}); write one with "
            f"`dsv3-ablate distill`, or name a ready-made one: {', '.join(ready_made()) or 'none ships'}"
        ) from None
    return _manifest(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=8)
def _manifest(path: Path, mtime_ns: int, size: int) -> Manifest:
    # A design resolves thousands of variants, so the file is decoded once while it stays as it is.
    sealed = read_sealed(path)
    if not isinstance(sealed, dict) or sealed.get("format") != FORMAT:
        raise ValueError(
            f"the manifest of the teacher text {path.parent} is damaged, altered or of another format; "
            "write the text again with `dsv3-ablate distill`"
        )
    return decode(Manifest, {k: v for k, v in sealed.items() if k != "files"}, "manifest")


def read_text(text: str) -> list[TeacherDocument]:
    """The teacher's documents in the order they were written; ValueError if the text is not what the manifest says."""
    return list(_documents(text, read_manifest(text).text_hash))


@lru_cache(maxsize=2)
def _documents(text: str, text_hash: str) -> tuple[TeacherDocument, ...]:
    path = folder_of(text) / TEXT
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"the teacher text {path} cannot be read ({error}); write it again with `dsv3-ablate distill`"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != text_hash:
        raise ValueError(
            f"the teacher text {path} is not the one its manifest describes (sha256 {found[:12]}, not "
            f"{text_hash[:12]}); write it again with `dsv3-ablate distill`"
        )
    return tuple(TeacherDocument(**json.loads(line)) for line in content.splitlines())


def is_held_out(document: str) -> bool:
    """Whether texts that continue this document are evaluated on and never trained on: decided by its name alone."""
    return fraction(f"held-out teacher text of {document}") < HELD_OUT_SHARE


def training_texts(text: str) -> list[str]:
    """What variants with a teacher train on; ValueError if it is nothing."""
    return _part(text, held_out=False)


def held_out_texts(text: str) -> list[str]:
    """What every variant is evaluated on beside the real held-out text; ValueError if it is nothing."""
    return _part(text, held_out=True)


def _part(text: str, *, held_out: bool) -> list[str]:
    documents = read_text(text)
    check_split(f"the teacher text {text}", {d.document for d in documents})
    return [d.text for d in documents if is_held_out(d.document) == held_out]


def check_split(what: str, documents: Collection[str]) -> None:
    """ValueError if a text that continues these documents would leave nothing to train on or nothing to evaluate on."""
    n_held_out = sum(map(is_held_out, documents))
    if not 0 < n_held_out < len(documents):
        raise ValueError(
            f"{what}: of the {len(documents)} documents that prompts came from {n_held_out} are held out (each with "
            f"probability {HELD_OUT_SHARE:g}, by its name), but both kinds are needed, to train and to evaluate on; "
            "write more text with `dsv3-ablate distill`, from a corpus of more documents if it has few"
        )


def writing_flops_per_byte(text: str) -> float:
    """The teacher's forward FLOPs for each byte that was kept; ValueError if the teacher did not tell its size."""
    manifest = read_manifest(text)
    if manifest.writing_flops is None:
        raise ValueError(
            f"the FLOPs of the teacher that wrote {text} are not known, so charge_teacher has nothing to charge; "
            "write the text again with the teacher's number of parameters given, or leave charge_teacher off"
        )
    return manifest.writing_flops / manifest.n_bytes


def compress(documents: Sequence[TeacherDocument]) -> tuple[bytes, str]:
    """gzip JSONL of the documents, and the sha256 of what is inside. Equal documents give equal bytes."""
    lines = [json.dumps(dataclasses.asdict(d), ensure_ascii=False, sort_keys=True) + "\n" for d in documents]
    content = "".join(lines).encode()
    return gzip.compress(content, compresslevel=9, mtime=0), hashlib.sha256(content).hexdigest()


def check_out(out: Path) -> None:
    """ValueError if a teacher's text cannot be put at `out`, before anything is spent on writing it."""
    if out.exists():
        raise ValueError(f"{out} exists already; name a folder that does not, so that nothing is overwritten")
    with _writable(out):
        pass


@contextmanager
def _writable(out: Path) -> Iterator[Path]:
    """A new folder beside `out`; ValueError if there can be none."""
    try:
        with new_folder(out.parent) as folder:
            yield folder
    except OSError as error:
        raise ValueError(f"cannot write to {out.parent}: {error.strerror or error}; choose another folder") from None


def write_text(out: Path, compressed: bytes, manifest: Manifest) -> None:
    """Put a teacher's text at `out`, whole or not at all."""
    with _writable(out) as folder:
        (folder / TEXT).write_bytes(compressed)
        commit_folder(folder, out, dataclasses.asdict(manifest))
