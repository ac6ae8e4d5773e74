"""Fitting a profile's free parameters to measured step times or peaks of memory: bounded, robust, held by what is typical."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.optimize import least_squares

from rapid_dse.config.cluster import FREE_CLUSTER, Cluster
from rapid_dse.config.free_parameters import FreeParameter
from rapid_dse.config.hardware import Efficiency
from rapid_dse.config.parts import keys_of
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import FREE, FREE_MEMORY, Software
from rapid_dse.model.architecture import split_of
from rapid_dse.parallel.layouts import IntColumn, Layouts
from rapid_dse.parallel.stages import stages
from rapid_dse.simulate.memory import peak_memory
from rapid_dse.simulate.training import Prepared, prepare, step_seconds

FloatColumn = NDArray[np.float64]

NOISE = 0.1  # log error that repeated runs of one layout show; a parameter one spread off weighs as much as a run that far off
CERTAIN = 0.02  # the same of what ended out of memory: that it needed no less than the chip leaves is no measurement
ROBUST = 1.0  # in units of NOISE: errors beyond count linearly
ALIKE = 0.95  # correlation from which two parameters cannot be told apart

CHIP: tuple[FreeParameter, ...] = (
    FreeParameter("hw.efficiency.memory", 0.85, 0.06, 1.0, "share", "what streaming kernels reach of HBM's bandwidth"),
    FreeParameter("hw.efficiency.sustained", 0.9, 0.1, 1.0, "share", "clock that training holds against short benchmarks"),
)


VANISHING = 1e-6  # share of a parameter's upper bound below which a fitted number is none
_UPPER = {p.name.rsplit(".", 1)[-1]: p.upper for p in (*FREE, *FREE_MEMORY, *FREE_CLUSTER, *CHIP)}


@dataclass(frozen=True)
class Runs:
    """Measured runs of one scenario: ``measured`` is seconds of a step or bytes at the peak, ``(n_layouts,)``.

    ``rows`` are their positions in the table, ``(n_layouts,)``; ``pinned`` software keys are the runs' own. ``at_least``: runs that ended
    out of memory; ``measured`` is what the chip leaves, and their worst stage's peak was no less.
    """

    scenario: Scenario
    layouts: Layouts
    measured: FloatColumn
    rows: IntColumn
    pinned: Mapping[str, Any]
    at_least: bool = False

    def take(self, mask: NDArray[np.bool_]) -> Runs:
        """The runs where ``mask`` is true."""
        return replace(self, layouts=self.layouts.take(mask), measured=self.measured[mask], rows=self.rows[mask])

    def on(self, cluster: Cluster) -> Runs:
        """The runs on another cluster."""
        return replace(self, scenario=self.scenario.model_copy(update={"cluster": cluster}))

    @property
    def model(self) -> tuple[int, int, int]:
        """What makes two runs runs of one model."""
        model = self.scenario.model
        return model.hidden_size, model.num_hidden_layers, model.intermediate_size


@dataclass(frozen=True)
class Fit:
    """Fitted values with a standard error each, and pairs that the runs cannot tell apart.

    ``error`` is the mean absolute relative error on the runs that were fitted.
    """

    values: dict[str, float]
    standard_errors: dict[str, float]
    alike: tuple[tuple[str, str], ...]
    silent: tuple[str, ...]
    error: float


def settled(values: Mapping[str, float]) -> dict[str, float]:
    """Fitted values, 0 where the optimizer stopped short of that bound by next to nothing."""
    least = {name: VANISHING * _UPPER.get(name.rsplit(".", 1)[-1], 1.0) for name in values}
    return {name: 0.0 if abs(value) < least[name] else float(value) for name, value in values.items()}


def apply(scenario: Scenario, base: Software, values: Mapping[str, float], pinned: Mapping[str, Any]) -> Scenario:
    """The scenario under ``base`` with fitted ``values``; what the runs pin stays theirs.

    Names of values: a field of the software profile, ``hw.efficiency.FIELD``, ``cluster.NAME.FIELD`` of the cluster of that name.
    """
    values = settled(values)
    software = {name: value for name, value in values.items() if not name.startswith(("hw.", "cluster."))}
    profile = Software.model_validate(base.model_dump() | software | dict(pinned))
    changed: dict[str, Any] = {"software": profile}
    chip = {name.rsplit(".", 1)[1]: value for name, value in values.items() if name.startswith("hw.")}
    if chip:
        efficiency = Efficiency.model_validate(scenario.hw.efficiency.model_dump() | chip)
        changed["hw"] = scenario.hw.model_copy(update={"efficiency": efficiency})
    mine = f"cluster.{scenario.cluster.name}."
    fabric = {name.removeprefix(mine): value for name, value in values.items() if name.startswith(mine)}
    if fabric:
        changed["cluster"] = Cluster.model_validate(scenario.cluster.model_dump() | fabric)
    return scenario.model_copy(update=changed)


def typical_cluster(cluster: Cluster) -> Cluster:
    """The cluster with every free parameter back at what is typical."""
    if cluster.allreduce_busbw is not None:
        return cluster
    return cluster.model_copy(update={p.name.removeprefix("cluster."): p.typical for p in FREE_CLUSTER})


def typical_base(software: Software) -> Software:
    """The profile with every free parameter back at what is typical, but those that are ``known``: a fit must not start from another."""
    typical = {p.name: p.typical for p in FREE if p.name not in software.known}
    return software.model_copy(update=typical | {"measured": ()})


def predict(runs: Sequence[Runs], base: Software, values: Mapping[str, float], ready: Sequence[Prepared] | None = None) -> FloatColumn:
    """Step times of all runs, s, one group after the other; ``ready`` are their operators where the values do not touch the chip."""
    scenarios = [apply(r.scenario, base, values, r.pinned) for r in runs]
    prepared = ready or [prepare(scenario, r.layouts) for scenario, r in zip(scenarios, runs, strict=True)]
    return np.concatenate([step_seconds(s, r.layouts, p) for s, r, p in zip(scenarios, runs, prepared, strict=True)])


def predict_peaks(runs: Sequence[Runs], base: Software, values: Mapping[str, float]) -> FloatColumn:
    """Peak memory that the runs log, bytes, one group after the other; of runs that ended out of memory the worst stage's."""
    return np.concatenate([logged_peak(apply(r.scenario, base, values, r.pinned), r.layouts, r.at_least) for r in runs])


def logged_peak(scenario: Scenario, layouts: Layouts, worst: bool = False) -> FloatColumn:
    """Peak memory that the framework logs, or that of the ``worst`` stage, bytes, ``(n_layouts,)``: what a measured peak is held against.

    It may log one stage's peak alone, and of that what tensors take, without what the allocator cannot use and what is held beside them."""
    stage, memory = stages(split_of(scenario), layouts), scenario.software.memory
    if worst:
        return peak_memory(scenario, layouts, stage).peak
    memory_of_stage = peak_memory(scenario, layouts, stage if memory.logged_stage == "worst" else stage.alone(memory.logged_stage))
    logged = memory_of_stage.framework + (memory.fragmentation - 1) * memory_of_stage.activations if memory.logs_allocated else 0.0
    return np.asarray(memory_of_stage.peak - logged, dtype=np.float64)


def fit(runs: Sequence[Runs], base: Software, parameters: Sequence[FreeParameter]) -> Fit:
    """Fits ``parameters`` to log step times, from several starts, each held to what is typical of it.

    Huber-like loss (soft L1) on log error over ``NOISE``; a parameter's distance from typical, in spreads, is one residual more.
    """
    measured = np.log(np.concatenate([r.measured for r in runs]))
    at_least = np.concatenate([np.full(len(r.measured), r.at_least) for r in runs])
    upper = np.array([p.upper for p in parameters])
    typical = np.array([p.typical for p in parameters])
    spread = np.array([p.spread for p in parameters])

    model = _model_of(runs, base, parameters)

    def residuals(share: FloatColumn) -> FloatColumn:
        values = dict(zip((p.name for p in parameters), share * upper, strict=True))
        errors = (np.log(model(values)) - measured) / NOISE
        errors = np.where(at_least, np.minimum(errors, 0.0) * NOISE / CERTAIN, errors)
        return np.concatenate([errors, (share * upper - typical) / spread])

    starts = [np.clip((typical + step * spread) / upper, 0.01, 0.99) for step in (0.0, 0.7)]
    lower = np.array([lowest(p.name) for p in parameters]) / upper
    solutions = [
        least_squares(
            residuals, np.maximum(start, lower + 1e-6), bounds=(lower, 1.0), loss="soft_l1", f_scale=ROBUST, diff_step=[0.005], max_nfev=30
        )
        for start in starts
    ]
    best = min(solutions, key=lambda solution: solution.cost)
    values = {p.name: float(v) for p, v in zip(parameters, best.x * upper, strict=True)}
    return _judged(values, np.asarray(best.jac, dtype=np.float64), upper, parameters, model(values), np.exp(measured))


def _model_of(runs: Sequence[Runs], base: Software, parameters: Sequence[FreeParameter]) -> Callable[[Mapping[str, float]], FloatColumn]:
    """What the parameters predict: peaks where they are memory's, else step times, their operators priced once if the chip stays."""
    names = {p.name for p in parameters}
    if names <= {p.name for p in FREE_MEMORY}:
        return lambda values: predict_peaks(runs, base, values)
    touches_chip = any(name.startswith("hw.") for name in names)
    ready = None if touches_chip else [prepare(apply(r.scenario, base, {}, r.pinned), r.layouts) for r in runs]
    return lambda values: predict(runs, base, values, ready)


def lowest(name: str) -> float:
    """The least value that the schema lets a parameter have."""
    field = keys_of(Cluster if name.startswith("cluster.") else Software).get(name.rsplit(".", 1)[-1])
    bounds = [constraint.ge for constraint in field.metadata if getattr(constraint, "ge", None) is not None] if field else [0.3]
    return float(max(bounds)) if bounds else 0.0


def _judged(
    values: dict[str, float],
    jacobian: FloatColumn,
    upper: FloatColumn,
    parameters: Sequence[FreeParameter],
    predicted: FloatColumn,
    seconds: FloatColumn,
) -> Fit:
    """Standard errors from the curvature, pairs whose errors go together, and parameters that the runs say nothing of."""
    covariance = np.linalg.pinv(jacobian.T @ jacobian)
    errors = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    runs_only = jacobian[: len(seconds)]
    norms = np.linalg.norm(runs_only, axis=0)
    names = [p.name for p in parameters]
    silent = tuple(n for n, norm, u, p in zip(names, norms, upper, parameters, strict=True) if norm * p.spread / u < 1.0)
    directions = runs_only / np.maximum(norms, 1e-12)
    alike = tuple(
        (names[i], names[j])
        for i, j in combinations(range(len(names)), 2)
        if abs(directions[:, i] @ directions[:, j]) > ALIKE and names[i] not in silent and names[j] not in silent
    )
    standard = {name: float(error * scale) for name, error, scale in zip(names, errors, upper, strict=True)}
    return Fit(settled(values), standard, alike, silent, float(np.abs(predicted / seconds - 1).mean()))


def held_out(runs: Sequence[Runs], base: Software, parameters: Sequence[FreeParameter], jobs: int = 1) -> list[FloatColumn]:
    """Predictions of each run by a fit that has not seen its model (nor, where there is one model alone, the run), like ``runs``.

    Returns:
        step times, s, one array a group of ``runs``, ``(n_layouts,)`` each.
    """
    marks = folds_of(runs)
    count = 1 + max(int(mark.max()) for mark in marks)
    fits = Parallel(n_jobs=jobs)(delayed(_fit_without)(runs, marks, fold, base, parameters) for fold in range(count))
    predictions = [np.full(len(r.layouts), np.nan) for r in runs]
    for fold, values in enumerate(fits):
        for index, (r, mark) in enumerate(zip(runs, marks, strict=True)):
            if (mark == fold).any():
                predictions[index][mark == fold] = _model_of([r.take(mark == fold)], base, parameters)(values)
    return predictions


def folds_of(runs: Sequence[Runs], folds: int = 5, seed: int = 0) -> list[IntColumn]:
    """The fold of each run: its model's, or by lot where all runs are of one model."""
    models = sorted({r.model for r in runs})
    if len(models) > 1:
        return [np.full(len(r.layouts), models.index(r.model)) for r in runs]
    count = min(folds, sum(len(r.layouts) for r in runs))
    lots = np.random.default_rng(seed).integers(0, count, 1 + max(int(r.rows.max()) for r in runs))
    return [lots[r.rows] for r in runs]


def _fit_without(
    runs: Sequence[Runs], marks: Sequence[IntColumn], fold: int, base: Software, parameters: Sequence[FreeParameter]
) -> dict[str, float]:
    training = [r.take(mark != fold) for r, mark in zip(runs, marks, strict=True) if (mark != fold).any()]
    return fit(training, base, parameters).values if training else {p.name: p.typical for p in parameters}
