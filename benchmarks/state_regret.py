"""What regret any ranking can come to that does not know which of nanotron's jobs run under strain (docs/validation.md).

Each job's time in the state that it ran in is measured; in the other state it is that times what the shipped profile has the
states apart. States are drawn job by job at the observed rates: 8 to 32 nodes, 64 and more, pipelines. Three choices a group of
competing runs are compared with the fastest run of the draw: the profile's own, told the states; the best that knows every
time in both states and the rates, but not the draw; and the profile's least expected time.

usage: python benchmarks/state_regret.py ../shared/data/training_cases.csv
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rapid_dse.analysis.runs import SECONDS, STATUS, known_states
from rapid_dse.analysis.scores import LEAST_IN_GROUP
from rapid_dse.config.table_file import read_table
from rapid_dse.simulate import price
from rapid_dse.simulate.strain import nodes_of
from rapid_dse.sweep.cases import group_cases

DRAWS = 20_000
FLOOR = 0.08
MANY_NODES = 64


def in_state(frame: pd.DataFrame, strained: bool) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Predicted step times of all rows in one state, s, and whether they fit; NaN for illegal rows."""
    table = frame.assign(**{"software.strained": strained})
    seconds, fits = np.full(len(frame), np.nan), np.zeros(len(frame), bool)
    for group in group_cases(table):
        legal = group.portion.rule < 0
        if legal.any():
            found = price(group.portion.scenario, group.portion.layouts.take(legal))
            seconds[group.rows[legal]], fits[group.rows[legal]] = found.step_time_s, found.fits
    return seconds, fits


def with_states(frame: pd.DataFrame) -> pd.DataFrame:
    """The jobs that ran, with predicted and with measured-or-scaled times in both states, and how probable strain is."""
    told, groups = known_states(frame, group_cases(frame))
    jobs = frame.assign(fits=in_state(frame, False)[1], healthy=in_state(frame, False)[0], under=in_state(frame, True)[0])
    nodes = np.empty(len(frame))
    for group in groups:
        nodes[group.rows] = nodes_of(group.portion.scenario.hw, group.portion.layouts)
    piped, many = frame["parallel.pp"] > 1, nodes >= MANY_NODES
    known = told["software.strained"]
    state = np.where(known.isna(), piped & (nodes > 1), known.eq(True))
    ran = frame[STATUS].eq("ok") & jobs["healthy"].notna()
    jobs["probability"] = 0.0
    for several in (piped & (nodes > 1), ~piped & many, ~piped & (nodes > 1) & ~many):
        rate = known[several & ran & known.notna()].eq(True).mean()
        print(f"{(several & ran).sum()} jobs, {rate:.2f} of those whose all-reduce tells ran under strain")
        jobs.loc[several, "probability"] = rate
    measured = frame[SECONDS].astype(float)
    jobs["true_healthy"] = np.where(state, measured * jobs["healthy"] / jobs["under"], measured)
    jobs["true_under"] = np.where(state, measured, measured * jobs["under"] / jobs["healthy"])
    return jobs[ran]


def regrets(group: pd.DataFrame, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Regret of each choice in each draw, ``(DRAWS,)``."""
    columns = {name: group[name].to_numpy(float) for name in ("probability", "healthy", "under", "true_healthy", "true_under")}
    strained = rng.random((DRAWS, len(group))) < columns["probability"]
    real = np.where(strained, columns["true_under"], columns["true_healthy"])
    each = real / real.min(axis=1, keepdims=True) - 1
    barred = np.where(group["fits"] | ~group["fits"].any(), 0.0, np.inf)
    expected = columns["probability"] * columns["under"] + (1 - columns["probability"]) * columns["healthy"]
    told = (np.where(strained, columns["under"], columns["healthy"]) + barred).argmin(axis=1)
    return {
        "the profile, told the states": each[np.arange(DRAWS), told],
        "the best that does not know them": each[:, each.mean(axis=0).argmin()],
        "the profile's least expected time": each[:, (expected + barred).argmin()],
    }


def main() -> None:
    frame = read_table(sys.argv[1])
    frame = frame[frame["software"] == "nanotron"].reset_index(drop=True)
    rng, every = np.random.default_rng(0), []
    for _, group in with_states(frame).groupby("group"):
        if len(group) >= LEAST_IN_GROUP:
            every.append(regrets(group, rng))
    for name in every[0]:
        mean = np.mean([found[name] for found in every], axis=0)
        low, high = np.quantile(mean, [0.05, 0.95])
        share = (mean <= FLOOR).mean()
        print(f"{name}: regret {mean.mean():.1%} (5 to 95 %: {low:.1%} to {high:.1%}), {share:.0%} of draws at {FLOOR:.0%} or less")


if __name__ == "__main__":
    main()
