"""Sums up the measured runs behind each shipped profile, and learns how errors grow outside of them: run from the repository's root.

usage: python benchmarks/fit_envelopes.py ../shared/data/training_cases.csv [TABLE …]

The first table holds the runs that the profiles were fitted to (benchmarks/fit_profiles.py); further ones hold runs that no profile has
seen. Writes the ``measured`` of conf/software/*.yaml and rapid_dse/simulate/growth.py; takes half a minute.

usage: python benchmarks/fit_envelopes.py --experts ../shared/data/training_moe_cases.csv

The boxes of mixtures of experts alone: no profile was fitted to their runs, so that the shipped profile's errors are those of unseen ones.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rapid_dse.analysis.envelope import boxes, expected_unseen, measured_lines
from rapid_dse.analysis.error_growth import Evidence, coverage, fitted_steps, from_clusters, from_leaving_out, from_unseen
from rapid_dse.analysis.fit import Runs, folds_of
from rapid_dse.analysis.leaving_out import errors_unseen, linear
from rapid_dse.analysis.measured_runs import measured_runs
from rapid_dse.analysis.profile_file import without_measured
from rapid_dse.config.measured_boxes import MeasuredRuns
from rapid_dse.config.table_file import read_table
from rapid_dse.events.backends import price
from rapid_dse.simulate import growth
from rapid_dse.sweep.cases import group_cases
from rapid_dse.sweep.compose import composed, hydra_ready, scenario_of

HOST_BOUND = (
    "mcore_ci_gpt",
    "mcore_ci_7b",
    "mcore_ci_moe",
)  # small models that wait for the host at every kernel: not distance makes their error


def main() -> None:
    if sys.argv[1] == "--experts":
        of_experts(sys.argv[2])
        return
    evidence: list[Evidence] = []
    measured: dict[str, tuple[MeasuredRuns, ...]] = {}
    with hydra_ready():
        reference = scenario_of(composed({}).tree)[0].cluster
    for software, runs in sorted(by_software(sys.argv[1]).items()):
        found, folds = linear(runs), folds_of(runs)
        errors = errors_unseen(found, folds)
        of_groups = parts(errors, runs)
        measured[software] = boxes(runs, of_groups)
        rewrite(Path("conf/software") / f"{software}.yaml", (*measured[software], *of_kind(runs[0].scenario.software.measured, True)))
        evidence += from_leaving_out(software, runs, found, of_groups)
        evidence += from_clusters(software, runs, measured[software], reference)
    for table in sys.argv[2:]:
        for software, runs in sorted(by_software(table).items()):
            evidence += from_unseen(software, runs, measured.get(software, ()))
    steps = fitted_steps(evidence, growth.STEPS)
    for each in evidence:
        print(f"{each.name:60} {len(each.errors):5} runs, error {each.typical():6.1%}, within {coverage([each], steps):.0%}")
    write_growth(steps, measured)
    print({name: float(f"{value:.3g}") for name, value in steps.items()}, f"within over all: {coverage(evidence, steps):.1%}")


def of_experts(table: str) -> None:
    """Writes the boxes of the table's runs of experts beside those that each profile has of dense models, and prints what they cover."""
    for software, runs in sorted(by_software(table).items()):
        errors = [price(run.scenario, run.layouts).step_time_s / run.measured - 1 for run in runs]
        found = boxes(runs, errors)
        rewrite(Path("conf/software") / f"{software}.yaml", (*of_kind(runs[0].scenario.software.measured, False), *found))
        told = expected_unseen(runs, errors)
        inside = np.concatenate([np.abs(error) <= each for error, each in zip(errors, told, strict=True)])
        print(f"{software}: {len(inside)} runs in {len(found)} boxes; by those of other models {inside.mean():.0%} lie within")


def of_kind(measured: tuple[MeasuredRuns, ...], experts: bool) -> tuple[MeasuredRuns, ...]:
    """The boxes of mixtures of experts, or those of dense models."""
    return tuple(box for box in measured if box.experts == experts)


def by_software(table: str) -> dict[str, list[Runs]]:
    """The runs of a table by framework."""
    frame = read_table(table)
    if "assumed" in frame:
        frame = frame[~frame["assumed"].fillna(False).astype(bool)].reset_index(drop=True)
    if "suite" in frame:
        frame = frame[~frame["suite"].isin(HOST_BOUND)].reset_index(drop=True)
    groups = group_cases(frame, {})
    found = {str(software): measured_runs(frame, groups, str(software)) for software in frame["software"].dropna().unique()}
    return {software: runs for software, runs in found.items() if runs}


def parts(errors: NDArray[np.float64], runs: list[Runs]) -> list[NDArray[np.float64]]:
    """One array as one for each group of runs."""
    return np.split(errors, np.cumsum([len(run.layouts) for run in runs])[:-1])


def rewrite(path: Path, measured: tuple[MeasuredRuns, ...]) -> None:
    """Puts the boxes at the end of a profile, in the place of those that it had."""
    path.write_text(without_measured(path.read_text()) + "\n".join(measured_lines(measured)) + "\n")


def write_growth(steps: dict[str, float], measured: dict[str, tuple[MeasuredRuns, ...]]) -> None:
    """Puts the steps, and what some measured run had, into the module that the program reads."""
    path = Path("rapid_dse/simulate/growth.py")
    every = [box for boxes in measured.values() for box in boxes]
    architectures = sorted({str(box.architecture) for box in every if box.architecture})
    lines = [f'    "{name}": {value:.3g},' for name, value in sorted(steps.items())]
    text = re.sub(r"(STEPS.*?= \{\n).*?\n\}", lambda m: m.group(1) + "\n".join(lines) + "\n}", path.read_text(), flags=re.S)
    for name, values in (("ARCHITECTURES", architectures), ("PRECISIONS", sorted({box.precision for box in every}))):
        quoted = ", ".join(f'"{value}"' for value in values)
        text = re.sub(rf"({name}.*?= )\(.*?\)", rf"\1({quoted})", text)
    path.write_text(text)


if __name__ == "__main__":
    main()
