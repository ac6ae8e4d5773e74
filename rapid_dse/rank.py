"""``python -m rapid_dse.rank RESULTS --top 20 --by step_time_s``: the best layouts that fit, and why others are not among them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rapid_dse.command import Parser, guarded


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
    options = parser.parse_args(_with_negatives(arguments))
    if options.top < 1:
        raise ValueError(f"--top={options.top}: allowed: an integer of at least 1")
    _show(options.results, options.by, options.top, options.best_per, options.each)
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


def _show(source: Path, by: str, top: int, best_per: str | None, each: bool) -> None:
    import pyarrow.compute as pc

    from rapid_dse.sweep import ranked, ranking, show, standing, store  # what takes long to load is loaded where Ctrl-C is one line
    from rapid_dse.sweep.console import console
    from rapid_dse.sweep.restored import trial_of, usable_of

    out, err = console(), console(stderr=True)
    table = store.read(source, lambda line: err.print(line, highlight=False, markup=False, soft_wrap=True))
    table = store.require_results(table, source)
    ranking.require_name(by, ranking.numbers(table), "--by")
    if best_per is not None:
        keys = [name for name in table.column_names if name.split(".")[0] in show.SECTIONS]
        ranking.require_key(best_per, keys, "--best-per")
    aim = standing.Aim(by, top, varying=tuple(standing.differing(table, show.SECTIONS)), best_per=best_per, each=each)
    not_all_fit = pc.any(pc.invert(table["fits"])).as_py()
    stood = standing.standing_of(table, aim, usable_of(table) if not_all_fit else None, standing.place_lanes(len(table)))
    ranked.show_ranking(out, stood, aim, ranked.Source(lambda lanes: standing.rows_at(table, lanes), trial_of, "--each"))
    status, reasons = ranking.counts(table)
    show.show_counts(out, status, reasons, {})


if __name__ == "__main__":
    sys.exit(main())
