"""Fits with some runs left out, by the derivatives of log step times around a fit: a fit costs milliseconds then, not minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from rapid_dse.analysis.calibration import cluster_parameters, exercised
from rapid_dse.analysis.fit import NOISE, ROBUST, Runs, apply, lowest, predict
from rapid_dse.analysis.measured_runs import parameters_by_name
from rapid_dse.config.free_parameters import FreeParameter
from rapid_dse.config.parts import value_of
from rapid_dse.config.software import Software
from rapid_dse.simulate.training import prepare

FloatColumn = NDArray[np.float64]
STEP = 0.02  # of a parameter's spread: small against what moves a step time, large against rounding


@dataclass(frozen=True)
class Linear:
    """Log step times of runs around a fit.

    Attributes:
        parameters: of the framework and its clusters; ``at``: their values, ``(n_parameters,)``.
        logs: log of predicted over measured step times there, ``(n_runs,)``; ``slopes``: by each parameter, ``(n_runs, n_parameters)``.
    """

    parameters: Sequence[FreeParameter]
    at: FloatColumn
    logs: FloatColumn
    slopes: FloatColumn

    def errors_without(self, unseen: NDArray[np.bool_]) -> FloatColumn:
        """predicted / measured − 1 of the runs in ``unseen`` by a fit to all others, ``(n_left,)``.

        The fit is that of ``analysis.fit``: the same loss, the same pull towards what is typical, the same bounds.
        """
        upper = np.array([p.upper for p in self.parameters])
        typical, spread = np.array([p.typical for p in self.parameters]), np.array([p.spread for p in self.parameters])
        lower = np.array([lowest(p.name) for p in self.parameters])
        slopes, logs = self.slopes[~unseen], self.logs[~unseen]
        jacobian = np.vstack([slopes * upper / NOISE, np.diag(upper / spread)])

        def residuals(share: FloatColumn) -> FloatColumn:
            values = share * upper
            return np.concatenate([(logs + slopes @ (values - self.at)) / NOISE, (values - typical) / spread])

        def derivative(_: FloatColumn) -> FloatColumn:
            return jacobian

        start = np.clip(self.at / upper, lower / upper + 1e-6, 1 - 1e-6)
        bounds = (lower / upper, 1.0)
        solution = least_squares(residuals, start, jac=derivative, bounds=bounds, loss="soft_l1", f_scale=ROBUST)
        differences: FloatColumn = np.expm1(self.logs[unseen] + self.slopes[unseen] @ (solution.x * upper - self.at))
        return differences


def linear(runs: Sequence[Runs], profile: Software | None = None) -> Linear:
    """Log step times of runs around their profile and their clusters as they are; ``profile``: where runs pin keys of it, without those."""
    parameters = [*parameters_by_name(exercised(runs)), *cluster_parameters(runs, unknown=False)]
    software = profile or runs[0].scenario.software
    ready = [prepare(apply(run.scenario, software, {}, run.pinned), run.layouts) for run in runs]
    measured = np.log(np.concatenate([run.measured for run in runs]))
    names, at = [p.name for p in parameters], np.array([_value(p.name, runs) for p in parameters])

    def logs(values: FloatColumn) -> FloatColumn:
        logs_of_runs: FloatColumn = np.log(predict(runs, software, dict(zip(names, values.tolist(), strict=True)), ready)) - measured
        return logs_of_runs

    here = logs(at)
    slopes = np.empty((len(here), len(parameters)))
    for index, parameter in enumerate(parameters):
        step = STEP * parameter.spread * (1 if at[index] + STEP * parameter.spread <= parameter.upper else -1)
        shifted = at.copy()
        shifted[index] += step
        slopes[:, index] = (logs(shifted) - here) / step
    return Linear(parameters, at, here, slopes)


def _value(name: str, runs: Sequence[Runs]) -> float:
    """What a parameter is now, of the framework or of ``cluster.NAME.FIELD``."""
    if name.startswith("cluster."):
        _, cluster, field = name.split(".")
        return float(getattr(next(run.scenario.cluster for run in runs if run.scenario.cluster.name == cluster), field))
    software = runs[0].scenario.software
    value = value_of(software, name)
    return float(software.overlap.dp_overlap if value is None else value)  # scatter_overlap null is dp_overlap


def errors_unseen(linear: Linear, models: Sequence[NDArray[np.int64]]) -> FloatColumn:
    """predicted / measured − 1 of every run by a fit without the runs of its fold, ``(n_runs,)``; ``models``: folds, as ``folds_of``."""
    marks = np.concatenate(list(models))
    errors = np.empty(len(marks))
    for fold in np.unique(marks):
        errors[marks == fold] = linear.errors_without(marks == fold)
    return errors
