"""Optuna's storage as a mirror of a search: its dashboard shows the trials, and each leads to its run's record.

It is written and never asked what has been done. One that is lost, torn, locked or half empty is filled again from the
trials' files and the records, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.attribution.study.search import SearchResult, TrialResult
from ablate.quantities import plural
from ablate.runs.searching import FILE_STORAGES, password_of, without_password
from ablate.runs.store import Store
from ablate.runs.trials import held
from ablate.spec.decoding import data_id, encode
from ablate.sweep.search.proposals import Distributions, directions, frozen, intermediate_values, quiet

if TYPE_CHECKING:
    import optuna

DEFAULT = "optuna.db"
LOCK_WAIT_S = 10
BUSY = ("locked", "busy")


class Mirror:
    """The storage of one search. `sync` brings it up to date; trouble with it is told once and stops nothing."""

    def __init__(self, address: str, folder: Path, known: Distributions, say: Callable[[str], None]) -> None:
        self.folder, self.known, self._say = folder, known, say
        self.address = address or f"sqlite:///{folder / DEFAULT}"
        self.is_file = self.address.startswith(FILE_STORAGES)
        self._storage: Any = None
        self._told: set[str] = set()

    def open(self, result: SearchResult) -> None:
        """Bring the storage up to date for the first time. ValueError where a server does not answer."""
        before = sum(found.state != "open" for found in result.trials)
        existed = self._file().exists() if self.is_file else True
        try:
            with held(self.folder / "storage.lock", wait=True), quiet():
                added = self._write(result)
        except ImportError as error:
            raise ValueError(
                f"the storage {self.shown} needs a package: {error}; pip install 'dsv3-ablate[postgres]'"
            ) from None
        except Exception as error:
            if not self.is_file:
                raise ValueError(f"the storage {self.shown} does not answer: {self._reason(error)}") from None
            added = self._mend(result, error)
        if before and added:
            why = "is new" if not existed else "lacked them"
            self._say(f"the storage {self.shown} {why}: {plural(added, 'trial')} filled in again from the records")

    def sync(self, result: SearchResult) -> None:
        """Bring the storage up to date."""
        try:
            with held(self.folder / "storage.lock", wait=True), quiet():
                self._write(result)
        except Exception as error:  # A mirror: whatever its engine raises, the search goes on by its records.
            if self.is_file:
                self._mend(result, error)
            else:
                self._tell(f"the storage {self.shown} does not answer ({self._reason(error)})")

    @property
    def shown(self) -> str:
        return without_password(self.address)

    def _mend(self, result: SearchResult, error: Exception) -> int:
        """Put a damaged file aside and fill a new one; one that is merely locked is left alone."""
        reason = self._reason(error)
        if any(word in reason.lower() for word in BUSY):
            self._tell(f"the storage {self.shown} is locked by another program")
            return 0
        file, n = self._file(), 0
        while (aside := file.with_name(f"{file.name}.damaged-{n}")).exists():
            n += 1
        self._close()
        try:
            with held(self.folder / "storage.lock", wait=True), quiet():
                file.rename(aside)
                for rest in ("-wal", "-shm", "-journal", ".lock"):
                    with suppress(FileNotFoundError):
                        file.with_name(file.name + rest).unlink()
                added = self._write(result)
        except Exception as second:
            self._tell(f"the storage {self.shown} cannot be written ({self._reason(second)})")
            return 0
        self._say(f"the storage {self.shown} was damaged ({reason}); it is now {aside.name}")
        return added

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._say(f"{message}: the search goes on by its records, and the storage is filled in when it can be")

    def _file(self) -> Path:
        return Path(self.address.removeprefix("sqlite:///").removeprefix("journal:"))

    def _reason(self, error: Exception) -> str:
        """The first line of what an engine says, without the password that it may repeat."""
        text = str(getattr(error, "__cause__", None) or error).strip() or type(error).__name__
        secret = password_of(self.address)
        return (text.replace(secret, "***") if secret else text).splitlines()[0][:200]

    def _opened(self) -> Any:
        if self._storage is None:
            self._storage = _open(self.address)
        return self._storage

    def _close(self) -> None:
        if engine := getattr(self._storage, "engine", None):
            engine.dispose()
        self._storage = None

    def _write(self, result: SearchResult) -> int:
        """Every trial as it is now. Returns how many that have ended were not there."""
        import optuna

        storage = self._opened()
        with suppress(AttributeError):
            storage.remove_session()  # so that what others wrote meanwhile is seen
        digest, added = data_id(encode(result.plan))[:8], 0
        for group in result.plan.groups:
            study = optuna.create_study(
                storage=storage, study_name=f"{result.plan.preset} {digest} / {group}", load_if_exists=True,
                directions=directions(result.plan),
            )  # fmt: skip
            there: dict[str, list[Any]] = {}
            for trial in study.get_trials(deepcopy=False):
                there.setdefault(trial.user_attrs.get("slot", ""), []).append(trial)
            for found in result.of(group):
                added += self._bring(study, found, result, there.get(found.trial.slot, []))
        return added

    def _bring(self, study: optuna.Study, found: TrialResult, result: SearchResult, there: list[Any]) -> int:
        """One trial: added if it is not there, told its end if it is running. 1 if one that ended was lacking."""
        wanted = frozen(found, result.plan, self.known, **self._attributes(found))
        if any(trial.state == wanted.state for trial in there):
            return 0
        running = next((trial for trial in there if not trial.state.is_finished()), None)
        if running is None:
            # A trial that failed before and is now complete is a second one: Optuna changes none that has ended.
            if not there or wanted.state.is_finished():
                study.add_trial(wanted)
            return int(not there and wanted.state.is_finished())
        self._finish(study, running, found, wanted, intermediate_values(found, result.plan))
        return 0

    def _finish(self, study: Any, running: Any, found: TrialResult, wanted: Any, steps: Mapping[int, float]) -> None:
        import optuna

        handle = optuna.trial.Trial(study, running._trial_id)
        for name, value in self._attributes(found).items():
            handle.set_user_attr(name, value)
        for step, loss in steps.items():
            handle.report(loss, step)
        values = list(wanted.values) if found.state == "complete" else None
        study.tell(running.number, values, state=wanted.state)

    def _attributes(self, found: TrialResult) -> dict[str, Any]:
        trial, store = found.trial, Store(self.folder)
        run_id = found.record.run_id if found.record else trial.stages[-1].run_id
        return {
            "slot": trial.slot,
            "variant": trial.variant,
            "run_id": run_id,
            "record": str(store.records / f"{run_id}.json"),
            "origin": trial.origin,
            "status": "running" if found.state == "open" else found.state,
        }


def _open(address: str) -> Any:
    from optuna.storages import JournalStorage, RDBStorage

    if address.startswith("journal:"):
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(address.removeprefix("journal:")))
    if address.startswith("sqlite:"):
        return RDBStorage(address, engine_kwargs={"connect_args": {"timeout": LOCK_WAIT_S}})
    if address.startswith("postgresql:"):
        address = address.replace("postgresql:", "postgresql+psycopg:", 1)
    return RDBStorage(address, engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": LOCK_WAIT_S}})
