"""How far fits are off on a chip that they have not seen (docs/validation.md): each framework with runs on several chips, chip by chip.

usage: python benchmarks/unseen_chip.py ../shared/data/training_cases.csv
"""

from __future__ import annotations

import sys

import numpy as np

from rapid_dse.analysis.fit import fit, predict, typical_base
from rapid_dse.analysis.runs import measured_runs
from rapid_dse.config.software import FREE
from rapid_dse.config.table_file import read_table
from rapid_dse.sweep.cases import group_cases


def main() -> None:
    frame, errors = read_table(sys.argv[1]), []
    for software in sorted(frame["software"].unique()):
        part = frame[frame["software"] == software].reset_index(drop=True)
        groups = group_cases(part)
        base, runs = typical_base(groups[0].portion.scenario.software), measured_runs(part, groups, software)
        chips = sorted({run.scenario.hw.name for run in runs})
        for chip in chips if len(chips) > 1 else ():
            known = [run for run in runs if run.scenario.hw.name != chip]
            unseen = [run for run in runs if run.scenario.hw.name == chip]
            error = predict(unseen, base, fit(known, base, FREE).values) / np.concatenate([run.measured for run in unseen]) - 1
            errors.append(np.abs(error).mean())
            print(f"{software} on {chip}: {len(error)} runs, mean error {np.abs(error).mean():.1%}, bias {error.mean():+.1%}")
    print(f"mean of the {len(errors)}: {np.mean(errors):.1%}")


if __name__ == "__main__":
    main()
