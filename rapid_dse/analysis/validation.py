"""Predicted against measured, suite by suite: the shipped profiles' figures, and those of fits that had not seen the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from rapid_dse.analysis.calibration import cluster_parameters, exercised, implied_mfu, memory_parameters, on_typical_clusters
from rapid_dse.analysis.envelope import expected_unseen
from rapid_dse.analysis.fit import FloatColumn, Runs, folds_of, held_out, logged_peak, typical_base
from rapid_dse.analysis.leaving_out import errors_unseen, linear
from rapid_dse.analysis.measured_runs import (
    PEAK,
    SECONDS,
    exhausted_runs,
    measured_runs,
    parameters_by_name,
    require_plausible,
    require_runs,
)
from rapid_dse.analysis.scores import Score, score
from rapid_dse.config.table_file import read_table
from rapid_dse.events.backends import price
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.trust import trust
from rapid_dse.sweep.cases import CaseGroup, group_cases
from rapid_dse.sweep.compose import composed, hydra_ready, scenario_of

LEAST_PEAKS = 30
LEAST_RUNS = 3
TERMS = ("compute", "tp", "cp", "ep", "pp", "dp", "bubble", "optimizer", "host")


@dataclass(frozen=True)
class Validated:
    """A table of cases with predictions beside it.

    Attributes:
        cases: the table; ``shipped`` and ``unseen``: step time (s), fits, peak (bytes) and the error to expect of the step time, by the
            shipped profiles, and by fits without the case's model, indexed like ``cases``; ``terms``: the shipped profiles' columns of
            ``Priced``.
    """

    cases: pd.DataFrame
    shipped: pd.DataFrame
    unseen: pd.DataFrame
    terms: pd.DataFrame

    def scores(self, which: pd.DataFrame) -> dict[str, Score]:
        """A score a suite, in the table's order."""
        suites = {str(name): rows for name, rows in self.cases.groupby("suite", sort=False)}
        ran = {name: rows for name, rows in suites.items() if rows["measured.status"].eq("ok").any()}
        return {
            name: score(rows, *(which.loc[rows.index, column] for column in ("seconds", "fits", "peak", "expected")))
            for name, rows in ran.items()
        }

    def worst(self, suite: str, count: int = 20) -> pd.DataFrame:
        """The suite's runs with the largest error of the shipped profile: layout, both times, and each term's seconds."""
        rows = self.cases.index[self.cases["suite"].eq(suite) & self.cases["measured.status"].eq("ok")]
        ratio = self.shipped.loc[rows, "seconds"] / self.cases.loc[rows, SECONDS].astype(float)
        chosen = np.abs(np.log(ratio)).sort_values(ascending=False).index[:count]
        named = [str(column) for column in self.cases if str(column).startswith(("case_id", "hw.num_gpus", "parallel."))]
        table: pd.DataFrame = self.cases.loc[chosen, [*named, SECONDS]].copy()
        table["predicted_s"], table["error"] = self.shipped.loc[chosen, "seconds"], ratio[chosen] - 1
        exposed = self.terms.loc[chosen, [f"time_{term}_s" for term in TERMS]].set_axis([f"{term}_s" for term in TERMS], axis=1)
        both: pd.DataFrame = pd.concat([table, exposed], axis=1)
        return both


def validate_cases(path: str | Path, jobs: int, folds: bool = True) -> Validated:
    """Prices every training case by its shipped profile, and, with ``folds``, by a fit that has not seen its model.

    Raises:
        ValueError: a table that cannot be read, lacks ``suite``, ``software`` or ``measured.step_time_s``, has fewer than three rows that
            ran, one that ran without a time, or times in another unit.
    """
    frame = read_table(path)
    for column in ("suite", "software", SECONDS):
        if column not in frame:
            raise ValueError(f"{path}: has no column {column}; needed to validate")
    if "measured.status" not in frame:
        frame["measured.status"] = "ok"
    require_runs(frame, str(path), LEAST_RUNS)
    groups = group_cases(frame)
    for software in frame["software"].unique():
        runs = measured_runs(frame, groups, str(software))
        if runs:
            require_plausible([implied_mfu(run) for run in runs], str(path))
    terms = _shipped(frame, groups)
    shipped = pd.DataFrame(
        {
            "seconds": terms["step_time_s"],
            "fits": terms["fits"].eq(1.0) | terms["fits"].isna(),
            "peak": terms["logged_peak_bytes"],
            "expected": terms["expected_error"],
        }
    )
    unseen = shipped.copy()
    if folds:
        for software in map(str, frame["software"].unique()):
            _put_unseen(unseen, frame, groups, software, jobs)
    return Validated(frame, shipped, unseen, terms)


def _shipped(frame: pd.DataFrame, groups: Sequence[CaseGroup]) -> pd.DataFrame:
    columns = [f.name for f in fields(Priced)]
    table = pd.DataFrame(np.nan, index=frame.index, columns=[*columns, "logged_peak_bytes", "expected_error"])
    for group in groups:
        legal = group.portion.rule < 0
        if legal.any() and group.portion.scenario.workload.kind == "training":
            scenario, layouts = group.portion.scenario, group.portion.layouts.take(legal)
            priced = price(scenario, layouts)
            rows = frame.index[group.rows[legal]]
            table.loc[rows, columns] = np.stack([getattr(priced, name).astype(float) for name in columns], axis=1)
            table.loc[rows, "logged_peak_bytes"] = logged_peak(scenario, layouts)
            table.loc[rows, "expected_error"] = trust(scenario, layouts).expected_error
    return table


def _put_unseen(unseen: pd.DataFrame, frame: pd.DataFrame, groups: list[CaseGroup], software: str, jobs: int) -> None:
    """Replaces step times, and peaks where enough were measured, by those of fits without each case's model; the fits are of the
    framework's parameters and of its clusters'."""
    runs = measured_runs(frame, groups, software)
    if not runs:
        return
    if any(run.scenario.model.num_experts for run in runs):
        _put(unseen, frame, runs, _by_derivatives(runs, software))
        return
    base = typical_base(runs[0].scenario.software)
    typical = on_typical_clusters(runs, unknown=False)
    parameters = [*parameters_by_name(exercised(runs)), *cluster_parameters(runs, unknown=False)]
    predicted = held_out(typical, base, parameters, jobs)
    _put(unseen, frame, runs, predicted)
    peaks = measured_runs(frame, groups, software, PEAK) if PEAK in frame else []
    if sum(len(run.rows) for run in peaks) >= LEAST_PEAKS:
        known = [*peaks, *exhausted_runs(frame, groups, software)]
        for run, values in zip(known, held_out(known, base, memory_parameters(peaks), jobs), strict=True):
            if not run.at_least:
                unseen.loc[frame.index[run.rows], "peak"] = values


def _put(unseen: pd.DataFrame, frame: pd.DataFrame, runs: Sequence[Runs], predicted: Sequence[FloatColumn]) -> None:
    """Step times of runs by fits that had not seen their models, and the error to expect of each by the runs of other models."""
    expected = expected_unseen(runs, [seconds / run.measured - 1 for run, seconds in zip(runs, predicted, strict=True)])
    for run, seconds, error in zip(runs, predicted, expected, strict=True):
        unseen.loc[frame.index[run.rows], "seconds"] = seconds
        unseen.loc[frame.index[run.rows], "expected"] = error


def _by_derivatives(runs: Sequence[Runs], software: str) -> list[FloatColumn]:
    """Step times of each run by a fit without its model, s, like ``runs``: by the derivatives around the shipped profile, which was fitted
    to dense models alone. Hardly two runs of experts share a scenario, so that full fits take an hour."""
    with hydra_ready():
        profile = scenario_of(composed({"software": software}).tree)[0].software
    errors = errors_unseen(linear(runs, profile), folds_of(runs))
    parts = np.split(errors, np.cumsum([len(run.layouts) for run in runs])[:-1])
    return [run.measured * (1.0 + error) for run, error in zip(runs, parts, strict=True)]


def parity_picture(validated: Validated, path: Path) -> None:
    """Draws predicted against measured step times, a colour a suite, and the error by suite; needs matplotlib (extra: plots)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (parity, errors) = pyplot.subplots(1, 2, figsize=(13, 6))
    ran = validated.cases["measured.status"].eq("ok")
    boxes = {}
    for suite, rows in validated.cases[ran].groupby("suite", sort=False):
        truth, predicted = rows[SECONDS].astype(float), validated.unseen.loc[rows.index, "seconds"]
        parity.loglog(truth, predicted, ".", markersize=4, label=f"{suite} ({len(rows)})")
        boxes[str(suite)] = (100 * (predicted / truth - 1)).dropna()
    low, high = parity.get_xlim()
    parity.plot([low, high], [low, high], color="black", linewidth=0.8)
    parity.set(xlabel="measured step time, s", ylabel="predicted, by a fit that had not seen the model, s", title="parity")
    parity.legend()
    errors.boxplot(list(boxes.values()), tick_labels=list(boxes), showfliers=False)
    errors.axhline(0, color="black", linewidth=0.8)
    errors.set(ylabel="predicted / measured − 1, %", title="error by suite (box: quartiles)")
    errors.tick_params(axis="x", rotation=30)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
