"""``python -m rapid_dse.rank RESULTS --top 20 --by step_time_s``: the best layouts that fit, and why others are not among them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rapid_dse.sweep import driver, ranking, show, store


def main(argv: Sequence[str] | None = None, expected_error: show.ExpectedError | None = None) -> int:
    """Prints the ranking; the exit code is 2 where the file, the folder or the column is none."""
    parser = argparse.ArgumentParser(prog="python -m rapid_dse.rank", description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="a results file (Parquet), results/<study>, or a folder of studies")
    parser.add_argument("--top", type=int, default=20, help="rows to show (default 20)")
    parser.add_argument("--by", default="step_time_s", help="column to rank by (default step_time_s); a leading '-' turns it around")
    options = parser.parse_args(_with_negatives(list(sys.argv[1:] if argv is None else argv)))
    try:
        if options.top < 1:
            raise ValueError(f"--top={options.top}: allowed: an integer of at least 1")
        _show(options.results, options.by, options.top, expected_error)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return driver.INTERRUPTED
    return 0


def _with_negatives(arguments: list[str]) -> list[str]:
    # argparse takes '-mfu' for an option of its own unless it is joined to --by.
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--by":
            joined[-1] = f"--by={argument}"
        else:
            joined.append(argument)
    return joined


def _show(source: Path, by: str, top: int, expected_error: show.ExpectedError | None) -> None:
    out, err = driver.console(), driver.console(stderr=True)
    table = store.read(source, lambda line: err.print(line, highlight=False, markup=False))
    store.require_results(table, source)
    ranking.require_name(by, ranking.numbers(table), "--by")
    status, reasons = ranking.counts(table)
    best = ranking.best(table.filter(table["fits"]), by, top)
    if len(best):
        out.print(show.ranked_table(best, by, expected_error))
    else:
        out.print("no layout fits in memory")
    show.show_counts(out, status, reasons, {})


if __name__ == "__main__":
    sys.exit(main())
