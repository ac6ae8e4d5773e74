"""``python -m rapid_dse.calibrate CASES --software NAME``: fits a software profile to a table of measured runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapid_dse.command import Parser, guarded

if TYPE_CHECKING:
    import pandas as pd

    from rapid_dse.analysis.calibration import Calibration

EPILOG = """\
CASES is a table (CSV or Parquet) whose columns are override keys, with measured.step_time_s (seconds) and, where it is known,
measured.status (ok, oom) and measured.peak_memory_bytes. At least 30 rows that ran; a blank cell is the default.
A table of requests has measured.tpot_s, ttft_s, request_latency_s or tokens_per_s_per_gpu instead, and 5 rows are enough to fit what
serving takes beside its kernels.
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
    parser.takes_json()
    return _calibrate(parser.parse_args(argv))


def _summary(calibration: Calibration, written: Mapping[str, Path]) -> dict[str, Any]:
    """What was fitted, as plain values."""
    fitted = calibration.fitted
    return {
        "parameters": {
            name: {"value": float(value), "standard_error": float(fitted.standard_errors[name])} for name, value in fitted.values.items()
        },
        "runs": calibration.rows,
        "models": calibration.models,
        "mean_error": float(fitted.error),
        "unseen_error": float(calibration.held_out_error),
        "alike": [list(pair) for pair in fitted.alike],
        "silent": list(fitted.silent),
        "written": {override: str(path) for override, path in written.items()},
    }


def _calibrate(arguments: argparse.Namespace) -> int:
    from rapid_dse.analysis.calibration import Options, taken_by, without_cluster, write_all
    from rapid_dse.analysis.calibration_table import calibrated_table, require_profile_name
    from rapid_dse.analysis.served_runs import is_served
    from rapid_dse.config.table_file import read_table

    name = arguments.out or f"{arguments.software}_calibrated"
    require_profile_name(name, f"--out {name}")
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: allowed: an integer of at least 1")
    table = read_table(arguments.cases)
    if is_served(table):
        return _calibrate_requests(table, arguments, name)
    names = arguments.parameters.split(",") if arguments.parameters else None
    options = Options(names, arguments.fit, arguments.chip, arguments.jobs)
    calibration = calibrated_table(table, arguments.software, arguments.cases, options)
    written = write_all(calibration, Path("conf"), name, arguments.cases)
    if arguments.json:
        print(json.dumps(_summary(calibration, written)))
        return 0
    for parameter, value in calibration.fitted.values.items():
        print(f"{parameter:28s} {value:12.5g} ± {calibration.fitted.standard_errors[parameter]:.1g}")
    for first, second in calibration.fitted.alike:
        print(f"warning: these runs cannot tell {first} and {second} apart; the pair is right, neither alone need be", file=sys.stderr)
    if calibration.fitted.silent:
        print(f"warning: these runs say little of {', '.join(calibration.fitted.silent)}, which stay at what is typical", file=sys.stderr)
    kind = "models" if calibration.models > 1 else "runs"
    mean, unseen = calibration.fitted.error, calibration.held_out_error
    print(f"{calibration.rows} runs: mean error {mean:.1%}; on {kind} that the fit had not seen {unseen:.1%}")
    files = ", ".join(map(str, written.values()))
    print(f"expect about ±{calibration.held_out_error:.0%} of a new layout; wrote {files}, use it with {taken_by(list(written))}")
    if arguments.fit == "both" and not names and not any(key.startswith("cluster=") for key in written):
        print(f"{without_cluster(calibration)}; the framework's parameters alone were fitted")
    return 0


def _calibrate_requests(table: pd.DataFrame, arguments: argparse.Namespace, name: str) -> int:
    from rapid_dse.analysis.serving_calibration import calibrate_requests, write_served

    calibration = calibrate_requests(table, arguments.software, arguments.cases)
    path = Path("conf") / "software" / f"{name}.yaml"
    write_served(calibration, arguments.software, arguments.cases, path)
    if arguments.json:
        fitted = {key: {"value": value} for key, value in calibration.values.items()}
        counts = {
            "runs": calibration.rows,
            "models": calibration.models,
            "mean_error": calibration.error,
            "unseen_error": calibration.held_out_error,
        }
        print(json.dumps({"parameters": fitted, **counts, "written": {f"software={name}": str(path)}}))
        return 0
    for key, value in calibration.values.items():
        print(f"{key:28s} {value:12.5g}")
    kind = "models" if calibration.models > 1 else "loads (of one model alone)"
    mean, unseen = calibration.error, calibration.held_out_error
    print(f"{calibration.rows} loads: mean error {mean:.1%}; on {kind} that the fit had not seen {unseen:.1%}")
    print(f"wrote {path}, use it with software={name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
