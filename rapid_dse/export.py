"""``python -m rapid_dse.export RESULTS --key K --to megatron_lm``: a row as what its framework is launched with."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rapid_dse.command import Parser, guarded

if TYPE_CHECKING:
    from rapid_dse.analysis.launch_files.exported import LaunchFile
    from rapid_dse.sweep.portion import Portion

EPILOG = """\
Writes model, batch, layout and precision; data, tokenizer, learning rate and where checkpoints go are the user's. What the framework's
own fields cannot say stands in a comment '# rapid_dse: key=value ...', and is said on standard error. advise reads the file back.
"""


def main() -> int:
    """Entry point; the exit code."""
    return guarded(run, sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Writes the launch file.

    Raises:
        ValueError: where the results, the key or the framework is none.
    """
    options = _options(arguments)
    from rapid_dse.analysis.launch_files.exported import exported
    from rapid_dse.analysis.launch_files.frameworks import framework, of_profile

    portion, told = _portion(options)
    software = portion.choices["software"]
    chosen = framework(options.to, "--to") if options.to else of_profile(software)
    if chosen is None:
        raise ValueError(f"--to: software={software} has no launch files of its own; give a framework")
    launch_file = exported(portion, chosen)
    if options.json:
        print(json.dumps(_as_dict(launch_file, options.key), indent=1))
        return 0
    if options.out is None:
        print(launch_file.text, end="")
    else:
        options.out.write_text(launch_file.text, encoding="utf-8")
        print(f"{chosen.title} to {options.out}")
    for line in [*told, *_notes(launch_file, options.out, chosen.form.comments)]:
        print(line, file=sys.stderr)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    from rapid_dse.analysis.launch_files.frameworks import FRAMEWORKS

    parser = Parser(prog="python -m rapid_dse.export", description=__doc__, epilog=EPILOG)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="a results file, results/<study>, or a folder of studies")
    parser.add_argument("--key", help="the row, by its key or the key's start (default: the best)")
    parser.add_argument("--to", metavar="FRAMEWORK", help=f"{', '.join(FRAMEWORKS)} (default: the row's own)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: standard output)")
    parser.add_argument("--by", default="step_time_s", help="column that says which row is the best (default step_time_s)")
    parser.add_argument(
        "--constraint", action="append", default=[], metavar="TEXT", help="what the best must keep, as 'tpot_s<=0.03'; several times"
    )
    parser.add_argument("--json", action="store_true", help="print JSON (docs/json.md)")
    return parser.parse_args(arguments)


def _portion(options: argparse.Namespace) -> tuple[Portion, list[str]]:
    """The row that is asked for, composed again; and where none is named, which one is the best and by what."""
    from rapid_dse.analysis.reasons.chosen import best_rows, kept, row_of
    from rapid_dse.sweep import result_columns, store
    from rapid_dse.sweep.restored import portion_of
    from rapid_dse.sweep.show import layout_text

    table = store.read(options.results, lambda line: print(line, file=sys.stderr))
    table = result_columns.require_results(table, options.results)
    if "key" not in table.column_names:
        raise ValueError(f"{options.results}: has no column key; allowed: what a sweep or evaluate wrote")
    row = best_rows(kept(table, options.constraint), options.by, 1)[0] if options.key is None else row_of(table, options.key)
    if row["status"] not in ("ok", "oom"):
        raise ValueError(f"--key={row['key']}: this row has status={row['status']} ({row['reason']}); allowed: a row that was priced")
    portion = portion_of(row)
    if portion is None:
        raise ValueError(f"--key={row['key']}: cannot be composed here; allowed: a row whose hw, model, software and cluster are in conf/")
    limits = "".join(f" with {text}" for text in options.constraint)
    told = (
        [f"{row['key'][:12]}: {layout_text(row)}, the best by {options.by}{limits} (--by, --key: another)"] if options.key is None else []
    )
    options.key = row["key"]
    return portion, told


def _as_dict(launch_file: LaunchFile, key: str) -> dict[str, object]:
    return {
        "framework": launch_file.framework,
        "key": key,
        "text": launch_file.text,
        "unsaid": list(launch_file.unsaid),
        "notes": list(launch_file.notes),
    }


def _notes(launch_file: LaunchFile, out: Path | None, comments: bool) -> list[str]:
    """What is said beside the file: what it cannot hold, and how it is read back."""
    lines = list(launch_file.notes)
    if not comments and launch_file.unsaid:
        lines.append(f"python -m rapid_dse.advise {out or 'FILE'} {shlex.join(launch_file.unsaid)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
