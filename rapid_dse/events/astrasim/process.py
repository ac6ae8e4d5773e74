"""One run of ASTRA-sim's binary: a process that ends no later than this one."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rapid_dse.common import termination
from rapid_dse.common.long_work import EVERY, LongWork
from rapid_dse.events.astrasim.files import LOG, read_output, tail, write_inputs
from rapid_dse.interconnect.engine import RunResult
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.graph import Graph

_RUNNING: set[subprocess.Popen[str]] = set()


def simulate(binary: Path, timeout_s: float, graph: Graph, topology: Topology, system: SystemSettings) -> RunResult:
    """Run a graph on a binary, in a folder of its own; a graph that deadlocks is a result, as on the built-in engine.

    Raises:
        ValueError: a binary that does not start, fails, does not end in time, or whose output does not hold together, with its last lines.
    """
    with termination.unwinding(), tempfile.TemporaryDirectory(prefix="astrasim-") as name:
        folder = Path(name)
        command = [str(binary), *write_inputs(folder, graph, topology, system)]
        code, stdout, stderr = _execute(command, folder, timeout_s)
        with _lines(folder / LOG) as steps:
            return read_output(graph, code, stdout, stderr, steps)


@contextlib.contextmanager
def _lines(log: Path) -> Iterator[Iterator[str]]:
    """A log's lines one by one, none where there is no log: of many nodes it is too large to hold."""
    if not log.exists():
        yield iter(())
        return
    with log.open(errors="replace") as file:
        yield file


def _execute(command: list[str], folder: Path, timeout_s: float) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command; whatever it started ends with it when its time is up or this process is to end."""
    process = None
    try:
        with termination.signals_held():
            process = _start(command, folder)
        stdout, stderr = _ended(process, timeout_s)
        return process.returncode, stdout, stderr
    except subprocess.TimeoutExpired:
        assert process is not None
        _kill(process)
        stdout, stderr = process.communicate()
        raise ValueError(f"ASTRA-sim did not end within {timeout_s:g} s{tail(stdout, stderr)}") from None
    finally:
        if process is not None:
            with process:
                _kill(process)
            _RUNNING.discard(process)


def _ended(process: subprocess.Popen[str], timeout_s: float) -> tuple[str, str]:
    """What a process said, once it has ended; who listens is told now and then that it runs.

    Raises:
        TimeoutExpired: where it does not end in time.
    """
    work = LongWork("ASTRA-sim", f"s that it is given (backend.astrasim.timeout={timeout_s:g})", round(timeout_s))
    while True:
        seconds_left = timeout_s - work.seconds
        try:
            return process.communicate(timeout=max(min(EVERY, seconds_left), 0.0))
        except subprocess.TimeoutExpired:
            if seconds_left <= EVERY:
                raise
            work.wait()


def _start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )
    except OSError as error:
        raise ValueError(f"ASTRA-sim's binary {command[0]} does not run: {error.strerror}") from None
    _RUNNING.add(process)
    return process


def _end_with_parent() -> Callable[[], None] | None:
    """What has Linux end a new process when the one that started it ends, were it by SIGKILL; None on other systems."""
    if sys.platform != "linux":
        return None
    prctl, parent_death_signal = ctypes.CDLL(None).prctl, 1

    def ask() -> None:
        prctl(parent_death_signal, int(signal.SIGKILL))

    return ask


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process that has not ended, and all of its group."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@atexit.register
def _kill_all() -> None:
    """End what threads other than the main one have left running."""
    for process in list(_RUNNING):
        _kill(process)
