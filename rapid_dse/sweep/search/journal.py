"""The journal file: many trials in one append, a lock that a killed process cannot keep, no half lines, and no line that changed unseen."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from rapid_dse.sweep.search.lines import LineReader, marked

LOCKED_SECONDS = 60.0  # as long as another process may write before this one gives up
Kept = Callable[[Any], dict[str, Any]]
_REMEMBERED = 256  # logs whose place in the file is kept
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
    """Optuna's journal file, whole lines alone; each that this program writes has a number and a checksum (``lines.py``).

    Lines that are damaged or doubled are left out. What a study loses by that is in its rows, which are files of their own.
    """

    def __init__(self, path: Path, lock: FileLock | None = None, kept: Kept | None = None) -> None:
        """Opens or makes the file.

        Args:
            lock: the file's lock, where this process has it already.
            kept: which of a trial's user attributes are read; None: all.

        Raises:
            ValueError: where it holds lines, and none is a journal's; OSError where it cannot be read or written; TimeoutError where it
                is locked.
        """
        self.lock = lock or FileLock(path)
        self.path, self._kept = path, kept
        super().__init__(str(path), lock_obj=self.lock)
        self._reader, self._offset = LineReader(), 0
        self._logs_at = {0: (0, LineReader())}  # where a log begins, and what was read before it
        with self.exclusive():
            self._cut_half_line()
            self._catch_up()
        if self._offset and not self._reader.accepted:
            raise ValueError("Invalid log format: no line of the file is a journal's")

    @property
    def damages(self) -> list[str]:
        """What is wrong with lines read so far, a sentence each."""
        return list(self._reader.damages)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other process writes in here."""
        self.lock.acquire()
        try:
            yield
        finally:
            self.lock.release()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends all or nothing, after the last whole line: what a killed writer left of one is cut off.

        Raises:
            OSError: where the disk is full; the file then is as it was.
        """
        with self.exclusive():
            size = self._cut_half_line()
            self._catch_up()
            text = b"".join(marked(log, self._reader.next + at) for at, log in enumerate(logs))
            try:
                with self.path.open("ab") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                os.truncate(self.path, size)
                raise

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The good lines from one of that number among them on; a line that is being written is none yet."""
        start = max(number for number in self._logs_at if number <= log_number_from)
        offset, reader = self._logs_at[start]
        reader = replace(reader, damages=[])
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                log = reader.log(line)
                if log is None:
                    continue
                self._remember(offset, reader)
                if reader.accepted > log_number_from:
                    if self._kept is not None and "user_attrs" in log:
                        log["user_attrs"] = self._kept(log["user_attrs"])
                    yield log

    def _remember(self, offset: int, reader: LineReader) -> None:
        """Keeps where the next log begins; of all logs the last ones do, since a study asks for what is new."""
        self._logs_at.setdefault(reader.accepted, (offset, replace(reader, damages=[])))
        if len(self._logs_at) > 2 * _REMEMBERED:
            self._logs_at = dict([(0, self._logs_at[0]), *sorted(self._logs_at.items())[-_REMEMBERED:]])

    def _cut_half_line(self) -> int:
        """Cuts off what follows the last whole line; the file's size then. The lock is held."""
        with self.path.open("r+b") as file:
            whole = _whole_lines(file)
            if whole < file.seek(0, os.SEEK_END):
                file.truncate(whole)
        return whole

    def _catch_up(self) -> None:
        """Reads what was appended since, so that the number of the next line is known."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if line.endswith(b"\n"):
                    self._offset += len(line)
                    self._reader.log(line)


def _whole_lines(file: Any) -> int:
    """Bytes up to and including the last end of a line."""
    end: int = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + int(newline) + 1
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
