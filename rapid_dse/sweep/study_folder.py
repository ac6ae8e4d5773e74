"""A study's folder before anything is written there, and the files that writers which were killed have left in it."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from rapid_dse.common import termination

PART = ".part"
_STALE_SECONDS = 3600.0


def prepare(folder: Path) -> None:
    """Makes a study's folder, removes what killed writers left, and writes a probe: what fails shall fail before anything is priced.

    Raises:
        ValueError: where the folder cannot be made or written.
    """
    require_no_link(folder)
    probe = folder / aside("probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with termination.signals_held():  # a signal shall not leave the probe behind
            probe.write_bytes(b"")
            probe.unlink()
        remove_parts(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"search.results_dir: cannot write {folder} ({reason}); allowed: a folder that can be written") from None


def require_no_link(folder: Path) -> None:
    """Refuses a study's folder, or a journal in it, that is a link: a study of others would write where the link leads.

    Raises:
        ValueError: one line, with where it leads.
    """
    for path in (folder, *folder.glob("*.journal")):
        if path.is_symlink():
            raise ValueError(
                f"{path}: is a link to {os.readlink(path)[:80]}; allowed: a folder of its own, or that one by search.results_dir"
            )


def aside(name: str) -> str:
    return f".{name}@{platform.node()}@{os.getpid()}{PART}"


def remove_parts(folder: Path) -> None:
    """Removes what killed writers left: files of processes of this machine that are gone, and any that is an hour old."""
    for path in folder.glob(f".*{PART}"):
        _, node, process = path.name.removesuffix(PART).rsplit("@", 2) if path.name.count("@") > 1 else ("", "", "")
        gone = node == platform.node() and process.isdigit() and not _alive(int(process))
        # A younger one may be another machine's that is writing now, and may be gone by now.
        if gone or _age(path) > _STALE_SECONDS:
            path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 where it is not there any more."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
