"""``python -m rapid_dse.evaluate CASES --out RESULTS``: a table of cases in, the same table with predictions out."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rapid_dse.command import guarded

if TYPE_CHECKING:
    import pandas as pd

    from rapid_dse.sweep.cases import CaseGroup

HELP = """\
python -m rapid_dse.evaluate CASES --out RESULTS

  CASES      a table, CSV or Parquet; each column that is an override key (hw, model, software, backend, hw.num_gpus, model.hidden_size,
             workload.seq_len, parallel.tp, …) overrides it, a blank cell is the default; other columns are carried along
  --out      where the table goes, with the result columns: CSV or Parquet by its suffix

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
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0
    cases, out = _paths(arguments)
    from rapid_dse.sweep.cases import read_cases
    from rapid_dse.sweep.overrides import GROUPS

    frame, groups = read_cases(cases)
    if not any(name.split(".")[0] in GROUPS for name in map(str, frame.columns)):
        raise ValueError(f"{cases}: no column is an override key (its columns: {', '.join(map(str, frame.columns))[:200]}); see --help")
    results = evaluated(frame, groups)
    _write(results, out)
    counts = Counter(results["status"].astype(str))
    print(f"{len(results)} rows to {out}: {', '.join(f'{count} {status}' for status, count in counts.most_common())}")
    if carried := [name for name in map(str, frame.columns) if not _is_known(name)]:
        print(f"  columns that override nothing, carried along: {', '.join(carried)}")
    for reason, count in Counter(results.loc[results["status"].isin(["invalid", "error"]), "reason"].astype(str)).most_common():
        print(f"  {count} × {reason}")
    return 0


def _is_known(name: str) -> bool:
    """Whether a column overrides a key, was measured, or is one that tables of cases have beside those."""
    from rapid_dse.sweep.overrides import GROUPS

    return name.split(".")[0] in {*GROUPS, "measured"} or name in ("case_id", "suite", "group", "source", "note")


def evaluated(frame: pd.DataFrame, groups: Sequence[CaseGroup]) -> pd.DataFrame:
    """``frame`` with the result columns: what it says of override keys stays as written, a result replaces a column of its name."""
    import numpy as np
    import pyarrow as pa

    from rapid_dse.layouts import COLUMN_OF
    from rapid_dse.sweep.overrides import GROUPS
    from rapid_dse.sweep.table import priced_table

    priced = pa.concat_tables([priced_table(group.portion) for group in groups], promote_options="permissive")
    order = np.argsort(np.concatenate([group.rows for group in groups]), kind="stable")
    table = priced.take(pa.array(order)).to_pandas()
    table.index = frame.index
    kept = [name for name in table.columns if name in frame.columns and (name in GROUPS or name in COLUMN_OF or "." in name)]
    table = table.drop(columns=kept)
    return frame.drop(columns=[name for name in frame.columns if name in table.columns]).join(table)


def _paths(arguments: Sequence[str]) -> tuple[Path, Path]:
    left = list(arguments)
    out = ""
    if "--out" in left:
        place = left.index("--out")
        out = left[place + 1] if place + 1 < len(left) else ""
        del left[place : place + 2]
    if len(left) != 1 or not out:
        raise ValueError("allowed: python -m rapid_dse.evaluate CASES --out RESULTS (see --help)")
    target = Path(out)
    if target.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--out {out}: allowed: a file that ends in .csv or .parquet")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise ValueError(f"--out {out}: the folder {target.parent} does not exist or cannot be written")
    return Path(left[0]), target


def _write(results: pd.DataFrame, out: Path) -> None:
    # Written aside, then moved: a reader never sees half a table, and an interrupted run leaves the old one.
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.suffix == ".parquet":
            results.to_parquet(aside, index=False)
        else:
            results.to_csv(aside, index=False)
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
