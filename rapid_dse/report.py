"""``python -m rapid_dse.report RESULTS --out report.html``: a study as one page, with pictures, to read in a browser or to print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rapid_dse.command import Parser, guarded

EPILOG = """\
The page needs no other file and no network: the best layout with its launch file, its time and memory by term beside the best inside what
was measured and the simplest within its error, all rows by time and memory, tp and pp, chips, its pipeline, ties, what was rejected and
why. Its own script, which pictures and tables do not need, adds arrow keys and any two columns of all rows.
"""


def main() -> int:
    """Entry point; the exit code."""
    return guarded(run, sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Writes the page.

    Raises:
        ValueError: where the results or the column is none.
    """
    options = _options(arguments)
    from rapid_dse.analysis.report.study_file import write_report

    size = write_report(options.results, options.out, options.by, not options.no_sensitivity, lambda line: print(line, file=sys.stderr))
    if options.json:
        print(json.dumps({"out": str(options.out), "bytes": size}))
        return 0
    print(f"report of {options.results} to {options.out} ({size / 1e6:.2f} MB)")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m rapid_dse.report", description=__doc__, epilog=EPILOG)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="a results file, results/<study>, or a folder of studies")
    parser.add_argument("--out", type=Path, metavar="FILE", default=Path("report.html"), help="where to write it (default report.html)")
    parser.add_argument(
        "--by", default="step_time_s", help="column that ranks (default step_time_s); a leading '-', as --by=-mfu, puts the largest first"
    )
    parser.add_argument("--no-sensitivity", action="store_true", help="leave out the table of other machines, which prices all rows again")
    parser.takes_json()
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
