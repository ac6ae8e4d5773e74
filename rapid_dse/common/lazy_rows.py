"""Rows taken from a table whose columns are gathered one by one, each when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

Column = TypeVar("Column", bound=NDArray[Any])
Table = TypeVar("Table")
Rows = NDArray[np.intp] | slice

SOURCE = "_source"  # the table that rows were taken from, and where they stand there


class LazyRows:
    """A frozen dataclass of columns, ``(n_rows,)`` each, of which most parts of a price read a few."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def at_rows(self, rows: Rows) -> Self:
        """The rows at these positions, in their order, or in a slice; the table itself must not change."""
        taken = object.__new__(type(self))
        taken.__dict__[SOURCE] = (self, rows)
        return taken

    def __len__(self) -> int:
        own = self.__dict__
        if SOURCE not in own:
            return len(own[self.names()[0]])
        table, rows = own[SOURCE]
        return len(range(len(table))[rows]) if isinstance(rows, slice) else len(rows)

    def names(self) -> tuple[str, ...]:
        """The columns."""
        kind: Any = type(self)
        return _names(kind)

    def __getstate__(self) -> dict[str, Any]:
        """The columns alone: another process needs no more of it, above all not the table that rows were taken from."""
        return {name: getattr(self, name) for name in self.names()}

    if not TYPE_CHECKING:  # a type checker would take any name for a column

        def __getattr__(self, name):
            source = self.__dict__.get(SOURCE)
            if source is None or name not in self.names():
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            column = self.__dict__[name] = _part(getattr(source[0], name), source[1])
            return column


def _part(column: NDArray[Any], rows: Rows) -> NDArray[Any]:
    return column[rows] if isinstance(rows, slice) else column.take(rows)


@cache
def _names(table: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(table))


class derived(Generic[Table, Column]):
    """A property of one number a row, kept once it is computed; of rows that were taken from a table that has it, gathered."""

    def __init__(self, compute: Callable[[Table], Column]) -> None:
        self._compute, self._name, self.__doc__ = compute, compute.__name__, compute.__doc__

    @overload
    def __get__(self, table: None, kind: type[Table]) -> Self: ...
    @overload
    def __get__(self, table: Table, kind: type[Table] | None = None) -> Column: ...
    def __get__(self, table: Table | None, kind: type[Table] | None = None) -> Self | Column:
        if table is None:
            return self
        own = table.__dict__
        taken_from, rows = own.get(SOURCE, (None, None))
        known = None if taken_from is None else taken_from.__dict__.get(self._name)
        column: Any = self._compute(table) if known is None else _part(known, rows)
        own[self._name] = column  # found ahead of this object, which sets nothing
        return cast(Column, column)
