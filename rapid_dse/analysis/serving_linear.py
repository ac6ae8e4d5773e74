"""Fits of an inference profile with some rows left out, by the derivatives of log predictions around it: milliseconds a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from rapid_dse.analysis.serving_fit import FIGURES, LOWEST, NOISE, ROBUST, Table, counting, exercised, pull_of, typical_values
from rapid_dse.analysis.serving_fit import predicted as priced
from rapid_dse.config.free_parameters import FreeParameter

FloatColumn = NDArray[np.float64]

STEP = 0.05  # of a parameter's spread


@dataclass(frozen=True)
class ServedLinear:
    """Log predictions of a table's rows around their profile.

    Attributes:
        rows: positions in the table, ``(n_rows,)``; columns below are those of ``FIGURES``.
        logs: log predictions, ``(n_rows, n_figures)``, NaN where there is none; ``slopes``: by each parameter, ``(n_rows, n_figures,
            n_parameters)``; ``measured``: logs of what counts in a fit, NaN elsewhere; ``weights``: how much.
        parameters: what is fitted; ``at``: their values, ``(n_parameters,)``.
    """

    rows: NDArray[np.int64]
    logs: FloatColumn
    slopes: FloatColumn
    measured: FloatColumn
    weights: FloatColumn
    parameters: Sequence[FreeParameter]
    at: FloatColumn

    def without(self, unseen: NDArray[np.bool_]) -> FloatColumn:
        """Log predictions of all rows, ``(n_rows, n_figures)``, by a fit to those that are not ``unseen``: the loss, pull and bounds of
        ``serving_fit.fit``."""
        counts = np.isfinite(self.measured) & np.isfinite(self.logs) & ~unseen[:, None]
        if not counts.any():
            return self.logs
        logs, slopes, weights = (self.logs - self.measured)[counts], self.slopes[counts], self.weights[counts]
        typical, spread, upper = (np.array([getattr(p, name) for p in self.parameters]) for name in ("typical", "spread", "upper"))
        pull = pull_of(int((~unseen).sum()))

        def errors(share: FloatColumn) -> FloatColumn:
            off = np.expm1(logs + slopes @ (share * spread - self.at))
            return np.concatenate([off * weights / NOISE, (share - typical / spread) * pull])

        def derivative(share: FloatColumn) -> FloatColumn:
            ratio = np.exp(logs + slopes @ (share * spread - self.at))
            return np.vstack([slopes * spread * (ratio * weights / NOISE)[:, None], np.diag(np.full(len(spread), pull))])

        lower = np.array([LOWEST.get(p.name, 0.0) for p in self.parameters])
        first = np.clip(self.at / spread, lower / spread + 1e-6, upper / spread - 1e-6)
        bounds = (lower / spread, upper / spread)
        solution = least_squares(errors, first, jac=derivative, bounds=bounds, loss="soft_l1", f_scale=ROBUST)
        shifted_logs: FloatColumn = self.logs + self.slopes @ (solution.x * spread - self.at)
        return shifted_logs


def linear(tables: Sequence[Table]) -> ServedLinear:
    """Log predictions of the rows of one profile around it as it is."""
    parameters = exercised(tables)
    now = typical_values(tables[0].scenario)
    at = np.array([now[p.name] for p in parameters])
    here = _logs(tables, {})
    slopes = np.zeros((*here.shape, len(parameters)))
    for index, parameter in enumerate(parameters):
        step = STEP * parameter.spread * (1 if at[index] + STEP * parameter.spread <= parameter.upper else -1)
        slopes[:, :, index] = (_logs(tables, {parameter.name: at[index] + step}) - here) / step
    weighed = [counting(table) for table in tables]
    measured = np.concatenate([linear for linear, _ in weighed])
    weights = np.concatenate([linear for _, linear in weighed])
    rows = np.concatenate([table.rows for table in tables])
    return ServedLinear(rows, here, np.nan_to_num(slopes), measured, weights, parameters, at)


def _logs(tables: Sequence[Table], values: dict[str, float]) -> FloatColumn:
    figures = [
        np.stack([getattr(priced_loads, name) for name in FIGURES], axis=1) for priced_loads in (priced(table, values) for table in tables)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(np.concatenate(figures)))


def left_out(linear: ServedLinear, folds: Sequence[str]) -> FloatColumn:
    """Log predictions of every row by a fit without the rows of its fold, ``(n_rows, n_figures)``.

    Args:
        folds: what each row belongs to; where all belong to one, nothing is left to fit and predictions are the profile's own.
    """
    marks = np.array(folds)
    logs = linear.logs.copy()
    for fold in np.unique(marks) if len(set(folds)) > 1 else []:
        logs[marks == fold] = linear.without(marks == fold)[marks == fold]
    return logs
