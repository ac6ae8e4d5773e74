"""Measured runs of serving, predicted against measured: cases of inference with columns of ``MEASURED``.

Each case's columns are override keys; what was measured stands under ``measured.<result column>``.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from rapid_dse.analysis.error_figures import error_figures
from rapid_dse.sweep.cases import Refused, group_cases
from rapid_dse.sweep.table import priced_table

MEASURED = ("tpot_s", "ttft_s", "request_latency_s", "tokens_per_s_per_gpu", "energy_j_per_token", "power_w_per_gpu")


def measured_columns(table: pd.DataFrame) -> list[str]:
    """Result columns that the table has measured values of."""
    return [name for name in MEASURED if f"measured.{name}" in table]


def is_served(table: pd.DataFrame) -> bool:
    """Whether the table is one of cases of inference."""
    return "measured.step_time_s" not in table and bool(measured_columns(table))


def predict_served(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """``predicted.measured.<column>`` for each measured column, NaN where a row is not predicted or not measured; and why rows are not,
    a line a reason."""
    names, refused = measured_columns(table), Refused()
    figures, reasons = {name: np.full(len(table), np.nan) for name in names}, Counter[str]()
    for group in group_cases(table, refused):
        priced = priced_table(group.portion).to_pandas()
        for name in names:
            figures[name][group.rows] = priced[name].astype(float)
        reasons.update(priced.loc[priced["status"].isin(["invalid", "error"]), "reason"])
    reasons.update(refused.values())
    columns = {f"predicted.measured.{name}": np.where(table[f"measured.{name}"].notna(), figures[name], np.nan) for name in names}
    return pd.DataFrame(columns, index=table.index), [f"{count} rows: {text}" for text, count in reasons.items()]


def served_errors(table: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Errors of predicted / measured − 1 by suite and column: ``n``, ``mape``, ``median``, ``p90`` (absolute), ``bias``."""
    both = {name: predicted[f"predicted.measured.{name}"] / table[f"measured.{name}"] - 1 for name in measured_columns(table)}
    suite = table["suite"] if "suite" in table else pd.Series("all", index=table.index)
    lines = pd.DataFrame(both).assign(suite=suite).melt("suite", var_name="column", value_name="error").dropna()
    return error_figures(lines, ["suite", "column"])
