"""Tables of cases as Arrow's columns, beside their values: small CSV files are read without pandas, whose import takes half a second."""

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

LARGE = 4 << 20  # bytes of a CSV file, from which pandas saves more than its import takes
SOME = 1000  # cells of a column by which it is judged whether they repeat: each value is then read once
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
        sure = _sure_numbers(read_table(path)) if path.is_file() and path.stat().st_size > LARGE else {}
        return _of_words(path, sure)
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
    names, taken = list(header), set(header)
    for at in (at for at, name in enumerate(header) if not name):
        plain = f"Unnamed: {at}"
        names[at] = next(name for name in chain([plain], (f"{plain}.{number}" for number in count(1))) if name not in taken)
        taken.add(names[at])
    return names


def _sure_numbers(frame: pd.DataFrame) -> dict[int, NDArray[Any]]:
    """Columns of a CSV file, by place, whose numbers pandas reads as ``_typed`` does; NaN: blank."""
    columns = {at: frame.iloc[:, at].to_numpy() for at, kind in enumerate(frame.dtypes) if kind in (np.int64, np.float64)}
    return {at: values for at, values in columns.items() if values.dtype == np.int64 or _is_sure(values)}


def _is_sure(values: NDArray[np.float64]) -> bool:
    """Whether none has more than 64 bits and, where a cell is blank, one has a fraction: the others may be whole numbers else."""
    told = values[~np.isnan(values)]
    fit = bool((np.abs(told) < 2**63).all())
    return fit and (len(told) == len(values) or bool((told % 1 != 0).any()))


def _of_words(path: Path, sure: Mapping[int, NDArray[Any]]) -> CaseTable:
    """A CSV file by its cells; the columns of which ``sure`` has the numbers by those."""
    import pyarrow as pa

    rows = csv_rows(path)
    names = _named(next(rows))
    by_words = [at for at in range(len(names)) if at not in sure]
    parts = ([row[at] for at in by_words] for row in rows) if sure else rows
    cells = list(chain.from_iterable(parts)) if by_words else []
    columns = {at: _of_numbers(values) for at, values in sure.items()}
    columns |= {at: _typed(cells[place :: len(by_words)]) for place, at in enumerate(by_words)}
    table = pa.table({name: columns[at][1] for at, name in enumerate(names)})
    return CaseTable(table, {name: columns[at][0] for at, name in enumerate(names)})


def _of_numbers(numbers: NDArray[Any]) -> tuple[list[Any], pa.Array]:
    """The values of a column, None where it is NaN, and the column."""
    absent = np.isnan(numbers)
    values = numbers.tolist()
    return [None if math.isnan(value) else value for value in values] if absent.any() else values, arrow.numbers(numbers, absent)


def _typed(words: Sequence[str]) -> tuple[list[Any], pa.Array]:
    """The values of a column, None where it is blank, and the column."""
    blank = "" in words
    kind, values = _meant(words, blank)
    if kind is str:
        return values, arrow.texts(values)
    if kind is bool:
        return values, arrow.numbers(np.array(values, np.bool_), np.array([value is None for value in values]))
    numbers: NDArray[Any] = np.array(values, np.float64 if blank else kind)
    return values, arrow.numbers(numbers, np.isnan(numbers) if blank else None)


def _meant(words: Sequence[str], blank: bool) -> tuple[type, list[Any]]:
    """What words mean: whole numbers, numbers, truth values or words, the first that all of them are; None where one is blank."""
    few = len(set(words[:SOME])) < SOME // 2
    told = [word for word in (dict.fromkeys(words) if few else words) if word] if few or blank else words
    kinds: dict[type, Callable[[Sequence[str]], Sequence[Any] | None]] = {int: _wholes, float: _numbers, bool: _truths, str: list}
    kind, values = next((kind, values) for kind, read in kinds.items() if (values := read(told)) is not None)
    if few:
        meant = dict(zip(told, values, strict=True))
        return kind, [meant.get(word) for word in words] if blank else [meant[word] for word in words]
    if blank:
        next_values = iter(values)
        return kind, [next(next_values) if word else None for word in words]
    return kind, list(values)


def _wholes(words: Sequence[str]) -> list[int] | None:
    """Whole numbers of 64 bits; None where a word is none."""
    try:
        values = list(map(int, words))  # ends at the first word that is none
    except ValueError:
        return None
    fit = not values or (min(values) >= -(2**63) and max(values) < 2**63)
    return values if fit and not _spaced(words) else None


def _numbers(words: Sequence[str]) -> list[float] | None:
    """Numbers; None where a word is none: nan is a word, and a whole number of more than 64 bits is a name that has digits alone."""
    try:
        values = list(map(float, words))
    except ValueError:
        return None
    size = np.abs(np.array(values))
    if np.isnan(size).any() or _spaced(words):
        return None
    wide = (words[at] for at in np.flatnonzero(size >= 2**63).tolist())
    return None if any(word.strip().lstrip("+-").isdigit() for word in wide) else values


def _truths(words: Sequence[str]) -> list[bool] | None:
    """Truth values; None where a word is none."""
    return [TRUTH[word] for word in words] if TRUTH.keys() >= set(words) else None


def _spaced(words: Sequence[str]) -> bool:
    """Whether a word has an underscore, which Python takes between the digits of a number."""
    return "_" in "".join(words)


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, or what pandas has in their place."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))
