"""The folder of a study: its name, whether it can be written, and whose it is."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ablate.data.corpus import Corpus
from ablate.documents import read_json
from ablate.files import commit_once, replace_file, sealed
from ablate.runs.plan import NamedVariant, Plan, other_study, read_plan
from ablate.runs.store import Store
from ablate.runs.study import Study, to_toml
from ablate.spec.decoding import canonical, encode
from ablate.spec.run import Preset, RunSpec

RESULTS = Path("results")

Planned = tuple[Plan, dict[str, RunSpec]]


def default_folder(study: Study, base: Preset, named: Sequence[NamedVariant], corpus_hash: str) -> Path:
    """A folder that the same command finds again, and another study does not."""
    parts = [[encode(v.spec.model), encode(v.spec.data.text), encode(v.spec.trainer)] for v in named]
    digest = hashlib.sha256(canonical([to_toml(study), corpus_hash, base.n_tokens, parts]).encode()).hexdigest()[:8]
    names = "-".join(v.name for v in named[1:3]).replace(" at ", "-").replace(" ", "").replace("=", "-").strip("-+")
    kept = "".join(c for c in names if c.isalnum() or c in "-_+")[:40]
    return RESULTS / f"{base.name}-{kept}-{digest}"


def check_writable(*places: Path) -> None:
    """ValueError unless folders can be made at all places, or are there and take files. Leaves nothing behind."""
    for place in places:
        try:
            with tempfile.TemporaryDirectory(prefix=".write-", dir=_nearest_there(place)):
                pass
        except OSError as error:
            raise ValueError(f"cannot write to {place}: {error.strerror}; choose another folder with --out") from None


def _nearest_there(place: Path) -> Path:
    for folder in (place.absolute(), *place.absolute().parents):
        try:
            folder.lstat()
        except FileNotFoundError:
            continue
        return folder
    return place


class Claim:
    """A study's hold on its folder: the plan there, if it is this study's.

    `make` plans the study with the seconds of a step of each variant, as far as they are known. A plan is this study's
    if its own speeds lead to the same runs: only with them does a budget in seconds mean the same steps again.
    """

    def __init__(self, store: Store, study: Study, make: Callable[[Mapping[str, float]], Planned]) -> None:
        self.store, self.study, self.make = store, study, make

    def earlier(self) -> Planned | None:
        """What was planned here before; ValueError if that was another study."""
        if not self.store.plan_file.exists():
            return None
        try:
            known = read_plan(self.store.plan_file)
        except ValueError as error:
            self._check_replaceable(str(error))
            return None
        speeds = {v.name: v.step_s for v in known.variants if v.step_s is not None}
        try:
            planned = self.make(speeds)
        except ValueError:
            planned = None
        if planned is None:
            raise ValueError(
                f"{self.store.folder} holds another study ({known.question!r}); choose another folder with --out"
            )
        if {v.run_ids for v in planned[0].variants} != {v.run_ids for v in known.variants}:
            raise ValueError(f"{self.store.folder} holds {other_study(known, planned[0])}")
        # What was asked before the first run stays as it was then, whatever the study says by now.
        return replace(planned[0], asked=known.asked), planned[1]

    def _check_replaceable(self, fault: str) -> None:
        """ValueError if the records here are of runs that only the damaged plan can name."""
        records = {path.stem for path in self.store.records.glob("*.json")}
        if records and (self.study.match == "seconds" or records - self.make({})[1].keys()):
            raise ValueError(
                f"{fault}; but the records in {self.store.folder} are of runs that only this plan names: put the file "
                "back from a copy, or choose another folder with --out"
            )

    def take(self, planned: Planned, corpus: Corpus, others: Iterable[Corpus] = ()) -> Planned:
        """Write plan, study and tokenizer, and those of other corpora beside it.

        Returns what to run: what the same command planned, if it was faster.
        """
        self.store.create()
        if planned[0].asked is not None:
            planned = replace(planned[0], asked=planned[0].asked.stamped()), planned[1]
        if not commit_once(self.store.plan_file, sealed(encode(planned[0])), "the plan"):
            planned = self.earlier() or planned
            replace_file(self.store.plan_file, sealed(encode(planned[0])), "the plan")
        replace_file(self.store.study_file, to_toml(self.study), "the study")
        files = {self.store.tokenizer_file: corpus}
        files |= {self.store.tokenizer_of(other.hash): other for other in others if other.hash != corpus.hash}
        for path, text in files.items():
            tokenizer = read_json(text.folder / "tokenizer.json", "the tokenizer", "prepare the corpus again")
            replace_file(path, sealed(tokenizer), "the tokenizer")
        return planned
