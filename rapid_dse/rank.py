"""``python -m rapid_dse.rank RESULTS --top 20 --by step_time_s``: the best layouts that fit, and why others are not among them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapid_dse.command import Parser, guarded

if TYPE_CHECKING:
    import pyarrow as pa

    from rapid_dse.sweep.identity import Lanes
    from rapid_dse.sweep.standing import Aim

# Columns that no table shows unless they are named, by how they begin.
_TERMS = ("memory_", "time_", "energy", "power", "tpot", "requests", "request_", "running", "elapsed")


def main() -> int:
    """Entry point; the exit code."""
    return guarded(run, sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Prints the ranking.

    Raises:
        ValueError: where the file, the folder or the column is none.
    """
    parser = Parser(prog="python -m rapid_dse.rank", description="The best layouts that fit, and why others are not among them.")
    parser.add_argument(
        "results", type=Path, metavar="RESULTS", help="a results file (Parquet, CSV), results/<study>, or a folder of studies"
    )
    parser.add_argument("--top", type=int, default=20, help="rows to show (default 20)")
    parser.add_argument("--by", default="step_time_s", help="column to rank by (default step_time_s); a leading '-' puts the largest first")
    parser.add_argument("--best-per", metavar="KEY", help="the best row for each value of an override key, as hw or parallel.tp")
    parser.add_argument("--each", action="store_true", help="a line a layout, also where no prediction tells layouts apart")
    parser.add_argument("--headroom", default="0", help="share of usable memory that must stay free, as 5 %%")
    parser.add_argument(
        "--constraint", action="append", default=[], metavar="TEXT", help="what else must hold, as 'mfu>=0.4'; may be given several times"
    )
    parser.takes_json()
    options = parser.parse_args(_with_negatives(arguments))
    if options.top < 1:
        raise ValueError(f"--top={options.top}: allowed: an integer of at least 1")
    _show(options)
    return 0


def _with_negatives(arguments: Sequence[str]) -> list[str]:
    # argparse takes '-mfu' for an option of its own unless it is joined to --by.
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--by":
            joined[-1] = f"--by={argument}"
        else:
            joined.append(argument)
    return joined


def _show(options: argparse.Namespace) -> None:
    from rapid_dse.sweep import pieces, ranked, result_columns, show  # what takes long to load is loaded where Ctrl-C is one line
    from rapid_dse.sweep.console import console
    from rapid_dse.sweep.ranked_rows import ranked_rows
    from rapid_dse.sweep.restored import trial_of
    from rapid_dse.sweep.standing_pieces import StandingPieces

    out, err = console(), console(stderr=True)
    all_pieces = pieces.pieces_of(options.results, lambda line: err.print(line, highlight=False, markup=False, soft_wrap=True))
    result_columns.require_columns(all_pieces[0].schema, options.results)
    study = StandingPieces(all_pieces)
    aim = _aim(options, all_pieces[0].schema, study.varying)
    stood, status, reasons = study.standing(aim)

    def rows_of(lanes: Lanes, wanted: Sequence[str] | None) -> Sequence[Mapping[str, Any]]:
        return pieces.rows_at(all_pieces, lanes[:, 0], wanted)

    if options.json:
        rows = ranked_rows(stood, aim, lambda lanes: rows_of(lanes, None))
        counted = {"status": dict(status), "reasons": dict(reasons.most_common()), "not_ranked": dict(stood.broken)}
        print(json.dumps({"by": options.by, "trials": status.total(), **counted, "rows": rows}, allow_nan=False))
        return
    asked = " ".join([options.by, *options.constraint])
    columns_listed = [name for name in all_pieces[0].schema.names if not name.startswith(_TERMS) or name in asked]
    ranked.show_ranking(out, stood, aim, ranked.Source(lambda lanes: rows_of(lanes, columns_listed), trial_of, "--each"))
    show.show_counts(out, status, reasons, {}, stood.broken)


def _aim(options: argparse.Namespace, schema: pa.Schema, varying: Sequence[str]) -> Aim:
    """What the options ask for.

    Args:
        schema: columns of the results.
        varying: as of ``Aim``.

    Raises:
        ValueError: where a column, a key, a constraint or the headroom is none.
    """
    from rapid_dse.config.units import share
    from rapid_dse.sweep import ranking, show, standing
    from rapid_dse.sweep.search.aims import constraint

    columns = ranking.numbers(schema)
    ranking.require_name(options.by, columns, "--by")
    keys = [name for name in schema.names if name.split(".")[0] in show.SECTIONS]
    if options.best_per is not None:
        ranking.require_key(options.best_per, keys, "--best-per")
    headroom = share(options.headroom)
    if not 0 <= headroom < 1:
        raise ValueError(f"--headroom={options.headroom}: allowed: a share of at least 0 and below 1, as 0.05 or 5 %")
    constraints = tuple(constraint(text, columns, "--constraint") for text in options.constraint)
    return standing.Aim(options.by, options.top, constraints, headroom, tuple(varying), options.best_per, options.each)


if __name__ == "__main__":
    sys.exit(main())
