"""``rd.calibrate``: a profile and a cluster fitted to measured runs."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rapid_dse.analysis.calibration import Calibration, Options, write_all
from rapid_dse.analysis.calibration_table import calibrated_table, require_profile_name

if TYPE_CHECKING:
    import pandas as pd


def calibrate(
    cases: str | PathLike[str] | pd.DataFrame,
    software: str,
    *,
    fit: Literal["software", "cluster", "both"] = "both",
    parameters: list[str] | None = None,
    chip: bool = False,
    out: str | None = None,
) -> Calibration:
    """Fits what a framework does and what its jobs meet on their cluster to measured runs.

    Args:
        cases: a table, or its file: override keys as columns, and ``measured.step_time_s``.
        software: the profile whose runs these are.
        fit: what to fit.
        parameters: those to fit; None: all that the runs exercise.
        chip: fit the chip's efficiencies too.
        out: a name to write ``conf/software/NAME.yaml`` and ``conf/cluster/NAME.yaml`` under, below the current folder; None: nothing is.

    Raises:
        ValueError: what the table lacks.
    """
    from rapid_dse.config.table_file import read_table

    if out is not None:
        require_profile_name(out, f"out={out!r}")
    named = isinstance(cases, str) or hasattr(cases, "__fspath__")
    frame = read_table(Path(fspath(cases))) if named else cases.copy()  # type: ignore[union-attr, arg-type]
    source = fspath(cases) if named else "the table"  # type: ignore[arg-type]
    calibrated = calibrated_table(frame, software, source, Options(parameters, fit, chip, 1))
    if out is not None:
        write_all(calibrated, Path("conf"), out, source)
    return calibrated
