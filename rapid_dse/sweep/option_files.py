"""The files that options are read from, as a composition that is kept needs to know them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from rapid_dse.sweep.overrides import SWEEPS
from rapid_dse.sweep.places import home


def state_of_options() -> tuple[object, ...]:
    """What a composition of the program's own options depends on beside their names: its files, by path, time of change and size, and the
    variables of the environment that they read."""
    base = home()
    folders = [str(base / SWEEPS), str(base / "conf")]
    variables = sorted(variable for variable in os.environ.items() if variable[0].startswith("RAPID_"))
    return (*(file for folder in folders for file in sorted(_files(folder))), *variables)


def _files(folder: str) -> Iterator[tuple[str, int, int]]:
    """Path, time of change in ns and bytes of all files below a folder, in any order; of what is gone or cannot be read nothing."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path)
                continue
            with suppress(OSError):
                status = entry.stat()
                yield entry.path, status.st_mtime_ns, status.st_size
