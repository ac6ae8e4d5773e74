"""Predicted against measured requests, suite by suite: the shipped profiles' errors, and those of fits that had not seen the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rapid_dse.analysis.measured_loads import LEAST_LOADS, loads_of
from rapid_dse.analysis.serving_envelope import Loads, expected_by_others, expected_of
from rapid_dse.analysis.serving_fit import EARLY, FIGURES, predicted
from rapid_dse.analysis.serving_linear import left_out
from rapid_dse.config.table_file import read_table
from rapid_dse.simulate.results import TIME_TERMS

Floats = NDArray[np.float64]

# A figure's short name, and the figure.
SHORT = {"tpot": "tpot_s", "ttft": "ttft_s", "latency": "request_latency_s", "rate": "tokens_per_s_per_gpu"}
TERMS = (*TIME_TERMS, "prefill")


@dataclass(frozen=True)
class ValidatedRequests:
    """A table of measured requests with predictions beside it.

    Attributes:
        cases: the table; ``shipped`` and ``unseen``: predicted / measured − 1 of each figure of ``SHORT``, and ``expected`` and ``told``:
            the error to expect of a row, and the row's own (of the first figure that was measured), indexed like ``cases``; ``terms``: the
            shipped profiles' seconds of a token, by term.
    """

    cases: pd.DataFrame
    shipped: pd.DataFrame
    unseen: pd.DataFrame
    terms: pd.DataFrame

    def table(self, folds: bool = True) -> pd.DataFrame:
        """A line for each suite and kind of profile: mean and median error of each figure, and the share within the error to expect."""
        kinds = [("shipped", self.shipped)] + ([("unseen model", self.unseen)] if folds else [])
        lines = []
        for suite, rows in self.cases.groupby("suite", sort=False) if "suite" in self.cases else [("all", self.cases)]:
            for kind, rows_of_kind in kinds:
                lines.append({"suite": suite, "profile": kind, "n": len(rows)} | _errors(rows_of_kind.loc[rows.index]))
        return pd.DataFrame(lines)

    def worst(self, suite: str, count: int = 20) -> pd.DataFrame:
        """The suite's loads with the largest error of the shipped profile, with the time of a token by term."""
        rows = self.cases.index[self.cases["suite"].eq(suite)] if "suite" in self.cases else self.cases.index
        chosen = self.shipped.loc[rows, "told"].abs().sort_values(ascending=False, na_position="last").index[:count]
        named = [str(name) for name in self.cases if str(name).startswith(("case_id", "hw", "parallel.", "workload.", "measured."))]
        named = [name for name in named if self.cases.loc[rows, name].notna().any()]
        parts: list[pd.DataFrame] = [self.cases.loc[chosen, named], self.shipped.loc[chosen, ["told"]], self.terms.loc[chosen]]
        worst_rows: pd.DataFrame = pd.concat(parts, axis=1)
        return worst_rows


def _errors(rows: pd.DataFrame) -> dict[str, float]:
    line: dict[str, float] = {}
    for name in SHORT:
        off = rows[name].abs().dropna()
        line |= {name: float(off.mean()) if len(off) else np.nan, f"{name}_median": float(off.median()) if len(off) else np.nan}
    told = rows["expected"].notna() & rows["told"].notna()
    within = (rows["told"].abs() <= rows["expected"])[told]
    return line | {"within": float(within.mean()) if told.any() else np.nan, "told": int(told.sum())}


def validate_requests(path: str | Path) -> ValidatedRequests:
    """Prices every load by its shipped profile, and by a fit that has not seen its model.

    The time to the first token counts where it is below a quarter of the request's: beyond it says queues alone. Where a framework's loads
    are of one model there is nothing to leave out, and the lines are alike.

    Raises:
        ValueError: a table without ``software``, or with too few legal rows.
    """
    frame = read_table(path)
    if "software" not in frame:
        raise ValueError(f"{path}: has no column software; needed to validate")
    frame = frame.drop(columns=[name for name in frame if str(name).startswith("model.") and frame[name].isna().all()])
    columns = [*SHORT, "expected", "told"]
    shipped, unseen = (pd.DataFrame(np.nan, index=frame.index, columns=columns) for _ in range(2))
    terms = pd.DataFrame(np.nan, index=frame.index, columns=[f"{term}_s" for term in TERMS])
    for software in frame["software"].dropna().unique():
        rows = frame.index[frame["software"].eq(software)]
        part = frame.loc[rows].reset_index(drop=True)
        if len(part) < LEAST_LOADS:
            continue
        loads = loads_of(part, str(path))
        where = rows[loads.linear.rows]
        without = left_out(loads.linear, loads.models)
        own = [box for table in loads.tables[:1] for box in table.scenario.software.served]
        errors = loads.of_steps(without)
        for into, logs, expected in (
            (shipped, loads.linear.logs, expected_of(loads, own)),
            (unseen, without, expected_by_others(loads, errors)),
        ):
            into.loc[where] = _columns(loads, logs, expected)
        terms.loc[where] = _terms(loads)
    return ValidatedRequests(frame, shipped, unseen, terms)


def _columns(loads: Loads, logs: Floats, expected: Floats) -> Floats:
    off = pd.DataFrame(np.expm1(logs - loads.measured), columns=list(FIGURES))
    measured = pd.DataFrame(np.exp(loads.measured), columns=list(FIGURES))
    late = measured["ttft_s"] >= EARLY * measured["request_latency_s"]
    told, expected = loads.errors(logs), np.where(loads.counts, expected, np.nan)  # nothing of drafts that nobody told of
    off.loc[late, "ttft_s"] = np.nan
    errors = {name: off[figure] for name, figure in SHORT.items()}
    return np.stack([*(np.asarray(column, float) for column in errors.values()), expected, told], axis=1)


def _terms(loads: Loads) -> Floats:
    parts = [predicted(table, {}) for table in loads.tables]
    return np.concatenate([np.stack([getattr(part, f"time_{term}_s") for term in TERMS], axis=1) for part in parts])
