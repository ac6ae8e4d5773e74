"""Where a study is kept: a journal file beside the rows by default, or any database that Optuna takes.

Only finished trials are written, a batch at a time, user attributes and all: so a killed process leaves nothing half done, and
writing costs one flush a batch. Trials that other programs left running are closed.
"""

from __future__ import annotations

import contextlib
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

import rapid_dse
from rapid_dse.sweep import identity
from rapid_dse.sweep.search.dimensions import difference
from rapid_dse.sweep.search.journal import LOCKED_SECONDS, FileLock, Journal, is_alive, logs_of, process_name
from rapid_dse.sweep.search.lean import LeanTrials, kept_attributes

Direction = Literal["minimize", "maximize"]
DEFAULT = "_study.journal"
FORMAT = 1
ABOUT = "rapid_dse"  # the study's attribute that says what made it
_WORKER = "rapid_dse:worker:"
_STALE_SECONDS = 3600.0
_SILENT_SECONDS = 600.0


def journal_path(storage: str | None, folder: Path) -> Path | None:
    """The journal file that search.storage names, or None where it is a database's URL."""
    if storage is None:
        return folder / DEFAULT
    return None if "://" in storage else Path(storage)


class StudyStorage:
    """One study in one storage, open."""

    def __init__(self, storage: str | None, folder: Path, name: str, directions: Sequence[Direction]) -> None:
        """Opens the storage and the study, which is made where it is not there.

        Raises:
            ValueError: one line, where that fails; nothing that is stored is touched then.
        """
        self._path = journal_path(storage, folder)
        self.where = str(self._path or storage)
        self._own = f"{_WORKER}{uuid.uuid4().hex}"
        self._seen, self._directions, self._name = 0.0, list(directions), name
        self._anew: list[str] = []
        self._lean, self._shrunk = LeanTrials(), 0  # how many trials, the first ones, are as memory shall hold them
        with self._plainly():
            self._journal = None if self._path is None else Journal(self._path, kept=kept_attributes)
            self._lock = database_lock(self.where, folder) if self._journal is None else self._journal.lock
        with self._plainly(), self.exclusive():  # several commands may find no database, or none with this study
            try:
                self.study = self._opened()
            except (optuna.exceptions.OptunaError, LookupError, AssertionError):
                if not self.damages:
                    raise
                self._begin_anew()

    def _opened(self) -> optuna.Study:
        """The study in the storage, made where it is not there."""
        backend = database(self.where) if self._journal is None else optuna.storages.JournalStorage(self._journal)
        return optuna.create_study(storage=backend, study_name=self._name, directions=self._directions, load_if_exists=True)

    def _begin_anew(self) -> None:
        """Moves a journal aside that has lost what its other lines build on; the study's rows answer the same trials again."""
        assert self._path is not None, "a database has no damaged lines"
        aside = self._path.with_name(f"{self._path.name}.damaged")
        self._anew = [*self.damages, f"the study begins anew with the rows that are stored; the damaged journal is {aside}"]
        self._path.replace(aside)
        self._journal, self._shrunk = Journal(self._path, self._lock, kept_attributes), 0
        self.study = self._opened()

    @property
    def damages(self) -> list[str]:
        """What is wrong with the journal's lines, a sentence each; a database checks itself."""
        return self._anew or ([] if self._journal is None else self._journal.damages)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """What storages raise, in one line: each kind has exceptions of its own."""
        try:
            yield
        except (ValueError, KeyboardInterrupt) as error:
            if isinstance(error, ValueError):
                raise ValueError(f"search.storage: {self.where}: {_line(error)}; {_ADVICE}") from None
            raise
        except TimeoutError as error:
            raise ValueError(f"search.storage: {_line(error)}; what is stored is kept") from None
        except OSError as error:
            raise ValueError(f"search.storage: {self.where}: {error.strerror or error}; what is stored is kept, {_AGAIN}") from None
        except ImportError as error:
            raise ValueError(f"search.storage: {self.where}: {_line(error)}; allowed: a database whose driver is installed") from None
        except Exception as error:  # SQLAlchemy's and Optuna's many kinds, and a journal whose content is none
            cause = error.__cause__ or error
            raise ValueError(f"search.storage: {self.where}: {_line(cause)}; {_ADVICE}") from None

    def settle(self, about: Mapping[str, Any]) -> None:
        """Writes into a new study what made it; compares where that is written already.

        Raises:
            ValueError: where the study is another one's: of another version, space, objective or code; it is left as it is.
        """
        with self._plainly(), self.exclusive():
            stored, trials = self.study.user_attrs.get(ABOUT), len(self.trials())
            if stored is None and self.damages:
                self._begin_anew()
                trials = 0
            # An empty one may be another program's, which minds other things.
            alike = [direction.name.lower() for direction in self.study.directions] == self._directions
            if stored is None and not trials and alike:
                self.study.set_user_attr(ABOUT, {"format": FORMAT, "version": rapid_dse.__version__, **about})
                self._name_objectives(about["objectives"])
                return
        self._compare(stored, about)
        with self._plainly(), self.exclusive():  # a study of an earlier version has none
            self._name_objectives(about["objectives"])

    def _name_objectives(self, objectives: Sequence[str]) -> None:
        """Names the study's values by their columns: optuna-dashboard and Optuna's pictures would number them."""
        if self.study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names([text.removeprefix("-") for text in objectives])

    def _compare(self, stored: Any, about: Mapping[str, Any]) -> None:
        name = self.study.study_name
        advice = "its trials are kept; allowed: another search.study or search.storage"
        if not isinstance(stored, Mapping):
            raise ValueError(f"search.study={name}: {self.where} holds a study of that name which rapid_dse did not make; {advice}")
        if stored.get("format") != FORMAT:
            version = stored.get("version", "another version")
            raise ValueError(
                f"search.study={name}: {self.where} was written by rapid_dse {version}, in a form that this one has not; {advice}"
            )
        changed = difference(stored.get("space", {}), about["space"])
        if changed:
            raise ValueError(f"search.study={name}: its space has changed: {changed}; {advice}")
        for key, words in _SETTINGS.items():
            if stored.get(key) != about[key]:
                raise ValueError(f"search.study={name}: {words} (was {stored.get(key)}, now {about[key]}); {advice}")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other process adds to the study in here: what it holds can be counted, and the rest be added."""
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number, those of other processes included; of their user attributes those that ``lean.py`` keeps."""
        with self._plainly():
            all_trials = self.study.get_trials(deepcopy=False)
        for trial in all_trials[self._shrunk :]:
            self._lean.shrink(trial)
        self._shrunk = len(all_trials)
        return all_trials

    def append(self, trials: Sequence[FrozenTrial]) -> None:
        """Adds finished trials: to a journal all or none, in one write; to a database each as a whole."""
        if not trials:
            return
        with self._plainly():
            if self._journal is None:
                self.study.add_trials(trials)
                return
            self._journal.append_logs(logs_of(self.study._study_id, self.study.directions, trials))

    def close_stale(self) -> int:
        """Closes what other programs began and did not finish in an hour; how many those are."""
        closed, storage = 0, self.study._storage
        for trial in self.trials():
            begun = trial.datetime_start
            old = begun is None or (datetime.now() - begun.replace(tzinfo=None)).total_seconds() > _STALE_SECONDS
            if not trial.state.is_finished() and old:
                with self._plainly():
                    storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                closed += 1
        return closed

    def join(self) -> bool:
        """Registers this process; whether others that still run were there before."""
        with self._plainly(), self.exclusive():
            others = self._others()
            self.study.set_user_attr(self._own, {"process": process_name(), "seen": time.time()})
            self._seen = time.time()
        return others

    def _others(self) -> bool:
        other_processes = False
        for key, entry in self.study.user_attrs.items():
            if not key.startswith(_WORKER) or not isinstance(entry, Mapping):
                continue
            name = str(entry.get("process"))
            known = is_alive(name) if name != process_name() else False  # this process runs one study at a time
            if known or (known is None and time.time() - float(entry.get("seen", 0)) < _SILENT_SECONDS):
                other_processes = True
            else:
                self.study.set_user_attr(key, None)
        return other_processes

    def keep_joined(self) -> None:
        """Says now and then that this process still runs: other hosts cannot ask for it."""
        if time.time() - self._seen > _SILENT_SECONDS / 4:
            self._seen = time.time()
            with self._plainly():
                self.study.set_user_attr(self._own, {"process": process_name(), "seen": self._seen})

    def leave(self) -> None:
        """Takes back ``join``; a storage that cannot be written any more was reported before."""
        with contextlib.suppress(ValueError), self._plainly():
            self.study.set_user_attr(self._own, None)


def database(url: str) -> optuna.storages.RDBStorage:
    """A database, made where it is not there; SQLite waits for others that write as long as a journal does."""
    patient = {"connect_args": {"timeout": LOCKED_SECONDS}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=patient)


def database_lock(url: str, folder: Path) -> FileLock:
    """The lock that commands which share a database take: beside SQLite's file, else in the study's folder.

    A database's own transactions hold one trial each, and its tables are made by whoever finds none; what a study may still take, and
    which layouts it has, are questions about all of its trials.

    Raises:
        ValueError: where the URL is none.
    """
    from sqlalchemy.engine import make_url  # Optuna has it

    place = make_url(url)
    named = place.database if place.get_backend_name() == "sqlite" else None
    if named and named != ":memory:" and not named.startswith("file:"):
        return FileLock(Path(named).absolute())
    return FileLock(folder.absolute() / "_study")


_AGAIN = "the same command goes on from there"
_ADVICE = "what is stored is kept; allowed: a journal file or a database that Optuna 5 can read and this user can write"
_SETTINGS = {
    "objectives": "its objectives have changed",
    "constraints": "its constraints have changed",
    "configuration": "its base configuration has changed",
    "code": "its trials were priced by other code, whose results do not compare",
}


def about(space: Mapping[str, Any], objectives: Sequence[str], constraints: Sequence[str], configuration: str) -> dict[str, Any]:
    """What tells one study from another."""
    return {
        "space": space,
        "objectives": list(objectives),
        "constraints": list(constraints),
        "configuration": configuration,
        "code": identity.code_hash(),
    }


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
