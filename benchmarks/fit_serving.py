"""Fits the shipped inference profiles again to tables of measured requests and writes conf/software, the loads behind each profile,
and how errors grow outside of them (rapid_dse/simulate/served_growth.py): run from the repository's root; takes ten minutes.

usage: python benchmarks/fit_serving.py [--boxes] ../shared/data/inference_cases.csv ../shared/data/energy_inference_cases.csv [PROFILE …]

``--boxes`` leaves the profiles' numbers as they are, and writes the errors to expect alone: what is due where predictions have moved.
Rows of multi-token prediction whose depth and acceptance are not told (spec=mtp) say nothing. Disaggregated systems are left to be
predicted: what they cost beyond the rest is queues and transfers, which no latency tells; of open loops the time to the first token is
fitted alone. Models are left out one after the other, to see how the others' fit does on them; at the end the share of loads within the
error to expect, of models, chips, and suites that neither the fit nor the boxes had.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from rapid_dse.analysis.envelope import WITHIN
from rapid_dse.analysis.error_growth import coverage, fitted_steps
from rapid_dse.analysis.measured_loads import loads_of
from rapid_dse.analysis.profile_file import with_fitted, without_measured
from rapid_dse.analysis.serving_envelope import (
    Loads,
    evidence_of,
    expected_of,
    quantile,
    served_boxes,
    served_lines,
    typical_errors,
    weights_of,
)
from rapid_dse.analysis.serving_fit import EARLY, FIGURES, fit, tables_of
from rapid_dse.analysis.serving_linear import left_out
from rapid_dse.config.measured_boxes import Sent
from rapid_dse.config.table_file import read_table
from rapid_dse.simulate.served_growth import SERVED_ERRORS, SERVED_STEPS
from rapid_dse.sweep.cases import group_cases

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """Measured loads of one profile: the table's ``cases`` of each; ``unseen``: errors of the engine's steps by fits without the load's
    model, and ``first`` those of the first token where requests hardly queue; ``values``: what was fitted, None where the profile is left
    as it is."""

    software: str
    loads: Loads
    cases: pd.DataFrame
    unseen: Floats
    first: Floats
    values: Mapping[str, float] | None


def main() -> None:
    arguments, boxes_alone = [name for name in sys.argv[1:] if name != "--boxes"], "--boxes" in sys.argv
    tables = [name for name in arguments if name.endswith((".csv", ".parquet"))]
    frame = without_blank(pd.concat([read_table(name) for name in tables], ignore_index=True))
    wanted = [name for name in arguments if name not in tables]
    profiles = [of_profile(software, frame, boxes_alone) for software in wanted or sorted(frame["software"].unique())]
    typical = SERVED_ERRORS if wanted else SERVED_ERRORS | typical_of(profiles)
    for profile in profiles:
        rewrite(profile, typical)
    if not wanted:
        evidence = [sample for profile in profiles for sample in evidence_of(profile.software, profile.loads, profile.unseen, typical)]
        steps = fitted_steps(evidence, SERVED_STEPS)
        for each in evidence:
            print(f"{each.name:60} {len(each.errors):5} loads, error {each.typical():6.1%}, within {coverage([each], steps):.0%}")
        print({name: float(f"{value:.3g}") for name, value in steps.items()}, f"within over all: {coverage(evidence, steps):.1%}")
        write_growth(typical, first_tokens(profiles), steps)
        for folds in ("model", "chip", "chip and model", "architecture", "suite"):
            print_coverage(folds, profiles, steps)


def of_profile(software: str, table: pd.DataFrame, as_it_is: bool) -> Profile:
    """Fits one profile, unless it is left ``as_it_is``, and predicts each of its loads by a fit without the load's model."""
    frame = without_blank(table[table["software"] == software].reset_index(drop=True))
    values = None if as_it_is else fit(tables_of(frame, group_cases(frame, {}))).values
    loads = loads_of(frame, software, values)
    unseen = left_out(loads.linear, loads.models)
    print(software, len(loads.models), "rows", dict(values or {}), flush=True)
    for name, logs in (("shipped", loads.linear.logs), ("models left out", unseen)):
        report(name, loads, logs)
    cases = frame.iloc[loads.linear.rows].reset_index(drop=True)
    token, whole = (FIGURES.index(name) for name in ("ttft_s", "request_latency_s"))
    late = loads.measured[:, token] >= np.log(EARLY) + loads.measured[:, whole]
    first = np.where(late | ~loads.counts, np.nan, np.expm1(unseen - loads.measured)[:, token])
    return Profile(software, loads, cases, np.where(loads.counts, loads.of_steps(unseen), np.nan), first, values)


def typical_of(profiles: Sequence[Profile], left: Mapping[str, NDArray[np.bool_]] | None = None) -> dict[Sent, float]:
    """``typical_errors`` of the loads of all profiles but those that are ``left`` out."""
    samples = []
    for profile in profiles:
        off = profile.unseen if left is None else np.where(left[profile.software], np.nan, profile.unseen)
        samples.append((profile.loads.settings, profile.loads.models, off))
    return {kind: float(f"{error:.3g}") for kind, error in typical_errors(samples).items()}


def first_tokens(profiles: Sequence[Profile]) -> dict[str, float]:
    """The error within which 68 % of first tokens lie, of engines and of pools, each profile's models counting alike."""
    errors = {}
    for name, pools in (("engines", False), ("pools", True)):
        known = [np.isfinite(profile.first) & (profile.loads.settings["pools"].to_numpy() == pools) for profile in profiles]
        off = [np.abs(profile.first[rows]) for profile, rows in zip(profiles, known, strict=True)]
        weights = [weights_of(np.array(profile.loads.models)[rows]) for profile, rows in zip(profiles, known, strict=True)]
        errors[name] = quantile(np.concatenate(off), np.concatenate(weights))
    return errors


def rewrite(profile: Profile, typical: Mapping[Sent, float]) -> None:
    """Puts the boxes, and the fitted values where there are any, among a profile's own settings."""
    loads, path = profile.loads, Path("conf/software") / f"{profile.software}.yaml"
    boxes = served_boxes(loads.settings, loads.models, profile.unseen, loads.counts, typical)
    if profile.values is None:
        path.write_text(without_measured(path.read_text()) + "\n".join(served_lines(boxes)) + "\n")
        return
    tokens = off(loads, left_out(loads.linear, loads.models))[:, 0]
    about = [f"# fitted to {len(loads.models)} measured rows of {len(set(loads.models))} models by benchmarks/fit_serving.py"]
    if len(set(loads.models)) > 1:
        about.append(f"# mean relative error of tpot on models that the fit had not seen: {np.nanmean(tokens):.3g}")
    path.write_text(with_fitted(path.read_text(), profile.values, [*about, *served_lines(boxes)]))


def print_coverage(folds: str, profiles: Sequence[Profile], steps: Mapping[str, float]) -> None:
    """Prints the share of loads within the error to expect, by suite: the loads of each fold by what the rest tells."""
    parts = list(unseen_parts(folds, profiles, steps))
    told = pd.concat(parts, ignore_index=True).dropna(subset=["error", "expected"])
    told["within"] = told["error"].abs() <= told["expected"]
    print(f"within, {folds} left out: {told['within'].mean():.1%} of {len(told)}")
    for suite, rows in told.groupby("suite"):
        error, expected = rows["error"].abs().quantile(WITHIN), rows["expected"].median()
        print(f"   {suite:24} {len(rows):5} loads, error {error:6.1%}, ± {expected:6.1%}, within {rows['within'].mean():.0%}")


def unseen_parts(folds: str, profiles: Sequence[Profile], steps: Mapping[str, float]) -> Iterator[pd.DataFrame]:
    """Of each fold's loads the suite, the error of a fit without them, and the error to expect by the other loads."""
    marks = {profile.software: marks_of(folds.split(" and "), profile) for profile in profiles}
    folds_of_loads = pd.concat(marks.values(), ignore_index=True).drop_duplicates()
    for _, fold in folds_of_loads.iterrows():
        alike = {software: mark.eq(fold) for software, mark in marks.items()}
        gone = {software: mark.any(axis=1).to_numpy() for software, mark in alike.items()}
        typical = SERVED_ERRORS | typical_of(profiles, gone)
        for profile in profiles:
            mine, left, loads = alike[profile.software].all(axis=1).to_numpy(), gone[profile.software], profile.loads
            if mine.any() and (loads.counts & ~left).any():
                boxes = served_boxes(loads.settings, loads.models, profile.unseen, loads.counts & ~left, typical)
                told = {"error": loads.errors(loads.linear.without(left)), "expected": expected_of(loads, boxes, steps)}
                yield pd.DataFrame({"suite": profile.cases["suite"].fillna("energy"), **told})[mine & loads.counts]


def marks_of(names: Sequence[str], profile: Profile) -> pd.DataFrame:
    """What a load belongs to, by each name: its model, suite, or one of its settings."""
    loads = profile.loads
    known = {"model": pd.Series(loads.models), "suite": profile.cases["suite"].fillna("energy")}
    return pd.DataFrame({name: known.get(name, loads.settings.get(name)) for name in names})


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


def lines_of(values: Mapping[Sent, float] | Mapping[str, float]) -> str:
    """Named numbers as lines of a module's dictionary."""
    return "\n".join(f'    "{name}": {value:.3g},' for name, value in sorted(values.items()))


def write_growth(typical: Mapping[Sent, float], first: Mapping[str, float], steps: Mapping[str, float]) -> None:
    """Puts the typical errors, the steps, and what some measured load had, into the module that the program reads."""
    path = Path("rapid_dse/simulate/served_growth.py")
    profiles = [yaml.safe_load(file.read_text()) for file in sorted(Path("conf/software").glob("*.yaml"))]
    boxes = [box for profile in profiles for box in profile.get("served") or ()]
    text = path.read_text()
    for table, values in (("SERVED_ERRORS", typical), ("SERVED_FIRST", first), ("SERVED_STEPS", steps)):
        text = re.sub(rf"({table}.*?= \{{\n).*?\n\}}", rf"\1{lines_of(values)}\n}}", text, flags=re.S)
    for name, setting in (("SERVED_ARCHITECTURES", "architecture"), ("SERVED_PRECISIONS", "precision")):
        quoted = ", ".join(f'"{value}"' for value in sorted({box[setting] for box in boxes if box.get(setting)}))
        text = re.sub(rf"({name}.*?= )\(.*?\)", rf"\1({quoted})", text)
    path.write_text(text)


if __name__ == "__main__":
    main()
