"""The rows of a study: what the store holds is read, what it lacks is priced and written, a batch a file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rapid_dse.sweep import arrow, identity, launch, store
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.search.study_space import Trial
from rapid_dse.sweep.table import failed_table, priced_table

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
_KEPT = 1000  # rows of trials that are asked again soon, if ever: a long study's memory shall not grow by all its rows
_KILLED = "its worker process was killed each time, perhaps for want of memory: fewer search.jobs need less"


class Answers:
    """The study's rows, by key."""

    def __init__(self, folder: Path, run: launch.RunAll | None, notice: store.Report) -> None:
        """Reads which keys the folder holds.

        Args:
            run: what runs a job a trial; None where trials are fast, and are priced together in this process.
        """
        self._folder, self._run, self._notice = folder, run, notice
        self._known = store.known(sorted(folder.glob(f"*{store.SUFFIX}")), notice)
        self._rows: dict[str, Row] = {}
        self.read = self.priced = 0

    def of(self, trials: Sequence[Trial], advance: Callable[[], None] = lambda: None) -> list[Row]:
        """The row of each trial, in order; a trial that fails is a row with its error.

        Args:
            advance: called for each trial that is there.

        Raises:
            OSError: where the store cannot be written.
            Exception: what pricing raised, where search.fail_fast is set.
        """
        keys = [trial.key() for trial in trials]
        if len(self._rows) > _KEPT:  # the folder holds them
            self._rows.clear()
        self._read([key for key in dict.fromkeys(keys) if key not in self._rows])
        missing = {key: trial for key, trial in zip(keys, trials, strict=True) if key not in self._rows}
        for _ in range(len(trials) - len(missing)):
            self.read += 1
            advance()
        if missing:
            self._price(missing, advance)
        return [self._rows[key] for key in keys]

    def table(self, asked: Sequence[Row]) -> pa.Table:
        """The rows of trials, in order, as the store holds them.

        Args:
            asked: what is known of each: its key, and its status and reason, which stand for a row that is in no readable file (one
                that failed is not priced again).
        """
        import pyarrow as pa

        rows = _stored(self._folder, [row["key"] for row in asked], self._notice)
        stored = set() if rows is None else set(rows["key"].to_pylist())
        lost = {row["key"]: row for row in asked if row["key"] not in stored}
        if gone := sum(row.get("status") != "error" for row in lost.values()):
            self._notice(f"{gone:,} rows of the study are in no readable file any more; the same command prices them again")
        if lost or rows is None:
            kinds = {name: pa.string() if rows is None else rows.schema.field(name).type for name in ("key", "status", "reason")}
            spare = {name: pa.array([row.get(name) for row in lost.values()], pa.string()).cast(kind) for name, kind in kinds.items()}
            rows = pa.table(spare) if rows is None else store.latest([rows, pa.table(spare)])
        at = {key: number for number, key in enumerate(rows["key"].to_pylist())}
        return rows.take(arrow.numbers(np.array([at[row["key"]] for row in asked], np.int64)))

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that no readable file of the study holds a row of."""
        known = self._known.lanes.view([("high", np.uint64), ("low", np.uint64)]).ravel()
        asked = identity.from_hex(list(keys)).view(known.dtype).ravel() if keys else known[:0]
        return [key for key, is_held in zip(keys, np.isin(asked, known), strict=True) if not is_held]

    def _read(self, keys: Sequence[str]) -> None:
        if not keys or not len(self._known.lanes):
            return
        for path in self._known.files_with(identity.from_hex(list(keys))):
            try:
                table = store.read_own(path)
            except store.Damaged as error:
                self._notice(f"{error}; its rows are priced again")
                store.set_aside(path)
                continue
            wanted = set(keys)
            rows = np.flatnonzero([key in wanted for key in table["key"].to_pylist()])
            self._keep(table.take(rows))

    def _keep(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            if row["status"] != "error" or row["key"] not in self._rows:
                self._rows[row["key"]] = row

    def _price(self, missing: dict[str, Trial], advance: Callable[[], None]) -> None:
        """One job a trial where trials are slow, else one a variant; the batch's rows are one file."""
        portions = _portions(list(missing.values()), self._run is not None)
        tables: dict[int, pa.Table] = {}
        priced_tables = self._tables(portions)
        try:
            for at, table in priced_tables:
                tables[at] = table
                for _ in range(len(table)):
                    advance()
        finally:
            priced_tables.close()
            if tables:  # after Ctrl-C as well: what was priced is kept
                self._write([tables[at] for at in sorted(tables)], portions[0])
        self.priced += len(missing)

    def _tables(self, portions: Sequence[Portion]) -> Generator[tuple[int, pa.Table]]:
        """Each portion's table as it comes; one whose worker dies each time is a row with that as its error."""
        unpriced, run = dict(enumerate(portions)), self._run or launch.here
        try:
            with closing(run(priced_table, portions)) as tables:
                for at, table in tables:
                    unpriced.pop(at)
                    yield at, table
        except BrokenExecutor:
            for at, portion in unpriced.items():
                yield at, _by_itself(run, portion)

    def _write(self, tables: Sequence[pa.Table], first: Portion) -> None:
        import pyarrow as pa

        table = tables[0] if len(tables) == 1 else pa.concat_tables(_plain(tables), promote_options="permissive")
        name = identity.digest_of(store.key_lanes(table["key"]))
        path = store.write(self._folder, table, store.configuration_json(first.scenario), name)
        self._keep(table)
        self._known = self._known.with_file(path, table)


def _stored(folder: Path, keys: Sequence[str], notice: store.Report) -> pa.Table | None:
    """The rows with these keys in a study's folder, each once; None where it holds none. A file at a time is held."""
    import pyarrow.compute as pc

    wanted, tables = arrow.texts(list(dict.fromkeys(keys))), []
    for path in sorted(folder.glob(f"*{store.SUFFIX}")):
        try:
            among = pc.is_in(store.read_own(path, ["key"])["key"].cast(wanted.type), wanted)
            if pc.any(among).as_py():
                tables.append(store.read_own(path).filter(among))
        except store.Damaged as error:
            notice(str(error))
    return store.latest(tables) if tables else None


def _plain(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Dictionaries of several tables are one after unification."""
    return [table.unify_dictionaries() for table in tables]


def _by_itself(run: launch.RunAll, portion: Portion) -> pa.Table:
    try:
        return next(iter(run(priced_table, [portion])))[1]
    except BrokenExecutor:
        if portion.scenario.search.fail_fast:
            raise ChildProcessError(_KILLED) from None
        return failed_table(portion, _KILLED)


def _portions(trials: Sequence[Trial], alone: bool) -> list[Portion]:
    """What is one job each: the longest first, so that none is left for the end that all wait for."""
    if alone:
        return [trial.portion() for trial in sorted(trials, key=_length, reverse=True)]
    grouped: dict[int, list[Trial]] = {}
    for trial in trials:
        grouped.setdefault(id(trial.variant), []).append(trial)
    return [group[0].variant.portion([trial.row for trial in group if trial.row >= 0]) for group in grouped.values()]


def _length(trial: Trial) -> float:
    """How large the graph of a simulated trial is: its ranks times their layers times their micro-batches."""
    if trial.row < 0:
        return 0.0
    layouts = trial.variant.pool.layouts.take(slice(trial.row, trial.row + 1))
    return float((layouts.num_gpus / layouts.pp * layouts.num_micro_batches)[0]) * trial.variant.setting.scenario.model.num_hidden_layers
