"""``python -m rapid_dse.evaluate CASES --out RESULTS``: a table of cases in, the same table with predictions out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapid_dse.command import Parser, guarded

if TYPE_CHECKING:
    import pyarrow as pa

    from rapid_dse.sweep.case_tables import CaseTable
    from rapid_dse.sweep.cases import CaseGroup, Refused

EPILOG = """\
Each column of CASES that is an override key (hw, model, software, backend, hw.num_gpus, model.hidden_size, workload.seq_len,
parallel.tp, …) overrides it, a blank cell is the default; other columns are carried along. RESULTS has a row for each row of CASES,
in their order, with all their columns and the result columns. A column that has a result's name (step_time_s, status, …) is kept
as input.<name>.

Rows of inference whose column spec names a way of speculative decoding (mtp), and whose workload.draft_tokens is blank, are priced without
drafts: outside says so, and they have no expected_error.

A row whose layout is illegal has status=invalid and the rule as its reason. Exit code 2 where a key, value or file is wrong.
"""


def main() -> int:
    """Entry point; the exit code."""
    return guarded(run, sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Does what the command line says.

    Raises:
        ValueError: one line, where the command line or the table is wrong; OSError where a file cannot be read or written.
    """
    options = _options(arguments)
    from rapid_dse.sweep import idle
    from rapid_dse.sweep.cases import read_cases
    from rapid_dse.sweep.console import console
    from rapid_dse.sweep.overrides import GROUPS
    from rapid_dse.sweep.show import show_artifacts

    refused: Refused = {}
    cases, groups = read_cases(options.cases, refused if options.keep_going else None, options.trust)
    if not any(name.split(".")[0] in GROUPS for name in cases.values):
        names = ", ".join(cases.values)[:200]
        raise ValueError(f"{options.cases}: no column is an override key (its columns: {names}); see --help")
    portions = [group.portion for group in groups]
    for line in [*idle.of_table(portions), *idle.of_files(portions)]:
        print(line, file=sys.stderr)
    evaluation = evaluated(cases, groups, refused)
    _write(evaluation.table, options.out)
    if options.json:
        print(json.dumps(_summary(evaluation, options.out)))
        return 0
    _report(evaluation, options.out)
    show_artifacts(console(), (portion.scenario for portion in portions))
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    from rapid_dse.config.table_file import SUFFIXES

    parser = Parser(prog="python -m rapid_dse.evaluate", description=__doc__, epilog=EPILOG)
    parser.add_argument("cases", type=Path, metavar="CASES", help="a table of cases, CSV or Parquet")
    parser.add_argument("--out", type=Path, required=True, metavar="RESULTS", help="the table to write: CSV or Parquet by its suffix")
    parser.add_argument(
        "--keep-going", action="store_true", help="a row with a value that is none of its key's is invalid, and stops nothing"
    )
    parser.takes_trust()
    parser.takes_json()
    options = parser.parse_args(arguments)
    out: Path = options.out
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out {out}: allowed: a file that ends in .csv or .parquet")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out}: the folder {out.parent} does not exist or cannot be written")
    return options


def _summary(evaluation: Evaluated, out: Path) -> dict[str, Any]:
    """What became of the table, as plain values."""
    return {
        "out": str(out),
        "rows": len(evaluation.table),
        "status": dict(evaluation.status),
        "reasons": dict(evaluation.reasons.most_common()),
        "renamed": dict(evaluation.renamed),
        "replaced": evaluation.replaced,
        "carried": [name for name in evaluation.carried if not _is_known(name)],
    }


def _report(evaluation: Evaluated, out: Path) -> None:
    counts = evaluation.status.most_common()
    print(f"{len(evaluation.table)} rows to {out}: {', '.join(f'{count} {status}' for status, count in counts)}")
    if evaluation.renamed:
        names = ", ".join(f"{old} as {new}" for old, new in evaluation.renamed.items())
        print(f"  columns that have a result's name, kept under another: {names}")
    if evaluation.replaced:
        print("  results that were in the table, of an earlier run, are replaced")
    if carried := [name for name in evaluation.carried if not _is_known(name)]:
        print(f"  columns that override nothing, carried along: {', '.join(carried)}")
    for reason, count in evaluation.reasons.most_common():
        print(f"  {count} × {reason}")


def _is_known(name: str) -> bool:
    """Whether a column overrides a key, was measured, or is one that tables of cases have beside those."""
    from rapid_dse.sweep.overrides import GROUPS

    return name.split(".")[0] in {*GROUPS, "measured"} or name in ("case_id", "suite", "group", "source", "note")


@dataclass(frozen=True)
class Evaluated:
    """A table with its results.

    Attributes:
        table: a row for each row of the cases, in their order: the columns of the cases, then the results'.
        renamed: columns of the cases that had a result's name, with the name that they have now.
        replaced: whether the cases held results of an earlier run, which are no longer there.
        carried: columns of the cases that were neither.
    """

    table: pa.Table
    renamed: Mapping[str, str]
    replaced: bool
    carried: Sequence[str]

    @property
    def status(self) -> Counter[str]:
        """How many rows have each status."""
        return Counter(self._words("status"))

    @property
    def reasons(self) -> Counter[str]:
        """Why rows were rejected."""
        rows = zip(self._words("status"), self._words("reason"), strict=True)
        return Counter(reason for status, reason in rows if status in ("invalid", "error"))

    def _words(self, name: str) -> list[str]:
        from rapid_dse.sweep import arrow

        codes, words = arrow.encoded(self.table.column(name))
        return [words[code] for code in codes.tolist()]


def evaluated(cases: CaseTable, groups: Sequence[CaseGroup], refused: Refused) -> Evaluated:
    """``cases`` with the result columns beside its own; what it says of override keys stays as written.

    Args:
        groups: its rows by scenario.
        refused: rows that are in no group, with the reason; they have status=invalid and no results.
    """
    from rapid_dse.parallel.layouts import COLUMN_OF
    from rapid_dse.sweep.outside import with_untold_drafts
    from rapid_dse.sweep.overrides import GROUPS

    results = with_untold_drafts(_results(len(cases.table), groups, refused), cases.values)
    names = results.column_names
    own = [name for name in names if not (name in GROUPS or name in COLUMN_OF or "." in name)]
    given = list(cases.values)
    clashing = [name for name in given if name in own]
    replaced = len(clashing) == len(own)
    renamed: dict[str, str] = {} if replaced else {name: _free(f"input.{name}", {*given, *names}) for name in clashing}
    table = cases.table.drop_columns(clashing) if replaced else cases.table.rename_columns([renamed.get(name, name) for name in given])
    for name in names:
        if name not in table.column_names:
            table = table.append_column(results.field(name), results.column(name))
    return Evaluated(table, renamed, replaced, [name for name in given if name not in clashing])


def _free(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name = f"input.{name}"
    return name


def _results(n_rows: int, groups: Sequence[CaseGroup], refused: Refused) -> pa.Table:
    """The override keys and results of every row, in order; of refused rows status and reason alone."""
    import numpy as np
    import pyarrow as pa

    from rapid_dse.sweep import arrow
    from rapid_dse.sweep.console import console
    from rapid_dse.sweep.overrides import read
    from rapid_dse.sweep.progress_lines import ProgressLines
    from rapid_dse.sweep.space import single
    from rapid_dse.sweep.table import failed_table, priced_tables

    lines = ProgressLines(sum(len(group.rows) for group in groups), console(stderr=True))
    priced = priced_tables([group.portion for group in groups], lines.advance) if groups else failed_table(single(read([])), "")[:0]
    place = np.full(n_rows, -1, np.int64)
    for at, row in enumerate(row for group in groups for row in group.rows.tolist()):
        place[row] = at
    assert set(np.flatnonzero(place < 0).tolist()) == set(refused)
    columns = {name: arrow.taken(priced.column(name), place) for name in priced.column_names}
    for name, texts in (("status", dict.fromkeys(refused, "invalid")), ("reason", refused)):
        if refused:
            columns[name] = arrow.with_texts(pa.chunked_array([columns[name]]), texts)
    return pa.table(columns)


def _write(results: pa.Table, out: Path) -> None:
    # Written aside, then moved: a reader never sees half a table, and an interrupted run leaves the old one.
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(results, aside)
        else:
            results.to_pandas(integer_object_nulls=True).to_csv(aside, index=False)
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
