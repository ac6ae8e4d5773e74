"""Measured runs from tables of cases: one profile's runs grouped for a fit, with what a table must have checked first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rapid_dse.analysis.fit import Runs
from rapid_dse.config.free_parameters import FreeParameter
from rapid_dse.config.software import FREE, FREE_MEMORY
from rapid_dse.sweep.cases import CaseGroup

if TYPE_CHECKING:
    import pandas as pd

FloatColumn = NDArray[np.float64]

SECONDS, PEAK, STATUS = "measured.step_time_s", "measured.peak_memory_bytes", "measured.status"
LEAST_ROWS = 30
PLAUSIBLE_MFU = (1e-3, 1.2)  # a step that is off this was written in another unit


def measured_runs(frame: pd.DataFrame, groups: Sequence[CaseGroup], software: str, column: str = SECONDS) -> list[Runs]:
    """The legal training runs of ``software`` that have a figure in ``column``.

    Args:
        frame: the table, with ``measured.step_time_s`` (s) or ``measured.peak_memory_bytes``;
            rows whose ``measured.status`` is not ok do not count.
        groups: its rows by scenario.
    """
    figures = np.asarray(frame[column], dtype=np.float64)
    ran = np.asarray(frame[STATUS].eq("ok")) if STATUS in frame else np.ones(len(frame), bool)
    usable = np.isfinite(figures) & (figures > 0) & ran
    runs = []
    for group in groups:
        portion = group.portion
        keep = usable[group.rows] & (portion.rule < 0)
        if portion.scenario.software.name == software and portion.scenario.workload.kind == "training" and keep.any():
            pinned = {key.removeprefix("software."): value for key, value in group.pinned.items()}
            runs.append(Runs(portion.scenario, portion.layouts.take(keep), figures[group.rows][keep], group.rows[keep], pinned))
    return runs


def exhausted_runs(frame: pd.DataFrame, groups: Sequence[CaseGroup], software: str) -> list[Runs]:
    """The legal training runs of ``software`` that ended out of memory: their peaks were no less than what the chip leaves."""
    if STATUS not in frame:
        return []
    ended = frame.copy()
    ended[PEAK] = np.where(frame[STATUS].eq("oom"), 1.0, np.nan)
    ended[STATUS] = "ok"
    runs = measured_runs(ended, groups, software, PEAK)
    return [replace(run, measured=np.full(len(run.measured), run.scenario.hw.memory.usable), at_least=True) for run in runs]


def require_runs(frame: pd.DataFrame, source: str, least: int = LEAST_ROWS) -> None:
    """Checks what a fit needs of a table.

    Raises:
        ValueError: no column of step times, no row that ran, a figure that is no number, or fewer than ``least`` rows.
    """
    if SECONDS not in frame:
        raise ValueError(f"{source}: has no column {SECONDS}; needed: seconds of a step for each run")
    ran = frame[STATUS].eq("ok") if STATUS in frame else frame[SECONDS].notna() | True
    if not ran.any():
        counts = ", ".join(f"{count} {status}" for status, count in frame[STATUS].value_counts().items())
        raise ValueError(f"{source}: no row ran ({counts}); needed: {least} rows with {STATUS}=ok")
    seconds = frame.loc[ran, SECONDS]
    try:
        numbers = seconds.astype(float)
    except (TypeError, ValueError):
        bad = next(value for value in seconds if not _is_number(value))
        raise ValueError(f"{source}: {SECONDS}={bad!r} is no number; needed: seconds") from None
    wrong = numbers.isna() | ~np.isfinite(numbers) | (numbers <= 0)
    if wrong.any():
        row = int(np.flatnonzero(ran)[np.flatnonzero(wrong)[0]]) + 1
        raise ValueError(f"{source}: row {row} ran but {SECONDS}={frame[SECONDS].iloc[row - 1]}; needed: a number above 0 (seconds)")
    if len(numbers) < least:
        raise ValueError(f"{source}: {len(numbers)} rows that ran; needed: at least {least}")


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def require_plausible(mfu: Sequence[FloatColumn], source: str) -> None:
    """Checks that the runs' step times are seconds: the model FLOP utilisation that they imply is possible.

    Raises:
        ValueError: where most runs imply a utilisation that no run has.
    """
    values = np.concatenate(list(mfu))
    off = (values < PLAUSIBLE_MFU[0]) | (values > PLAUSIBLE_MFU[1])
    if off.mean() > 0.2:
        raise ValueError(
            f"{source}: {SECONDS} implies a model FLOP utilisation of {np.median(values):.2g} (median); possible: 0.001 to 1; "
            "are the step times in seconds, and do model and batch match the runs?"
        )


def parameters_by_name(names: Sequence[str], extra: Sequence[FreeParameter] = ()) -> list[FreeParameter]:
    """The free parameters of these names, in order; ``ValueError`` with those that exist for a name that is none."""
    known = {parameter.name: parameter for parameter in (*FREE, *FREE_MEMORY, *extra)}
    for name in names:
        if name not in known:
            raise ValueError(f"{name} is no free parameter; allowed: {', '.join(known)}")
    return [known[name] for name in names]
