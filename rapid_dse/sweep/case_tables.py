"""Tables of cases as Arrow's columns, beside the values in them: CSV is read without pandas, which takes half a second to import."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.table_file import csv_rows, read_table, suffix_of
from rapid_dse.sweep import arrow

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TRUTH = {word: truth for truth in (True, False) for word in (str(truth), str(truth).lower(), str(truth).upper())}


@dataclass(frozen=True)
class CaseTable:
    """A table of cases.

    Attributes:
        table: its columns.
        values: the values of each of these by name, ``(n_rows,)``; None, and of Parquet NaN too: a blank cell.
    """

    table: pa.Table
    values: Mapping[str, Sequence[Any]]


def read_case_table(path: str | Path) -> CaseTable:
    """A table as ``table_file.read_table`` has it.

    Raises:
        ValueError: as that has.
    """
    path = Path(path)
    if suffix_of(path) == ".csv":
        header, *rows = csv_rows(path)
        return _of_words(_named(header), rows)
    return _of_frame(read_table(path), path)


def _of_frame(frame: pd.DataFrame, path: Path) -> CaseTable:
    """A table of a Parquet file as pandas reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for at, name in enumerate(map(str, frame.columns)):
        try:
            columns[name] = pa.array(frame.iloc[:, at], from_pandas=True)
        except (pa.ArrowException, OverflowError):  # a mapping's items are a list in pandas, of pairs that are of no one kind
            columns[name] = pq.read_table(path)[name]
    return CaseTable(pa.table(columns), {name: frame.iloc[:, at].tolist() for at, name in enumerate(columns)})


def _named(header: Sequence[str]) -> list[str]:
    """The names of a CSV file's columns; one that has none gets a name that is free, as of pandas: of an index that was saved with it."""
    names = list(header)
    for at in (at for at, name in enumerate(header) if not name):
        plain = f"Unnamed: {at}"
        names[at] = next(name for name in chain([plain], (f"{plain}.{number}" for number in count(1))) if name not in names)
    return names


def _of_words(names: Sequence[str], rows: Sequence[Sequence[str]]) -> CaseTable:
    """Cells as CSV has them."""
    import pyarrow as pa

    columns = [_typed(words) for words in zip(*rows, strict=True)] if rows else [_typed(()) for _ in names]
    table = pa.table({name: column for name, (_, column) in zip(names, columns, strict=True)})
    return CaseTable(table, {name: values for name, (values, _) in zip(names, columns, strict=True)})


def _typed(words: Sequence[str]) -> tuple[list[Any], pa.Array]:
    """The values of a column, None where it is blank, and the column."""
    distinct = dict.fromkeys(words)
    blank = "" in distinct
    kind, meant = _meant([word for word in distinct if word])
    values = [meant.get(word) for word in words]
    if kind is str:
        return values, arrow.texts(values)
    if kind is bool:
        return values, arrow.numbers(np.array(values, np.bool_), np.array([value is None for value in values]))
    numbers: NDArray[Any] = np.array(values, np.float64 if blank else kind)
    return values, arrow.numbers(numbers, np.isnan(numbers))


def _meant(words: Sequence[str]) -> tuple[type, dict[str, Any]]:
    """What words mean, by word: whole numbers, numbers, truth values or words, the first that all of them are."""
    kinds: dict[type, Callable[[str], Any]] = {int: _whole, float: _number, bool: TRUTH.get}
    for kind, read in kinds.items():
        meant = {word: read(word) for word in words}
        if None not in meant.values():
            return kind, meant
    return str, {word: word for word in words}


def _whole(word: str) -> int | None:
    """A whole number of 64 bits."""
    try:
        value = int(word)
    except ValueError:
        return None
    return value if -(2**63) <= value < 2**63 and "_" not in word else None


def _number(word: str) -> float | None:
    """A number; nan is a word, and a whole number of more than 64 bits is a name that has digits alone."""
    try:
        value = float(word)
    except ValueError:
        return None
    is_name = abs(value) >= 2**63 and word.strip().lstrip("+-").isdigit()
    return None if np.isnan(value) or is_name or "_" in word else value


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, or what pandas has in their place."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))
