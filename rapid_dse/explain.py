"""``python -m rapid_dse.explain RESULTS --key A [--key B]``: why a layout stands where it does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rapid_dse.command import Parser, guarded

if TYPE_CHECKING:
    import pyarrow as pa

    from rapid_dse.analysis.reasons.chosen import PricedTrial

EPILOG = """\
Prints the terms of A, its difference to B term by term, what would turn their order round (each value solved by pricing both again),
A's one-change neighbours, the roofline of its operators, and which layout would win where chip, network or price were half or twice
what they are. Closed forms price it all.
"""


def main() -> int:
    """Entry point; the exit code."""
    return guarded(run, sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Prints the explanation.

    Raises:
        ValueError: where the results, a key or the column is none.
    """
    options = _options(arguments)
    from rapid_dse.analysis.reasons import explanation, sensitivity, told
    from rapid_dse.sweep import ranking, result_columns, store
    from rapid_dse.sweep.console import console

    err = console(stderr=True)
    table = store.read(options.results, lambda line: err.print(line, highlight=False, markup=False, soft_wrap=True))
    table = result_columns.require_results(table, options.results)
    if "key" not in table.column_names:
        raise ValueError(f"{options.results}: has no column key; allowed: what a sweep or evaluate wrote")
    ranking.require_name(options.by, ranking.numbers(table.schema), "--by")
    first, second = _chosen(table, options)
    shifts = None if options.no_sensitivity else sensitivity.sensitivity(table, options.by)
    reasons = explanation.explained(first, second, options.by, shifts)
    if options.json:
        print(json.dumps(explanation.to_dict(reasons), indent=1))
    else:
        told.tell(console(highlight=False), reasons, options.points)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m rapid_dse.explain", description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "results", type=Path, metavar="RESULTS", help="a results file (Parquet, CSV), results/<study>, or a folder of studies"
    )
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        help="the row, by its key or the key's start (default: the best); twice: the second against it",
    )
    parser.add_argument("--by", default="step_time_s", help="column that orders the rows (default step_time_s)")
    parser.add_argument(
        "--constraint", action="append", default=[], metavar="TEXT", help="what the best must keep, as 'tpot_s<=0.03'; several times"
    )
    parser.add_argument("--points", type=int, default=8, help="turning points to list (default 8)")
    parser.add_argument("--no-sensitivity", action="store_true", help="leave out the table of other machines")
    parser.add_argument("--json", action="store_true", help="print JSON (docs/json.md)")
    options = parser.parse_args(arguments)
    if len(options.key) > 2:
        raise ValueError(f"--key is given {len(options.key)} times; allowed: once or twice")
    if options.points < 1:
        raise ValueError(f"--points={options.points}: allowed: an integer of at least 1")
    return options


def _chosen(table: pa.Table, options: argparse.Namespace) -> tuple[PricedTrial, PricedTrial | None]:
    """The row that is asked about, and the other: the one that was named, or the best, or against the best
    itself the next of another structure."""
    from rapid_dse.analysis.reasons.chosen import best_rows, kept, restored, rival_of, row_of

    keeping = kept(table, options.constraint)
    rows = [row_of(table, key) for key in options.key] or best_rows(keeping, options.by, 1)
    if len(rows) == 1:
        rival = rival_of(keeping, rows[0], options.by)
        rows += [] if rival is None else [rival]
    if len(rows) == 2 and rows[0]["key"] == rows[1]["key"]:
        raise ValueError(f"--key={options.key[1]}: is the same row as --key={options.key[0]}; allowed: two different rows")
    trials = [restored(row) for row in rows]
    return trials[0], trials[1] if len(trials) > 1 else None


if __name__ == "__main__":
    sys.exit(main())
