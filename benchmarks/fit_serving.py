"""Fits the shipped inference profiles again to tables of measured requests and writes conf/software, the loads behind each profile,
and how errors grow outside of them (rapid_dse/simulate/served_growth.py): run from the repository's root; takes two minutes.

usage: python benchmarks/fit_serving.py ../shared/data/inference_cases.csv ../shared/data/energy_inference_cases.csv [PROFILE …]

Rows of multi-token prediction whose depth and acceptance are not told (spec=mtp) say nothing. Disaggregated systems are left to be
predicted: what they cost beyond the rest is queues and transfers, which no latency tells; of open loops the time to the first token is
fitted alone. Models are left out one after the other, to see how the others' fit does on them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from rapid_dse.analysis.error_growth import Evidence, coverage, fitted_steps
from rapid_dse.analysis.measured_loads import loads_of
from rapid_dse.analysis.profile_file import with_fitted
from rapid_dse.analysis.serving_envelope import Loads, evidence_of, served_boxes, served_lines
from rapid_dse.analysis.serving_fit import FIGURES, fit, tables_of
from rapid_dse.analysis.serving_linear import left_out
from rapid_dse.config.table_file import read_table
from rapid_dse.simulate.served_growth import SERVED_STEPS
from rapid_dse.sweep.cases import group_cases


def main() -> None:
    tables = [name for name in sys.argv[1:] if name.endswith((".csv", ".parquet"))]
    frame = without_blank(pd.concat([read_table(name) for name in tables], ignore_index=True))
    wanted = [name for name in sys.argv[1:] if name not in tables]
    evidence: list[Evidence] = []
    for software in wanted or sorted(frame["software"].unique()):
        evidence += rewrite(software, without_blank(frame[frame["software"] == software].reset_index(drop=True)))
    if not wanted:
        steps = fitted_steps(evidence, SERVED_STEPS)
        for each in evidence:
            print(f"{each.name:60} {len(each.errors):5} loads, error {each.typical():6.1%}, within {coverage([each], steps):.0%}")
        print({name: float(f"{value:.3g}") for name, value in steps.items()}, f"within over all: {coverage(evidence, steps):.1%}")
        write_growth(steps)


def rewrite(software: str, frame: pd.DataFrame) -> list[Evidence]:
    """Fits one profile, and puts the fitted values among its own settings and the boxes behind them."""
    values = fit(tables_of(frame, group_cases(frame, {}))).values
    loads = loads_of(frame, software, values)
    unseen = left_out(loads.linear, loads.models)
    print(software, len(loads.models), "rows", dict(values), flush=True)
    for name, logs in (("shipped", loads.linear.logs), ("models left out", unseen)):
        report(name, loads, logs)
    boxes = served_boxes(loads.settings, loads.models, loads.errors(unseen), loads.counts)
    tokens = off(loads, unseen)[:, 0]
    about = [f"# fitted to {len(loads.models)} measured rows of {len(set(loads.models))} models by benchmarks/fit_serving.py"]
    if len(set(loads.models)) > 1:
        about.append(f"# mean relative error of tpot on models that the fit had not seen: {np.nanmean(tokens):.3g}")
    path = Path("conf/software") / f"{software}.yaml"
    path.write_text(with_fitted(path.read_text(), values, [*about, *served_lines(boxes)]))
    return evidence_of(software, loads)


def without_blank(frame: pd.DataFrame) -> pd.DataFrame:
    """The table without columns of the model that no row fills in."""
    return frame.drop(columns=[name for name in frame.columns if str(name).startswith("model.") and frame[name].isna().all()])


def off(loads: Loads, logs: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """|predicted / measured − 1| of the rows that count."""
    return np.abs(np.expm1(logs - loads.measured))[loads.counts]


def report(name: str, loads: Loads, logs: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    """Prints the errors of each figure."""
    for figure, column in zip(FIGURES, off(loads, logs).T, strict=True):
        known = column[np.isfinite(column)]
        if len(known):
            print(f"   {name}, {figure}: mean {known.mean():.3f}, median {np.median(known):.3f} of {len(known)}", flush=True)


def write_growth(steps: Mapping[str, float]) -> None:
    """Puts the steps, and what some measured load had, into the module that the program reads."""
    path = Path("rapid_dse/simulate/served_growth.py")
    profiles = [yaml.safe_load(file.read_text()) for file in sorted(Path("conf/software").glob("*.yaml"))]
    boxes = [box for profile in profiles for box in profile.get("served") or ()]
    lines = [f'    "{name}": {value:.3g},' for name, value in sorted(steps.items())]
    text = re.sub(r"(SERVED_STEPS.*?= \{\n).*?\n\}", lambda m: m.group(1) + "\n".join(lines) + "\n}", path.read_text(), flags=re.S)
    for name, setting in (("SERVED_ARCHITECTURES", "architecture"), ("SERVED_PRECISIONS", "precision")):
        quoted = ", ".join(f'"{value}"' for value in sorted({box[setting] for box in boxes if box.get(setting)}))
        text = re.sub(rf"({name}.*?= )\(.*?\)", rf"\1({quoted})", text)
    path.write_text(text)


if __name__ == "__main__":
    main()
