"""The journal file: many trials in one append, a lock that a killed process cannot keep, and no half lines."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

LOCKED_SECONDS = 60.0  # as long as another process may write before this one gives up
_FORSAKEN_SECONDS = 30.0  # what Optuna's own lock grants to one whose process cannot be asked


class FileLock(JournalFileSymlinkLock):
    """Optuna's lock, a symbolic link beside the journal, so that its other programs respect it and are respected.

    The link names its process: one that was killed is passed over at once. It may be taken again by the one that holds it.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._link = Path(f"{journal}.lock")
        self._depth = 0

    def acquire(self) -> bool:
        """Waits for the lock.

        Raises:
            TimeoutError: where another process holds it for ``LOCKED_SECONDS``; OSError where the folder cannot be written.
        """
        if self._depth == 0:
            self._wait()
        self._depth += 1
        return True

    def release(self) -> None:
        """Gives the lock back, once for each time it was taken."""
        self._depth -= 1
        if self._depth == 0:
            self._link.unlink(missing_ok=True)

    def _wait(self) -> None:
        start, pause = time.monotonic(), 0.001
        while True:
            try:
                os.symlink(process_name(), self._link)
                return
            except FileExistsError:
                self._pass_over()
            if time.monotonic() - start > LOCKED_SECONDS:
                raise TimeoutError(f"{self._link} is held by another process for {LOCKED_SECONDS:g} s; if there is none, remove it")
            time.sleep(pause)
            pause = min(0.1, pause * 2)

    def _pass_over(self) -> None:
        """Removes the lock of a process that is no more; renaming makes sure that only one of several does."""
        try:
            owner, age = os.readlink(self._link), time.time() - os.lstat(self._link).st_mtime
        except OSError:
            return
        known = is_alive(owner)
        if known is False or (known is None and age > _FORSAKEN_SECONDS):
            aside = f"{self._link}{uuid.uuid4()}.rename"
            try:
                os.rename(self._link, aside)
                os.unlink(aside)
            except OSError:
                return


def process_name() -> str:
    """What tells this process from every other: host, process id, and when it started."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def is_alive(name: str) -> bool | None:
    """Whether the process of that name runs; None where it is another host's, or no name at all."""
    host, *rest = name.rsplit(":", 2)
    if host != socket.gethostname() or len(rest) != 2 or not rest[0].isdigit():
        return None
    return _started(int(rest[0])) == rest[1]


def _started(pid: int) -> str:
    # A number is given to a new process once the old one is gone: the start time tells them apart (Linux; elsewhere the number alone).
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return "gone"
    try:
        os.kill(pid, 0)
    except OSError:
        return "gone"
    return "0"


class Journal(JournalFileBackend):
    """Optuna's journal file, whole lines alone."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file; what a killed process left of a line is cut off.

        Raises:
            OSError: where it cannot be read or written; TimeoutError where it is locked.
        """
        self.lock = FileLock(path)
        self.path = path
        super().__init__(str(path), lock_obj=self.lock)
        with self.exclusive(), path.open("r+b") as file:
            whole = _whole_lines(file)
            if whole < path.stat().st_size:
                file.truncate(whole)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other process writes in here."""
        self.lock.acquire()
        try:
            yield
        finally:
            self.lock.release()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends all or nothing.

        Raises:
            OSError: where the disk is full; the file then is as it was.
        """
        with self.exclusive():
            size = self.path.stat().st_size
            try:
                super().append_logs(logs)
            except BaseException:
                os.truncate(self.path, size)
                raise


def _whole_lines(file: Any) -> int:
    """Bytes up to and including the last end of a line."""
    end: int = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + int(found) + 1
        end = start
    return 0


class _Collector(BaseJournalBackend):
    """Keeps what a JournalStorage would write."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        yield from self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs.extend(logs)


def logs_of(study_id: int, directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """The lines that make finished trials of a study, as Optuna itself writes them: one at a time each would cost a lock and a flush."""
    collector = _Collector()
    storage = JournalStorage(collector)
    for number in range(study_id + 1):
        storage.create_new_study(directions, str(number))
    start = len(collector.logs)
    for trial in trials:
        storage.create_new_trial(study_id, trial)
    return collector.logs[start:]
