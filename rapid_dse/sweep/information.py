"""Where options come from, and which are chosen: what ``--info`` says."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rapid_dse import __version__
from rapid_dse.sweep.compose import composed, hydra_ready
from rapid_dse.sweep.overrides import GROUPS, SWEEPS, option_folders, options_of, read


def information(overrides: Sequence[str]) -> dict[str, Any]:
    """By title: the program, the option that each group has under the overrides, all options, and the folders that they lie in.

    Raises:
        ValueError: one line, where an override is wrong.
    """
    given = read(overrides)
    with hydra_ready():
        composition = composed(given.options, given.hydra, given.trusted)
    return {
        "config": {"rapid_dse": __version__, "python": platform.python_version(), "package": str(Path(__file__).parent.parent)},
        "defaults": {group: composition.choices[group] for group in (*GROUPS, SWEEPS) if group in composition.choices},
        "searchpath": [str(folder) for folder in option_folders(given.hydra)],
        "options": {group: " ".join(options_of(group, given.hydra)) for group in (*GROUPS, SWEEPS)},
    }
