"""Tables of columns: which rows are alike, and rows gathered from every array of a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Record = TypeVar("Record")

# An odd number near 2^64 divided by the golden ratio: multiplying by it spreads neighbouring integers over all 64 bits.
SPREAD = np.uint64(0x9E3779B97F4A7C15)


def distinct_rows(columns: Sequence[NDArray[Any]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first row of each kind of equal rows, and the kind of each row.

    Args:
        columns: ``(n_rows,)`` each; booleans, integers or floats, which count as equal where their bits are.

    Returns:
        ``(n_kinds,)`` positions of rows, and ``(n_rows,)`` positions among those.
    """
    bits = [np.ascontiguousarray(column, np.float64 if column.dtype.kind == "f" else np.int64).view(np.uint64) for column in columns]
    mixed = np.zeros(len(bits[0]), np.uint64)
    for column in bits:
        mixed = (mixed ^ column) * SPREAD
        mixed ^= mixed >> np.uint64(29)
    _, first, kind = np.unique(mixed, return_index=True, return_inverse=True)
    if any((column[first][kind] != column).any() for column in bits):  # two kinds have the same mixture, one in 2^64 / n_rows² tables
        _, first, kind = np.unique(np.stack(bits), axis=1, return_index=True, return_inverse=True)
    return first, kind


def rows_of(record: Record, rows: NDArray[np.intp]) -> Record:
    """A dataclass whose arrays end in an axis of rows, with only ``rows`` of them; records within it alike."""
    assert is_dataclass(record)
    assert not isinstance(record, type)
    values = (getattr(record, field.name) for field in fields(record))
    return type(record)(*(value.take(rows, axis=-1) if isinstance(value, np.ndarray) else rows_of(value, rows) for value in values))
