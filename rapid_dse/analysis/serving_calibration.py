"""Fitting an inference profile to a table of measured requests, and writing it as a YAML that composes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.analysis.calibration import write
from rapid_dse.analysis.measured_loads import loads_of
from rapid_dse.analysis.profile_file import profile_lines
from rapid_dse.analysis.serving_envelope import served_boxes, served_lines
from rapid_dse.analysis.serving_fit import fit, tables_of
from rapid_dse.analysis.serving_linear import left_out
from rapid_dse.config.measured_boxes import ServedRuns
from rapid_dse.config.software import Software
from rapid_dse.sweep.cases import group_cases

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ServedCalibration:
    """A fitted inference profile: what it started from, ``values`` by parameter, mean errors of the fit and on models that it had not seen,
    how many loads and models there were, and where they lie."""

    base: Software
    values: Mapping[str, float]
    error: float
    held_out_error: float
    rows: int
    models: int
    served: tuple[ServedRuns, ...]


def calibrate_requests(frame: pd.DataFrame, software: str, source: str) -> ServedCalibration:
    """Fits the free parameters of serving to the rows of a table whose ``software`` is blank or this one.

    Where all loads are of one model, the error on others is not known, and that of the fit stands in its place.

    Raises:
        ValueError: what the table lacks.
    """
    named = frame.get("software")
    frame = frame.assign(software=software if named is None else named.fillna(software))
    frame = frame[frame["software"] == software].reset_index(drop=True)
    if frame.empty:
        raise ValueError(f"{source}: no row has software={software}")
    loads_of(frame, source)  # says what the table lacks
    values = fit(tables_of(frame, group_cases(frame, {}))).values
    loads = loads_of(frame, source, values)
    without = left_out(loads.linear, loads.models)
    errors, boxes = loads.errors(without), served_boxes(loads.settings, loads.models, loads.of_steps(without), loads.counts)
    own, unseen = (np.abs(logs[loads.counts & np.isfinite(logs)]) for logs in (loads.errors(loads.linear.logs), errors))
    if not len(own):
        raise ValueError(f"{source}: no legal row has a measured time or rate; needed: measured.tpot_s, or a time or rate of requests")
    base = loads.tables[0].scenario.software
    return ServedCalibration(base, values, float(own.mean()), float(unseen.mean()), len(own), len(set(loads.models)), boxes)


def write_served(calibrated: ServedCalibration, name: str, source: str, path: Path) -> None:
    """Writes the profile: every setting that is not the schema's default, the fitted values, and the loads behind it."""
    dumped = calibrated.base.model_dump(mode="json", exclude_defaults=True)
    kept = {key: value for key, value in dumped.items() if key not in ("name", "measured", "served", *calibrated.values)}
    values = {"name": name} | kept | {key: f"{value:.4g}" for key, value in calibrated.values.items()}
    lines = [
        f"# Fitted to {calibrated.rows} loads of {calibrated.models} models in {source}.",
        f"# Mean error on models that the fit had not seen: {calibrated.held_out_error:.3g}.",
        *profile_lines(values, dict.fromkeys(calibrated.values, "fitted")),
        *served_lines(calibrated.served),
    ]
    write("\n".join(lines) + "\n", Software, path)
