"""A calibration from a table of runs: which of its rows count, and from what profile the fit starts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rapid_dse.analysis.calibration import Calibration, Options, calibrate
from rapid_dse.analysis.fit import typical_base
from rapid_dse.analysis.measured_runs import require_runs
from rapid_dse.sweep.cases import group_cases

if TYPE_CHECKING:
    import pandas as pd


def require_profile_name(name: str, text: str) -> None:
    """``ValueError`` where a name cannot be that of an option; ``text``: how the user gave it."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is None:
        raise ValueError(f"{text}: allowed: the name of a profile, letters, digits, _, - and . alone")


def calibrated_table(frame: pd.DataFrame, software: str, source: str, options: Options) -> Calibration:
    """Fits a profile to the rows of a table whose ``software`` is blank or this one.

    Raises:
        ValueError: what the table lacks.
    """
    require_runs(frame, source)
    if "software" not in frame:
        frame = frame.assign(software=software)
    frame = frame[frame["software"].fillna(software) == software].reset_index(drop=True)
    if frame.empty:
        raise ValueError(f"{source}: no row has software={software}")
    require_runs(frame, source)
    groups = group_cases(frame)
    shipped = groups[0].portion.scenario.software
    base = shipped if options.what == "cluster" else typical_base(shipped)
    return calibrate(frame, groups, software, base, source, options)
