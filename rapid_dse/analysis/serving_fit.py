"""Fitting an inference profile's latencies to measured tables: times of tokens, first tokens and requests, and rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from rapid_dse.config.free_parameters import FreeParameter
from rapid_dse.config.parts import value_of
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import FREE_SERVING
from rapid_dse.parallel.engines import Engines
from rapid_dse.simulate.inference.pricing import PreparedEngines, prepare, served
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep.cases import CaseGroup
from rapid_dse.sweep.outside import untold_drafts

FloatColumn = NDArray[np.float64]

NOISE = 0.1  # relative error of repeated runs and of versions of a framework
HELD = 2.0  # rows that one spread of a parameter weighs as much as, for each tenth of the rows
STATIC = 3.0  # rows of static batches weigh as much as so many, since they are few and show kernels and scripts without a server
MOST = 1500  # rows that a fit uses
ROBUST = 1.0  # in units of NOISE: errors beyond count linearly
EARLY = 0.25  # share of a request's time below which the time to the first token says something of prefill, not of queues
# What a row's columns say, and how much each counts. Requests' times and rates are told by tokens' where those are measured.
WEIGHTS = {"tpot_s": 1.0, "ttft_s": 0.6, "request_latency_s": 1.0, "tokens_per_s_per_gpu": 1.0}
FIGURES = tuple(WEIGHTS)


@dataclass(frozen=True)
class Table:
    """Measured requests of one scenario: ``measured`` by column, ``(n_layouts,)`` each, NaN where it does not count; ``rows``: positions in
    the table; ``ready``: what their engines cost before the framework's latencies."""

    scenario: Scenario
    layouts: Engines
    measured: Mapping[str, FloatColumn]
    rows: NDArray[np.int64]
    ready: list[PreparedEngines]

    def of(self, scenario: Scenario) -> Table:
        """The same loads under other numbers of a profile."""
        return replace(self, scenario=scenario)


@dataclass(frozen=True)
class ServingFit:
    """``values`` by parameter; ``error``: mean of |predicted / measured − 1| of tpot, or of rates where none was measured."""

    values: Mapping[str, float]
    error: float


def tables_of(frame: pd.DataFrame, groups: Sequence[CaseGroup]) -> list[Table]:
    """The legal inference rows with what was measured of them."""
    figures = {name: pd.to_numeric(frame.get(f"measured.{name}", np.nan), errors="coerce") for name in WEIGHTS}
    columns = {name: np.asarray(pd.Series(column, index=frame.index), float) for name, column in figures.items()}
    late = ~(columns["ttft_s"] < EARLY * columns["request_latency_s"])
    alone = np.isnan(columns["request_latency_s"]) & np.isnan(columns["tpot_s"])
    columns["ttft_s"] = np.where(late & ~alone, np.nan, columns["ttft_s"])
    told = ~np.isnan(columns["tpot_s"])
    for name in ("request_latency_s", "tokens_per_s_per_gpu"):
        columns[name] = np.where(told, np.nan, columns[name])
    columns["tokens_per_s_per_gpu"] = np.where(np.isnan(columns["request_latency_s"]), columns["tokens_per_s_per_gpu"], np.nan)
    untold = untold_drafts(frame, len(frame))
    columns = {name: np.where(untold, np.nan, column) for name, column in columns.items()}
    tables = []
    for group in groups:
        portion = group.portion
        keep = portion.rule < 0
        if portion.scenario.workload.kind == "inference" and keep.any():
            layouts = portion.layouts.take(keep)
            assert isinstance(layouts, Engines)
            rows = group.rows[keep]
            measured = {name: column[rows] for name, column in columns.items()}
            tables.append(Table(portion.scenario, layouts, measured, rows, prepare(portion.scenario, layouts)))
    return tables


def with_values(scenario: Scenario, values: Mapping[str, float]) -> Scenario:
    """The scenario with other numbers in its profile."""
    return scenario.model_copy(update={"software": scenario.software.model_copy(update=dict(values))})


def predicted(table: Table, values: Mapping[str, float]) -> Priced:
    """Results of a table's rows under such latencies."""
    return served(with_values(table.scenario, values), table.layouts, table.ready)


def residuals(table: Table, values: Mapping[str, float]) -> FloatColumn:
    """Relative errors of all that was measured, weighted, in units of ``NOISE``."""
    predicted_logs = predicted(table, values)
    logs, weights = counting(table)
    off = np.log(np.stack([getattr(predicted_logs, name) for name in FIGURES], axis=1)) - logs
    known = np.isfinite(logs)
    return np.asarray(np.expm1(off[known]) * weights[known] / NOISE)


def counting(table: Table) -> tuple[FloatColumn, FloatColumn]:
    """Logs of the measured figures that count in a fit, and how much, ``(n_layouts, n_figures)`` each; NaN where one does not."""
    measured = np.stack([table.measured[name] for name in FIGURES], axis=1)
    rows = np.where(table.layouts.batch_size > 0, np.sqrt(STATIC), 1.0)
    first = np.array([name == "ttft_s" for name in FIGURES])
    # of an open loop the rest hangs on how close to capacity it runs; of pools all does
    uncounted = (table.layouts.request_rate > 0)[:, None] & ~first | table.layouts.pooled[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where((measured > 0) & ~uncounted, np.log(measured), np.nan)
    return logs, rows[:, None] * np.array(list(WEIGHTS.values()))


# Least values of parameters, 0 where none stands here. A layer of fused kernels under CUDA graphs took 6 us beside its products on an H200.
LOWEST = {"layer_latency": 6e-6, "prompts_together": 1.0}


def pull_of(rows: int) -> float:
    """How much one spread of a parameter away from what is typical weighs in a fit to so many rows."""
    return float(np.sqrt(HELD * rows / 10))


def thinned(tables: Sequence[Table], most: int = MOST) -> list[Table]:
    """Every so many tables, so that about ``most`` rows remain: a fit of a few numbers needs no more."""
    every = max(1, round(sum(len(table.rows) for table in tables) / most))
    return list(tables[::every])


def fit(tables: Sequence[Table], start: Mapping[str, float] | None = None, rounds: int = 6) -> ServingFit:
    """The latencies under which the rows are predicted best, held by what is typical.

    Args:
        start: values to begin with; None: what is typical.
        rounds: evaluations of the derivative at most.
    """
    tables = thinned(tables)
    parameters = exercised(tables)
    typical, spread, upper = (np.array([getattr(p, name) for p in parameters]) for name in ("typical", "spread", "upper"))
    lower = np.array([LOWEST.get(p.name, 0.0) for p in parameters])
    names = [p.name for p in parameters]
    pull = pull_of(sum(len(table.rows) for table in tables))

    def errors(share: FloatColumn) -> FloatColumn:
        values = dict(zip(names, (share * spread).tolist(), strict=True))
        return np.concatenate([*(residuals(table, values) for table in tables), (share - typical / spread) * pull])

    begin = typical if start is None else np.array([start.get(name, value) for name, value in zip(names, typical, strict=True)])
    first = np.clip(begin, lower + 1e-6 * upper, upper * (1 - 1e-6)) / spread
    bounds, step = (lower / spread, upper / spread), np.full(len(first), 0.03)
    solution = least_squares(
        errors, first, bounds=bounds, loss="soft_l1", f_scale=ROBUST, diff_step=step, max_nfev=rounds, xtol=1e-3, ftol=1e-4
    )
    values = {name: float(f"{value:.4g}") for name, value in zip(names, solution.x * spread, strict=True)}
    return ServingFit(values, error_of(tables, values))


def exercised(tables: Sequence[Table]) -> list[FreeParameter]:
    """Parameters that some row depends on, experts' latencies where there are any, less those that the profile has as known."""
    models = any(table.scenario.model.num_experts for table in tables)
    scheduler = tables[0].scenario.software.serving.scheduler
    static = any((table.layouts.batch_size > 0).any() for table in tables)
    groups = any(table.scenario.workload.length_spread == 0 and (table.layouts.concurrency > 0).any() for table in tables)
    without = {
        "expert_latency": not models,
        "expert_launch": not models,
        "script_latency": not static,
        "in_step": not groups or scheduler != "prefill_first",
        "prompts_together": not groups or scheduler == "prefill_first",
    }
    known = tables[0].scenario.software.known
    return [parameter for parameter in FREE_SERVING if not without.get(parameter.name, False) and parameter.name not in known]


def errors_of(tables: Sequence[Table], values: Mapping[str, float], name: str) -> FloatColumn:
    """predicted / measured − 1 of a column, of all rows that have it."""
    errors = []
    for table in tables:
        measured = table.measured[name]
        known = np.isfinite(measured) & (measured > 0)
        errors.append(getattr(predicted(table, values), name)[known] / measured[known] - 1)
    return np.concatenate(errors) if errors else np.zeros(0)


def error_of(tables: Sequence[Table], values: Mapping[str, float]) -> float:
    """Mean error of the times between tokens; of rates where no such time was measured."""
    for name in ("tpot_s", "tokens_per_s_per_gpu", "request_latency_s"):
        errors = errors_of(tables, values, name)
        if len(errors):
            return float(np.abs(errors).mean())
    return float("nan")


def typical_values(scenario: Scenario) -> dict[str, float]:
    """The profile's own values of what can be fitted."""
    return {p.name: float(value_of(scenario.software, p.name)) for p in FREE_SERVING}
