"""Tables of columns: which rows are alike, and rows gathered from every array of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, cached_property, reduce
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.remembered import Remembered

Record = TypeVar("Record")
Positions = NDArray[np.intp]
Flags = NDArray[np.bool_]

ROOM = 8  # a table of numbers may have so many places a row before numbers are given anew
LEAST_ROOM = 65536  # and at least so many
WORTH = 2  # rows a kind from which it is faster to look at one row of each kind
RUN = 2  # neighbouring rows that are alike, in the mean, from which it is faster to look at one row of each run
SLOW = 8  # the same of single columns, from which the runs of several are looked at ahead of other columns
MANY = 4096  # rows of a table of which runs are looked for
SMALL = 64  # numbers below it stand for themselves
FIRST = np.zeros(1, np.intp)  # the kind of the only row of a table, and its place
FIRST.setflags(write=False)


@dataclass(frozen=True)
class Shared(Generic[Record]):
    """A record of distinct rows (``of``), and the one that each row of a larger table has (``kind``, ``(n_rows,)``)."""

    of: Record
    kind: Positions

    @cached_property
    def rows(self) -> Record:
        """The record with a row for each of the larger table's."""
        return rows_of(self.of, self.kind)

    def gather(self, part: Callable[[Record], NDArray[Any]]) -> NDArray[Any]:
        """One array of the record, which ends in an axis of rows, with a row for each of the larger table's."""
        return part(self.of).take(self.kind, axis=-1)

    def part(self, rows: slice) -> Record:
        """The record with a row for each of some neighbouring rows of the larger table."""
        return rows_of(self.of, self.kind[rows])

    def take(self, rows: Positions) -> Shared[Record]:
        """The same for some rows of the larger table."""
        return Shared(self.of, self.kind.take(rows))


class GatheredInTurn(Generic[Record]):
    """Rows of a record for blocks of a larger table that come one after the other: those of the block before are not gathered again, as
    blocks that differ in something else often have the same."""

    def __init__(self, shared: Shared[Record]) -> None:
        self._shared, self._latest = shared, shared.take(np.zeros(0, np.intp))

    def rows(self, block: Positions) -> Record:
        """Those of a block of the larger table's rows."""
        shared = self._shared.take(block)
        if not np.array_equal(shared.kind, self._latest.kind):
            self._latest = shared
        return self._latest.rows


class FoundAlike:
    """What was found of a table's rows. It does not know the table, which keeps it: so both are gone, with all their columns, as soon as
    nobody has the table any more, and not when Python next looks for circles."""

    def __init__(self) -> None:
        self.remembered = Remembered(32)  # what else was found of this very table
        self.numbers: dict[str, tuple[Positions, int]] = {}
        self.changes: dict[str, Flags | None] = {}  # None where all rows have one value
        self.kinds: dict[tuple[str, ...], tuple[Positions, Positions]] = {}


class Distinct:
    """Finds which rows of a table (an object with columns of integers or booleans as attributes) are alike in some of its columns.

    ``found_before``: what was found of the table already, which is added to.
    """

    def __init__(self, table: object, found_before: FoundAlike | None = None) -> None:
        known = FoundAlike() if found_before is None else found_before
        self._table, self.remembered = table, known.remembered
        self._numbers, self._changes, self._found = known.numbers, known.changes, known.kinds

    def by(self, *names: str) -> tuple[Positions, Positions]:
        """A row of each kind of rows that are alike in the columns of these names, and the kind of each row.

        Returns:
            ``(n_kinds,)`` positions of rows, and ``(n_rows,)`` positions among those. Where no two rows are alike, both count the rows.
        """
        if names not in self._found:
            one = len(getattr(self._table, names[0])) == 1
            self._found[names] = (FIRST, FIRST) if one else self._search(names)
        return self._found[names]

    def _search(self, names: tuple[str, ...]) -> tuple[Positions, Positions]:
        """What ``by`` returns, with the help of what it has found before, which saves most of the work of a table that is asked often."""
        finer = [indices for known, indices in self._found.items() if set(names) <= set(known)]
        if finer:  # rows that are alike in more columns are alike in these too: one row of each kind is looked at
            rows, of_rows = min(finer, key=lambda known_indices: len(known_indices[0]))
            if len(rows) * WORTH < len(of_rows):
                first, kind = distinct([numbered(self._column(name).take(rows)) for name in names])
                return rows.take(first), kind.take(of_rows)
        coarser = max((known for known in self._found if set(known) < set(names)), key=len, default=())
        more, known = [name for name in names if name not in coarser], [self._found[coarser]] if coarser else []
        # the kinds by some of the columns stand for these
        begins = self._begins(names)
        if begins is not None:
            columns = [(of_rows.take(begins), len(rows)) for rows, of_rows in known]
            first, kind = distinct([*columns, *(numbered(self._column(name).take(begins)) for name in more)])
            return begins.take(first), np.repeat(kind, np.diff(begins, append=len(self._column(names[0]))))
        slow = [name for name in more if self._begins((name,), SLOW) is not None]
        if 1 < len(slow) < len(names):
            known, more = [*known, self.by(*slow)], [name for name in more if name not in slow]
        first, kind = distinct([*((of_rows, len(rows)) for rows, of_rows in known), *map(self._number, more)])
        every = np.arange(len(kind))
        return (every, every) if len(first) == len(kind) else (first, kind)

    def _column(self, name: str) -> NDArray[Any]:
        column: NDArray[Any] = getattr(self._table, name)
        return column

    def _number(self, name: str) -> tuple[Positions, int]:
        """What ``numbered`` gives of a column, or, where its values are small, these."""
        if name not in self._numbers:
            column = self._column(name)
            high = int(column.max()) if column.dtype == np.intp and len(column) else SMALL
            self._numbers[name] = (column, high + 1) if high < SMALL and int(column.min()) >= 0 else numbered(column)
        return self._numbers[name]

    def _begins(self, names: Sequence[str], length: int = RUN) -> Positions | None:
        """Where the runs of neighbouring rows begin that are alike in some columns; None where a run has fewer than so many rows in the
        mean, and in a table of few rows."""
        n_rows = len(self._column(names[0]))
        if n_rows < MANY:
            return None
        for name in names:
            if name not in self._changes:
                column = self._column(name)
                changes = column[1:] != column[:-1]
                self._changes[name] = changes if changes.any() else None
        changing = [changes for name in names if (changes := self._changes[name]) is not None]
        if not changing:
            return FIRST
        changes = reduce(np.logical_or, changing)
        if (np.count_nonzero(changes) + 1) * length > n_rows:
            return None
        return np.concatenate([FIRST, np.flatnonzero(changes) + 1])


def numbered(column: NDArray[Any]) -> tuple[Positions, int]:
    """Numbers from 0 for the values of a column, alike for equal ones, and how many there are."""
    if len(column) == 1:
        return FIRST, 1
    if column.dtype == bool:
        return column.astype(np.intp), 2
    low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
    if low == high:
        return np.zeros(len(column), np.intp), 1
    if high - low >= max(LEAST_ROOM, ROOM * len(column)):
        values, number = np.unique(column, return_inverse=True)
        return number, len(values)
    return _without_gaps(column - low if low else column, high - low + 1)


def _without_gaps(places: Positions, size: int) -> tuple[Positions, int]:
    """``numbered`` of numbers from 0 and below ``size``."""
    there = np.zeros(size, bool)
    there[places] = True
    values = np.flatnonzero(there)
    number = np.empty(size, np.intp)  # of each value that occurs
    number[values] = np.arange(len(values))
    return number.take(places), len(values)


def distinct(columns: Sequence[tuple[Positions, int]]) -> tuple[Positions, Positions]:
    """``Distinct.by`` of columns that ``numbered`` gave, or of numbers from 0 and how many of these there may be."""
    n_rows = len(columns[0][0])
    if n_rows == 1:
        return FIRST, FIRST
    packed, size = np.zeros(n_rows, np.intp), 1
    for number, count in columns:
        if count > 1:
            if size * count > max(LEAST_ROOM, ROOM * n_rows):
                packed, size = _without_gaps(packed, size)
            packed, size = number if size == 1 else packed * count + number, size * count
    kind, kinds = _without_gaps(packed, size)
    first = np.empty(kinds if n_rows else 0, np.intp)
    first[kind[::-1]] = np.arange(n_rows)[::-1]
    return first, kind


def rows_of(record: Record, rows: Positions) -> Record:
    """A dataclass whose arrays end in an axis of rows, with only ``rows`` of them; records and tuples of arrays within it alike."""
    if len(rows) == 1 and n_rows_of(record) == 1:
        return record  # with which most of a table of one row is spared
    kind: Any = type(record)
    gathered: Record = kind(*[_rows(getattr(record, name), rows) for name in _names(kind)])
    return gathered


def n_rows_of(record: Any) -> int | None:
    """Rows of a record; None where it has no array."""
    kind: Any = type(record)
    for name in _names(kind):
        value = getattr(record, name)
        if isinstance(value, np.ndarray):
            return int(value.shape[-1])
        for member in value if isinstance(value, tuple) else () if value is None else (value,):
            length = int(member.shape[-1]) if isinstance(member, np.ndarray) else n_rows_of(member)
            if length is not None:
                return length
    return None


@cache
def _names(record: Any) -> tuple[str, ...]:
    assert is_dataclass(record)
    return tuple(field.name for field in fields(record))


def _rows(value: Any, rows: Positions) -> Any:
    if isinstance(value, np.ndarray):
        return value.take(rows, axis=-1)
    if isinstance(value, tuple):
        return tuple(_rows(item, rows) for item in value)
    return None if value is None else rows_of(value, rows)


def with_rows(record: Record, rows: Positions, others: Record) -> Record:
    """The record with the rows of ``others`` in place of some of its own; dataclasses as ``rows_of`` takes them."""
    kind: Any = type(record)
    replaced: Record = kind(*[_with_rows(getattr(record, name), rows, getattr(others, name)) for name in _names(kind)])
    return replaced


def _with_rows(value: Any, rows: Positions, others: Any) -> Any:
    if isinstance(value, np.ndarray):
        column = value.copy()
        column[..., rows] = others
        return column
    if isinstance(value, tuple):
        return tuple(_with_rows(item, rows, other) for item, other in zip(value, others, strict=True))
    return None if value is None else with_rows(value, rows, others)


def joined(records: Sequence[Record]) -> Record:
    """Dataclasses of one kind, as ``rows_of`` takes them, whose rows follow each other."""
    if len(records) == 1:
        return records[0]
    kind: Any = type(records[0])
    columns = ([getattr(record, name) for record in records] for name in _names(kind))
    together: Record = kind(*(np.concatenate(part, axis=-1) if isinstance(part[0], np.ndarray) else joined(part) for part in columns))
    return together


def together(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Columns one behind the other; of one nothing is copied."""
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


TIED = 1 + 1e-12  # values so close to each other, by ratio, are equal but for rounding


def largest(values: NDArray[np.float64]) -> Positions:
    """Which of a few rows is the largest in each column, the first where several are but for rounding, ``(n_columns,)``.

    No value is negative.
    """
    most, where = values[0], np.zeros(values.shape[1], np.intp)
    for row in range(1, len(values)):
        where[values[row] > most * TIED] = row
        most = np.maximum(most, values[row])
    return where


def at(table: NDArray[Any], rows: Positions, columns: Positions) -> NDArray[Any]:
    """The entries of a table at a row and a column each, ``(n_entries,)``."""
    entries: NDArray[Any] = table.reshape(-1).take(rows * table.shape[1] + columns)
    return entries


def added(columns: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The sum of columns, or over the first axis of a table, one after the other.

    numpy's own sums, and products of matrices, add a row up in an order that depends on how many rows there are beside it.
    """
    first, *others = columns
    total = first
    for column in others:
        total = total + column
    return total


def summed(counts: NDArray[Any], values: Sequence[NDArray[np.float64]] | NDArray[np.float64]) -> NDArray[np.float64]:
    """So many times each of several values, added up.

    Args:
        counts: of each value, ``(n_values, …)``.
        values: arrays that broadcast with one value's counts.
    """
    total: NDArray[np.float64] = counts[0] * values[0]
    for count, value in zip(counts[1:], values[1:], strict=True):
        total = total + count * value
    return total


def largest_of(counts: NDArray[Any], values: Sequence[NDArray[np.float64]] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest of those values of which there is at least one; 0 where there is none. As ``summed``."""
    most: NDArray[np.float64] = np.where(counts[0] > 0, values[0], 0.0)
    for count, value in zip(counts[1:], values[1:], strict=True):
        most = np.maximum(most, np.where(count > 0, value, 0.0))
    return most
