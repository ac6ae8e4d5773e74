"""The files that options are read from, as a composition that is kept needs to know them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from rapid_dse.sweep.overrides import GROUPS, SWEEPS
from rapid_dse.sweep.places import GUARDED_SCHEME


def state_of_options(trusted: bool) -> tuple[object, ...]:
    """What a composition of named options depends on beside their names: the files on Hydra's search path, by path, time of change and
    size, and the environment, as far as files may read it (``trusting.closed_environment``)."""
    folders = [str(item.path) for item in GlobalHydra.instance().config_loader().get_search_path().get_path()]
    local = [Path(folder.split("://", 1)[1]) for folder in folders if folder.startswith(("file://", f"{GUARDED_SCHEME}://"))]
    files = [file for folder in local for name in ("config.yaml", *GROUPS, SWEEPS) for file in _files(folder / name)]
    variables = sorted(variable for variable in os.environ.items() if trusted or variable[0].startswith("RAPID_"))
    return (*folders, *files, *variables)


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
