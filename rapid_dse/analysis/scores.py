"""How far predictions are from measured runs: error, ranking within groups of competing runs, fit, memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

LEAST_IN_GROUP = 8  # competing runs below which a rank correlation says nothing


@dataclass(frozen=True)
class Score:
    """A suite's figures; NaN where the suite has none of the kind.

    ``mape``, ``median``, ``p90``, ``worst`` of |predicted / measured − 1|; a measured run without a prediction counts as an error of 1.
    ``rho``: Spearman's correlation, mean over groups; ``regret``: measured time of the run predicted fastest among those that fit, over
    the fastest measured, less 1, mean over groups; ``fit_accuracy``: out of memory or not; ``memory``: mean error of peaks, on
    the stage whose peak the runs log; ``within``: share of the measured runs whose error is at most the one to expect of them, over those
    of which one is told, and ``told``: how many those are.
    """

    n: int
    missing: int
    mape: float
    median: float
    p90: float
    worst: float
    rho: float
    regret: float
    fit_accuracy: float
    memory: float
    within: float
    told: int


def score(
    cases: pd.DataFrame, seconds: pd.Series[float], fits: pd.Series[bool], peaks: pd.Series[float], expected: pd.Series[float]
) -> Score:
    """Scores predictions of ``cases``; all are indexed alike.

    Args:
        cases: ``group``, ``measured.status``, ``measured.step_time_s`` and ``measured.peak_memory_bytes``.
        seconds, fits, peaks: predicted step times (s), whether they fit, peak memory (bytes); NaN where there is none.
        expected: relative errors to expect of the step times; NaN where none is told.
    """
    truth = cases["measured.step_time_s"].astype(float)
    ran = cases["measured.status"].eq("ok") & truth.notna()
    errors = (seconds[ran] / truth[ran] - 1).abs().fillna(1.0)
    told = expected[ran].notna()
    ranks = [_ranking(truth[rows], seconds[rows], fits[rows]) for rows in _groups(cases, ran & seconds.notna())]
    judged = cases["measured.status"].isin(["ok", "oom"])
    oom = cases["measured.status"].eq("oom")
    peak = (
        cases["measured.peak_memory_bytes"].astype(float)[ran].dropna() if "measured.peak_memory_bytes" in cases else pd.Series(dtype=float)
    )
    return Score(
        n=int(ran.sum()),
        missing=int(seconds[ran].isna().sum()),
        mape=float(errors.mean()),
        median=float(errors.median()),
        p90=float(errors.quantile(0.9)),
        worst=float(errors.max()),
        rho=float(np.nanmean([rho for rho, _ in ranks])) if ranks else float("nan"),
        regret=float(np.mean([regret for _, regret in ranks])) if ranks else float("nan"),
        fit_accuracy=float((fits[judged] != oom[judged]).mean()) if oom.any() else float("nan"),
        memory=float((peaks[peak.index] / peak - 1).abs().mean()) if len(peak) else float("nan"),
        within=float((errors[told] <= expected[ran][told]).mean()) if told.any() else float("nan"),
        told=int(told.sum()),
    )


def _groups(cases: pd.DataFrame, usable: pd.Series[bool]) -> list[pd.Index[int]]:
    grouped = cases[usable].groupby("group") if "group" in cases else [("all", cases[usable])]
    return [rows.index for _, rows in grouped if len(rows) >= LEAST_IN_GROUP]


def _ranking(truth: pd.Series[float], seconds: pd.Series[float], fits: pd.Series[bool]) -> tuple[float, float]:
    correlation = spearmanr(seconds, truth).statistic if seconds.nunique() > 1 and truth.nunique() > 1 else float("nan")
    pool = seconds[fits.astype(bool)] if fits.any() else seconds
    chosen = float(truth.to_numpy()[truth.index.get_loc(pool.idxmin())])
    return float(correlation), chosen / float(truth.min()) - 1
