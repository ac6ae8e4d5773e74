"""Sweeps that the page started: a process of the command line each, its progress, and how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rapid_dse.explorer.what_if import Prospect, quoted_for_hydra
from rapid_dse.sweep.driver import INTERRUPTED

_PROGRESS = re.compile(r"([\d,]+) of ([\d,]+) trials priced")
_SHOWN_BYTES = 20_000  # of what a sweep prints
_ENDING_SECONDS = 5.0  # that a sweep has to end in when the page does


@dataclass
class LaunchedSweep:
    """A sweep that runs, or has run.

    Attributes:
        number: by which the page names it.
        prospect: what it was to price.
        began: seconds of the monotonic clock.
    """

    number: int
    prospect: Prospect
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    cancelled: bool = False

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        code = self.process.poll()
        if code is not None and self.ended is None:
            self.ended = time.monotonic()
        return code

    @property
    def state(self) -> str:
        """runs, cancelled, done or failed."""
        code = self.code
        if code is None:
            return "is being cancelled" if self.cancelled else "runs"
        if code in (INTERRUPTED, -signal.SIGINT) or (self.cancelled and code):
            return "cancelled"
        return "done" if code == 0 else "failed"

    @property
    def seconds(self) -> float:
        """For how long it has run."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1: as it says, or by the time that it was expected to take."""
        if self.state == "done":
            return 1.0
        said = _PROGRESS.findall(self.errors)
        if said:
            done, total = (int(text.replace(",", "")) for text in said[-1])
            return done / total
        return min(0.95, self.seconds / (self.prospect.seconds + 2.0))

    @property
    def output(self) -> str:
        """The end of what it printed."""
        return _end_of(self.out)

    @property
    def errors(self) -> str:
        """The end of what it said on standard error."""
        return _end_of(self.err)

    def cancel(self) -> None:
        """Ends it as Ctrl-C does: what was priced stays."""
        if self.code is None:
            self.cancelled = True
            self.process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Ends it, and waits."""
        self.cancel()
        try:
            self.process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(_ENDING_SECONDS)
        self.out.close()
        self.err.close()


def _end_of(file: IO[bytes]) -> str:
    try:
        text = Path(file.name).read_bytes()[-_SHOWN_BYTES:]
    except OSError:
        return ""
    return text.decode(errors="replace")


@dataclass
class Launches:
    """The sweeps of this start, one at a time.

    Attributes:
        root: the folder of studies, which they write to.
        allowed: whether there may be any.
    """

    root: Path
    allowed: bool
    sweeps: list[LaunchedSweep] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def launch(self, prospect: Prospect) -> LaunchedSweep:
        """Starts a sweep.

        Raises:
            ValueError: where none may be started, or one runs.
        """
        if not self.allowed:
            raise ValueError("this page is for reading; python -m rapid_dse.explore RESULTS --allow-runs lets it launch sweeps")
        with self._lock:
            for sweep in self.sweeps:
                if sweep.code is None:
                    raise ValueError(f"sweep {sweep.number} ({sweep.prospect.study}) runs; wait for it, or cancel it")
            out, err = (tempfile.NamedTemporaryFile(prefix="rapid_dse-", suffix=suffix) for suffix in (".out", ".err"))  # noqa: SIM115
            command = [
                sys.executable,
                "-m",
                "rapid_dse",
                "-m",
                *prospect.overrides,
                f"search.results_dir={quoted_for_hydra(str(self.root))}",
            ]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            sweep = LaunchedSweep(len(self.sweeps) + 1, prospect, process, out, err)
            self.sweeps.append(sweep)
            return sweep

    def of(self, number: str) -> LaunchedSweep:
        """The sweep of a number.

        Raises:
            KeyError: where there is none.
        """
        return {str(sweep.number): sweep for sweep in self.sweeps}[number]

    def end_all(self) -> None:
        """Ends what still runs; the page goes."""
        for sweep in self.sweeps:
            sweep.end()
