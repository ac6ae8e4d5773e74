"""``rd.sweep`` and ``rd.load``: results as a table, ranked, filtered and shown."""

from __future__ import annotations

import glob
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapid_dse.api.keywords import Settings, given_of, warn
from rapid_dse.api.trials import TrialRow
from rapid_dse.sweep import ranking, result_columns, standing, store
from rapid_dse.sweep.driver import INTERRUPTED
from rapid_dse.sweep.overrides import Given
from rapid_dse.sweep.quiet import priced_study
from rapid_dse.sweep.show import SECTIONS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SHOWN = 10  # rows that a notebook shows of results
RESULTS_DIR, STUDY = "search.results_dir", "search.study"


@dataclass(frozen=True, repr=False, eq=False)
class Results(Sequence[TrialRow]):
    """Rows of results: a sequence of trials, ranked and filtered into further results; ``table`` holds them as an Arrow table.

    ``folder``: where the study is kept; None: nowhere.
    """

    table: pa.Table
    folder: Path | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            return self._take(range(start, stop, step))
        if not -len(self) <= at < len(self):
            raise IndexError(f"{at}: there are {len(self)} rows")
        return TrialRow(self.table.slice(at % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[TrialRow]:
        return (TrialRow(row) for row in self.table.to_pylist())

    def _take(self, rows: Sequence[int]) -> Results:
        import numpy as np

        return Results(self.table.take(np.asarray(rows, np.int64)), self.folder)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have which status: ok, oom, invalid, error."""
        return dict(ranking.counts(self.table)[0])

    @property
    def reasons(self) -> dict[str, int]:
        """Why rows are not ok, with how many."""
        return dict(ranking.counts(self.table)[1].most_common())

    def best(self, count: int = 1, *, by: str = "step_time_s", inside: bool = False) -> Results:
        """The best rows that fit, best first.

        Args:
            count: how many.
            by: the column that ranks; rates descend, a leading '-' turns a column around.
            inside: of the rows alone in which nothing lies outside what was measured, and whose error is known.

        Raises:
            ValueError: where there is no such column.
        """
        import pyarrow.compute as pc

        if count < 1:
            raise ValueError(f"count={count}: allowed: an integer of at least 1")
        ranking.require_name(by, ranking.numbers(self.table.schema), "by")
        kept = self.table.filter(pc.fill_null(self.table["fits"], False))
        if inside:
            kept = kept.filter(pc.and_(pc.is_null(kept["outside"]), pc.is_valid(kept["expected_error"])))
        return Results(ranking.best(kept, by, count), self.folder)

    def front(self, *columns: str) -> Results:
        """The rows that fit and that no other one is better than in all ``columns``; by the first of them.

        Raises:
            ValueError: where there is no such column.
        """
        from rapid_dse.sweep.search.aims import read_aims
        from rapid_dse.sweep.search.findings import front_of

        for column in columns or ("",):
            ranking.require_name(column, ranking.numbers(self.table.schema), "front")
        keys = [name for name in self.table.column_names if name.split(".")[0] in SECTIONS]
        return Results(front_of(self.where("fits").table, read_aims(columns, (), keys)), self.folder)

    def where(self, expression: str) -> Results:
        """The rows for which an expression holds, as ``DataFrame.query`` has it: ``"fits and `parallel.tp` == 8"``."""
        frame = self.frame().reset_index(drop=True)
        try:
            kept = frame.query(expression) if expression != "fits" else frame[frame["fits"].fillna(False).astype(bool)]
        except Exception as error:  # pandas has exceptions of many kinds
            raise ValueError(f"where={expression!r}: {' '.join(str(error).split())}") from None
        return self._take(kept.index.tolist())

    def frame(self) -> pd.DataFrame:
        """The rows as a pandas table."""
        table_frame: pd.DataFrame = self.table.to_pandas()
        return table_frame

    def to_dict(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows

    def report(self, path: str | PathLike[str] = "report.html", *, by: str = "step_time_s", sensitivity: bool = True) -> Path:
        """Writes the rows as one page of HTML with pictures, as ``python -m rapid_dse.report`` does; the path.

        Args:
            by: the column that ranks.
            sensitivity: whether the page has the table of other machines, which prices all rows again.

        Raises:
            ValueError: where no row was priced, there is no such column, or the file cannot be written.
        """
        from rapid_dse.analysis.report.study_file import write_text
        from rapid_dse.analysis.report.study_page import Origin, page, written_of

        out = Path(path)
        written = written_of(self.folder) if self.folder is not None else ()
        name = "results" if self.folder is None else self.folder.resolve().name
        write_text(page(self.table, Origin(name, written), by, sensitivity), out)
        return out

    def __repr__(self) -> str:
        counted = ", ".join(f"{count:,} {status}" for status, count in self.counts.items())
        return f"<Results of {len(self):,} trials: {counted or 'none'}>"

    def _repr_html_(self) -> str:
        from rapid_dse.api.html import rows_html

        rows = self.table.slice(0, SHOWN).to_pylist()
        varying = [key for key in standing.differing(self.table, SECTIONS) if not key.startswith("parallel.")] if len(self) else []
        more = f" (the first {SHOWN} of {len(self):,})" if len(self) > SHOWN else ""
        return rows_html(rows, varying, f"{repr(self)[1:-1]}{more}")


def sweep(keys: Settings | None = None, /, **settings: Any) -> Results:
    """Prices every combination: lists sweep, and of the layout the word all.

    ``rd.sweep(hw=["h100", "h200"], model="llama3_1_70b", tp="all", pp=[1, 2, 4], num_gpus=64)``; ``sweeps="NAME"`` is a named sweep,
    ``search="optuna", n_trials=200`` a search, ``zip={"tp": [1, 2], "pp": [4, 2]}`` pairs (tp 1 with pp 4, 2 with 2). With
    ``study="NAME"`` rows are kept in results/NAME and taken from there; without it they are kept nowhere.

    Args:
        keys, settings: as of ``rd.simulate``.

    Raises:
        ValueError: what the command line says of a wrong key, value or file. A layout that breaks a rule is a row with its reason.
    """
    given = given_of(keys, settings)
    with tempfile.TemporaryDirectory() as nowhere:
        kept = STUDY in given.values or RESULTS_DIR in given.values
        nowhere_kept = {} if kept else {RESULTS_DIR: nowhere, STUDY: "study"}
        folder = _priced(replace(given, values={**given.values, **nowhere_kept}))
        return Results(_read([folder]), folder if kept else None)


def _priced(given: Given) -> Path:
    """Prices a study; its folder."""
    study = priced_study(given, warn)
    if study.code == INTERRUPTED:
        raise KeyboardInterrupt
    return study.folder


def load(*sources: str | PathLike[str]) -> Results:
    """Results as one table: of files, folders and patterns (``"results/*"``), with all their columns; of each configuration the newest row.

    Raises:
        ValueError: where there is nothing, or it is no results of rapid_dse.
    """
    paths: dict[Path, None] = {}
    for source in [str(fspath(source)) for source in sources or ("results",)]:
        matching = sorted(glob.glob(source)) if glob.has_magic(source) else [source]
        if not matching:
            raise ValueError(f"{source}: no such file or folder; allowed: a results file, results/<study>, or a pattern of them")
        paths.update(dict.fromkeys(Path(path) for path in matching))
    return Results(_read(list(paths)), next(iter(paths)) if len(paths) == 1 else None)


def _read(sources: Sequence[Path]) -> pa.Table:
    tables, said = [], []
    for path in (path for source in sources for path in _files(source)):
        try:
            tables.append(store.read_file(path))
        except store.Damaged as error:
            said.append(str(error))
    if not tables:
        raise store.nothing_read(sources[0], said)
    for text in said:
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    return result_columns.require_results(store.latest(tables), sources[0])


def _files(source: Path) -> list[Path]:
    """The result files behind a path; what else lies in a folder of studies is passed over."""
    return store.files_of(source) if source.is_dir() or source.suffix.lower() in (".parquet", ".csv") else []
