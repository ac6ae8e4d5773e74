"""The files that options are read from, as a composition that is kept needs to know them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rapid_dse.sweep.overrides import GROUPS, SWEEPS
from rapid_dse.sweep.places import home


def state_of_options() -> tuple[object, ...]:
    """What a composition of the program's own options depends on beside their names: its files, by path, time of change and size, and the
    variables of the environment that they read."""
    places = [home() / SWEEPS, *(home() / "conf" / name for name in ("config.yaml", *GROUPS))]
    variables = sorted(variable for variable in os.environ.items() if variable[0].startswith("RAPID_"))
    return (*(file for place in places for file in _files(place)), *variables)


def _files(place: Path) -> Iterator[tuple[str, int, int]]:
    """Path, time of change in ns and bytes of a file, or of all files below a folder; nothing where there is neither."""
    try:
        status = place.stat()
    except OSError:
        return
    if not stat.S_ISDIR(status.st_mode):
        yield str(place), status.st_mtime_ns, status.st_size
        return
    for entry in sorted(os.listdir(place)):
        yield from _files(place / entry)
