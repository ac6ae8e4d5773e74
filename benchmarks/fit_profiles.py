"""Fits every shipped profile again to a table of measured runs and writes conf/software: run from the repository's root.

usage: python benchmarks/fit_profiles.py ../shared/data/training_cases.csv [PROFILE …]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rapid_dse.analysis.calibration import Calibration, Options, calibrate
from rapid_dse.analysis.envelope import measured_lines
from rapid_dse.analysis.fit import typical_base
from rapid_dse.analysis.profile_file import with_fitted
from rapid_dse.config.measured_boxes import MeasuredRuns
from rapid_dse.config.table_file import read_table
from rapid_dse.sweep.cases import group_cases

SMALL = 5  # some frameworks published only a few runs; what is typical holds the rest


def main() -> None:
    table, wanted = sys.argv[1], sys.argv[2:]
    frame = read_table(table)
    for software in wanted or sorted(frame["software"].unique()):
        part = frame[frame["software"] == software].reset_index(drop=True)
        groups = group_cases(part)
        base = typical_base(groups[0].portion.scenario.software)
        pinned = {key.removeprefix("software.") for group in groups for key in group.pinned}
        found = calibrate(part, groups, software, base, table, Options(jobs=2, least=SMALL, unknown_clusters=False))
        values = found.fitted.values | (found.memory.values if found.memory else {})
        print(
            software,
            f"error {found.fitted.error:.3f}, held out {found.held_out_error:.3f}",
            {k: float(f"{v:.3g}") for k, v in values.items()},
        )
        print("   alike", found.fitted.alike, "silent", found.fitted.silent, "pinned by the runs", sorted(pinned))
        of_framework = {name: value for name, value in values.items() if not name.startswith("cluster.")}
        experts = tuple(box for box in groups[0].portion.scenario.software.measured if box.experts)
        rewrite(Path("conf/software") / f"{software}.yaml", of_framework, found, experts)
        for cluster in found.clusters:
            mine = f"cluster.{cluster}."
            fabric = {name.removeprefix(mine): value for name, value in values.items() if name.startswith(mine)}
            if fabric:
                rewrite_cluster(Path("conf/cluster") / f"{cluster}.yaml", fabric, found)


def rewrite_cluster(path: Path, values: dict[str, float], found: Calibration) -> None:
    """Keeps what a cluster is and puts the fitted values below it."""
    lines = path.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("# fitted") and re.split(r"[:#]", line)[0].strip() not in values]
    fitted = [f"# fitted to {found.rows} measured runs with software={found.software} by benchmarks/fit_profiles.py"]
    path.write_text("\n".join(kept + fitted + [f"{name}: {value:.4g}" for name, value in values.items()]) + "\n")


def rewrite(path: Path, values: dict[str, float], found: Calibration, experts: tuple[MeasuredRuns, ...]) -> None:
    """Keeps the profile's own settings and their reasons, and puts the fitted values among them; ``experts``: its boxes of mixtures of
    experts, to which nothing is fitted here."""
    about = [f"# fitted to {found.rows} measured runs of {found.models} models by benchmarks/fit_profiles.py"]
    about += [f"# mean relative error on models that the fit had not seen: {found.held_out_error:.3g}"]
    path.write_text(with_fitted(path.read_text(), values, [*about, *measured_lines((*found.measured, *experts))]))


if __name__ == "__main__":
    main()
