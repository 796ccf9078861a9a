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
from ablate.quantities import plural
from ablate.runs.history import Entry, History, plans
from ablate.runs.plan import NamedVariant, Plan, other_study, read_plan, widens
from ablate.runs.store import Store
from ablate.runs.study import Study, to_toml
from ablate.spec.decoding import canonical, encode
from ablate.spec.run import Preset, RunSpec
from ablate.sweep.seeds import Round

RESULTS = Path("results")
MAX_NAME = 60  # characters of the question in a folder's name

Planned = tuple[Plan, dict[str, RunSpec]]


def default_folder(study: Study, base: Preset, named: Sequence[NamedVariant], corpus_hash: str) -> Path:
    """A folder that the same command finds again, with more seeds too, and another study does not.

    Its name says the question: full-vs-mtp, leave-one-out-of-mla-moe.
    """
    parts = [[encode(v.spec.model), encode(v.spec.data.text), encode(v.spec.trainer)] for v in named]
    # How many seeds there are is no part of the question, and what is left out of a file is not written into it.
    asked = to_toml(replace(study, n_seeds=None, precision="", until="", max_seeds=None))
    digest = hashlib.sha256(canonical([asked, base.n_tokens, corpus_hash, parts]).encode()).hexdigest()[:8]
    return RESULTS / f"{base.name}-{_question(study, named)[:MAX_NAME].rstrip('-')}-{digest}"


def _question(study: Study, named: Sequence[NamedVariant]) -> str:
    """What is compared, as a part of a file's name."""
    parts = study.disable or study.enable
    if study.design == "one" and not study.factors:
        named_so = f"{named[0].name}-vs-{named[1].name}"
    else:
        design = [study.design] if study.design != "one" else []
        of = (["of"] if design else []) + list(parts) if parts else []
        named_so = "-".join([*design, *of, *(["by"] if study.factors else []), *study.factors])
    kept = "".join(c if c.isalnum() or c in "+-_" else "-" for c in named_so)
    return "-".join(part for part in kept.split("-") if part)


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
    if its own speeds lead to the same runs, or to those and more seeds of the same: only with them does a budget in
    seconds mean the same steps again.
    """

    def __init__(self, store: Store, study: Study, now: Round, make: Callable[[Mapping[str, float]], Planned]) -> None:
        self.store, self.study, self.now, self.make = store, study, now, make

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
        if widens(known, planned[0]) and not widens(planned[0], known):
            raise ValueError(
                f"{self.store.folder} holds this study with {plural(len(known.seeds), 'seed')}, and "
                f"{len(planned[0].seeds)} were asked for: results that are there cannot be left out; give --seeds "
                f"{len(known.seeds)} or more, or choose another folder with --out"
            )
        if not widens(planned[0], known):
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
        self._note(planned[0])
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

    def _note(self, plan: Plan) -> None:
        """Write a plan into the history before it counts, unless it is what was planned last."""
        history = History(self.store.folder)
        made = plans(history.entries())
        known = read_plan(self.store.plan_file) if self.store.plan_file.exists() and not made else None
        if known is not None and len(known.seeds) < len(plan.seeds):
            then = Round(n_seeds=0, origin="given", reason="planned before there was this history")
            history.append(self._entry(known, then))
        entry = self._entry(plan, self.now)
        if not made or not _same(made[-1], entry):
            history.append(entry)

    def _entry(self, plan: Plan, now: Round) -> Entry:
        runs = {identity for v in plan.variants for identity in v.run_ids}
        ended = sum((self.store.records / f"{identity}.json").exists() for identity in runs)
        return Entry(
            kind="plan", n_runs=plan.n_runs, n_seeds=len(plan.seeds), stages=now.stages,
            confidence=plan.interval_confidence, n_records=ended,
            origin=now.origin, reason=now.reason, looks=now.looks, precision=now.precision,
        )  # fmt: skip


def _same(one: Entry, other: Entry) -> bool:
    return all(getattr(one, f) == getattr(other, f) for f in ("n_runs", "stages", "origin", "looks", "precision"))
