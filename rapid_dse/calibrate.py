"""``python -m rapid_dse.calibrate CASES --software NAME``: fits a software profile to a table of measured runs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rapid_dse.command import Parser, guarded

EPILOG = """\
CASES is a table (CSV or Parquet) whose columns are override keys, with measured.step_time_s (seconds) and, where it is known,
measured.status (ok, oom) and measured.peak_memory_bytes. At least 30 rows that ran; a blank cell is the default.
What the framework does is written to conf/software/OUT.yaml below the current folder and composes as software=OUT; what the jobs met on
their cluster to conf/cluster/OUT.yaml (OUT_CLUSTER.yaml where a column cluster names several), which composes as cluster=OUT."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 with one line for a mistake in the input."""
    return guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = Parser(prog="python -m rapid_dse.calibrate", description=__doc__, epilog=EPILOG)
    parser.add_argument("cases", help="table of measured runs")
    parser.add_argument("--software", required=True, help="profile whose runs these are; its settings that are not fitted are kept")
    parser.add_argument("--out", help="name of the profile to write (default: SOFTWARE_calibrated)")
    parser.add_argument(
        "--fit",
        choices=("software", "cluster", "both"),
        default="both",
        help="what to fit: the framework on the clusters that the runs name, the clusters with the framework as it is, or both (default)",
    )
    parser.add_argument("--parameters", help="comma-separated parameters to fit (default: all that the runs exercise)")
    parser.add_argument("--chip", action="store_true", help="fit the chip's efficiencies too")
    parser.add_argument("--jobs", type=int, default=2, help="processes for the folds that test the fit")
    return _calibrate(parser.parse_args(argv))


def _calibrate(arguments: argparse.Namespace) -> int:
    from rapid_dse.analysis.calibration import Options, calibrate, write_all
    from rapid_dse.analysis.fit import typical_base
    from rapid_dse.analysis.measured_runs import require_runs
    from rapid_dse.config.table_file import read_table
    from rapid_dse.sweep.cases import group_cases

    name = arguments.out or f"{arguments.software}_calibrated"
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is None:
        raise ValueError(f"--out {name}: allowed: the name of a profile, letters, digits, _, - and . alone")
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: allowed: an integer of at least 1")
    frame = read_table(arguments.cases)
    require_runs(frame, arguments.cases)
    if "software" not in frame:
        frame["software"] = arguments.software
    frame = frame[frame["software"].fillna(arguments.software) == arguments.software].reset_index(drop=True)
    if frame.empty:
        raise ValueError(f"{arguments.cases}: no row has software={arguments.software}")
    require_runs(frame, arguments.cases)
    groups = group_cases(frame)
    shipped = groups[0].portion.scenario.software
    base = shipped if arguments.fit == "cluster" else typical_base(shipped)
    names = arguments.parameters.split(",") if arguments.parameters else None
    options = Options(names, arguments.fit, arguments.chip, arguments.jobs)
    found = calibrate(frame, groups, arguments.software, base, arguments.cases, options)
    written = write_all(found, Path("conf"), name, arguments.cases)
    for parameter, value in found.fitted.values.items():
        print(f"{parameter:28s} {value:12.5g} ± {found.fitted.standard_errors[parameter]:.1g}")
    for first, second in found.fitted.alike:
        print(f"warning: these runs cannot tell {first} and {second} apart; the pair is right, neither alone need be", file=sys.stderr)
    if found.fitted.silent:
        print(f"warning: these runs say little of {', '.join(found.fitted.silent)}, which stay at what is typical", file=sys.stderr)
    kind = "models" if found.models > 1 else "runs"
    print(f"{found.rows} runs: mean error {found.fitted.error:.1%}; on {kind} that the fit had not seen {found.held_out_error:.1%}")
    files = ", ".join(map(str, written.values()))
    print(f"expect about ±{found.held_out_error:.0%} of a new layout; wrote {files}, use it with {' '.join(written)}")
    if arguments.fit == "both" and not any(key.startswith("cluster=") for key in written):
        print("these runs say nothing of their cluster, since none of them spans two nodes; the framework's parameters alone were fitted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
