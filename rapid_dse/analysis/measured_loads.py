"""Measured requests from tables of cases: one profile's loads, with all that was measured of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from rapid_dse.analysis.served_runs import is_served
from rapid_dse.analysis.serving_envelope import Loads, amplified_of, settings_of
from rapid_dse.analysis.serving_fit import FIGURES, tables_of, with_values
from rapid_dse.analysis.serving_linear import linear
from rapid_dse.sweep.cases import group_cases
from rapid_dse.sweep.outside import untold_drafts

LEAST_LOADS = 5  # legal rows without which nothing is fitted


def can_fold(frame: pd.DataFrame) -> bool:
    """Whether a table of requests has times or rates of enough loads of a framework that it names, so that models can be left out."""
    if not is_served(frame) or "software" not in frame:
        return False
    known = [pd.to_numeric(frame[f"measured.{name}"], errors="coerce").notna() for name in FIGURES if f"measured.{name}" in frame]
    return bool(known) and bool(frame["software"].value_counts().max() >= LEAST_LOADS) and bool(np.any(known))


def loads_of(frame: pd.DataFrame, source: str, values: Mapping[str, float] | None = None) -> Loads:
    """The legal rows of a table whose rows all have one profile, indexed from 0.

    Args:
        source: the table's name, for messages; values: numbers of the profile that stand in place of its own.

    Raises:
        ValueError: too few legal rows.
    """
    tables = tables_of(frame, group_cases(frame, {}))
    if sum(len(table.rows) for table in tables) < LEAST_LOADS:
        raise ValueError(f"{source}: {sum(len(table.rows) for table in tables)} legal rows of requests; needed: at least {LEAST_LOADS}")
    if values is not None:
        tables = [table.of(with_values(table.scenario, values)) for table in tables]
    loads = linear(tables)
    models = frame["model_name"].astype(str) if "model_name" in frame else _sizes(frame)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.stack([_figure(frame, name) for name in FIGURES], axis=1))[loads.rows]
    counts, settings = ~untold_drafts(frame, len(frame))[loads.rows], settings_of(tables)
    first = dict[float, str]()  # two names of as many parameters are one model
    named = [first.setdefault(size, models.iloc[row]) for row, size in zip(loads.rows, settings["parameters"], strict=True)]
    return Loads(tables, loads, settings, named, logs, counts, amplified_of(tables))


def _figure(frame: pd.DataFrame, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    figures = np.asarray(pd.to_numeric(frame.get(f"measured.{name}", pd.Series(np.nan, index=frame.index)), errors="coerce"), float)
    ran = frame["measured.status"].eq("ok").to_numpy() if "measured.status" in frame else np.ones(len(frame), bool)
    return np.where(ran & (figures > 0), figures, np.nan)


def _sizes(frame: pd.DataFrame) -> pd.Series[str]:
    """What tells models apart where nobody named them: their option and dimensions."""
    columns = [name for name in frame if name == "model" or str(name).startswith("model.")]
    return frame[columns].astype(str).agg(" ".join, axis=1) if columns else pd.Series("", index=frame.index)
