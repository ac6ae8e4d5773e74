"""Arrow columns from numpy columns and back, by their buffers.

``pyarrow.array`` and ``pyarrow.scalar`` import pandas (0.25 s) to find out whether what they are given is a series, and whatever computes
(``cast``, ``is_null``, ``take``) imports ``pyarrow.compute``, which makes 300 functions (0.05 s). A small sweep needs neither: it makes and
reads its columns here; numbers are not copied either.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


FEW = 16  # texts at most that are kept as columns
MOST_SORTED = 10_000  # numbers whose distinct values are found by sorting them, where Arrow's table of hashes is not imported yet
# NumPy's kind of Arrow's numbers, by Arrow's name.
_KINDS = {"double": "float64", "float": "float32"} | {name: name for size in (8, 16, 32, 64) for name in (f"int{size}", f"uint{size}")}


def numbers(values: NDArray[Any], absent: NDArray[np.bool_] | None = None) -> pa.Array:
    """Numbers or truth values; null where ``absent``, both ``(n_rows,)``."""
    import pyarrow as pa

    valid = None if absent is None or not absent.any() else _bits(~absent)
    data = _bits(values) if values.dtype == np.bool_ else pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, data])


def _bits(truth: NDArray[np.bool_]) -> pa.Buffer:
    import pyarrow as pa

    return pa.py_buffer(np.packbits(truth, bitorder="little"))


def texts(values: Sequence[str | None]) -> pa.Array:
    """A column of texts, null where one is None."""
    return _few_texts(tuple(values)) if len(values) <= FEW else _texts(values)


@lru_cache(maxsize=256)
def _few_texts(values: tuple[str | None, ...]) -> pa.Array:
    """What the texts of statuses, reasons and options are, table after table."""
    return _texts(values)


def _texts(values: Sequence[str | None]) -> pa.Array:
    import pyarrow as pa

    encoded = [b"" if value is None else value.encode() for value in values]
    offsets = np.cumsum([0, *(len(value) for value in encoded)], dtype=np.int32)
    valid = _bits(np.array([value is not None for value in values])) if None in values else None
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)), valid)


def fixed_texts(codes: NDArray[np.uint8]) -> pa.Array:
    """A column of texts of one length from their bytes, ``(n_rows, length)``."""
    import pyarrow as pa

    rows, length = codes.shape
    offsets = np.arange(0, length * rows + 1, length, dtype=np.int32)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(codes))


def coded(codes: NDArray[Any], values: Sequence[str]) -> pa.Array:
    """Texts by their index in ``values``, dictionary-encoded; a negative index is null."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(numbers(codes.astype(np.int32, copy=False), codes < 0), texts(values))


def repeated(text: str, n_rows: int) -> pa.Array:
    """One text in every row, dictionary-encoded."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(_first_codes(n_rows), texts([text]))


@lru_cache(maxsize=4)
def _first_codes(n_rows: int) -> pa.Array:
    """The code of the first text in every row, of all columns of a table that have one text."""
    return numbers(np.zeros(n_rows, np.int32))


def scalar(text: str) -> pa.Scalar:
    """A text to compare a column with."""
    return texts([text])[0]


def floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers or truth values as NumPy's, NaN where it is null, ``(n_rows,)``.

    By the buffers too: Arrow's own way of handing numbers to NumPy imports pandas.
    """
    import pyarrow as pa

    parts = [np.zeros(0)]
    for chunk in column.chunks if len(column) else ():
        values = chunk if str(chunk.type) in _KINDS or pa.types.is_boolean(chunk.type) else chunk.cast(pa.float64(), safe=False)
        numbers = (_truth(values, 1) if pa.types.is_boolean(values.type) else _values(values)).astype(np.float64, copy=False)
        parts.append(np.where(_truth(values, 0), numbers, np.nan) if values.null_count else numbers)
    return np.concatenate(parts)


def _values(numbers: pa.Array) -> NDArray[Any]:
    """An array of numbers as NumPy's, whatever stands where it is null."""
    return np.frombuffer(numbers.buffers()[1], _KINDS[str(numbers.type)])[numbers.offset : numbers.offset + len(numbers)]


def _truth(values: pa.Array, buffer: int) -> NDArray[np.bool_]:
    """The bits of one of an array's buffers, ``(n_rows,)``."""
    bits = np.frombuffer(values.buffers()[buffer], np.uint8)
    return np.unpackbits(bits, bitorder="little")[values.offset : values.offset + len(values)].astype(bool)


def absent(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Where a column is null, ``(n_rows,)``."""
    parts = [np.zeros(0, bool)]
    for chunk in column.chunks:
        some = 0 < chunk.null_count < len(chunk)
        parts.append(~_truth(chunk, 0) if some else np.full(len(chunk), chunk.null_count > 0))
    return np.concatenate(parts)


def are(column: pa.ChunkedArray, text: str) -> NDArray[np.bool_]:
    """Which rows have a text, ``(n_rows,)``."""
    codes, names = encoded(column)
    return np.array([name == text for name in names])[codes]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    import pyarrow as pa

    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else whole.chunk(0)


def encoded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[Any]]:
    """A column as indices into its values, ``(n_rows,)``, and those values; the last stands for nulls."""
    import pyarrow as pa

    whole = _whole(column)
    if str(whole.type) in _KINDS and not whole.null_count and 0 < len(whole) <= MOST_SORTED:
        values, at = np.unique(_values(whole), return_inverse=True)
        return at.astype(np.int64), [*values.tolist(), None]
    whole = whole if hasattr(whole, "dictionary") else whole.dictionary_encode()
    names = [*whole.dictionary.to_pylist(), None]
    index = floats(pa.chunked_array([whole.indices]))
    return np.where(np.isnan(index), len(names) - 1, index).astype(np.int64), names


def with_texts(column: pa.ChunkedArray, told: Mapping[int, str]) -> pa.Array:
    """A column of texts in which some rows have others."""
    codes, names = encoded(column)
    codes = np.where(codes == len(names) - 1, -1, codes)
    places = {name: at for at, name in enumerate(names[:-1])}
    for row, text in told.items():
        codes[row] = places.setdefault(text, len(places))
    return coded(codes, list(places))


def taken(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.Array:
    """Rows of a column, null where one is -1.

    By the buffers where these hold numbers, truth values, or codes of texts: Arrow's own way imports what computes.
    """
    import pyarrow as pa

    whole = _whole(column)
    if whole.null_count == len(whole):
        return pa.nulls(len(rows), column.type)
    absent = rows < 0
    if whole.null_count:
        absent |= ~_truth(whole, 0)[rows]
    if pa.types.is_dictionary(whole.type):
        codes = np.where(absent, -1, _values(whole.indices)[rows])
        return pa.DictionaryArray.from_arrays(numbers(codes, absent), whole.dictionary)
    if pa.types.is_boolean(whole.type):
        return numbers(_truth(whole, 1)[rows], absent)
    if str(whole.type) in _KINDS:
        return numbers(_values(whole)[rows], absent)
    if pa.types.is_string(whole.type) and len(whole) <= MOST_SORTED:
        values = [*whole.to_pylist(), None]
        return texts([values[row] for row in rows.tolist()])
    return whole.take(numbers(rows, rows < 0))


def wrong_column(schema: pa.Schema, expected: Mapping[str, Collection[str]]) -> str | None:
    """What is wrong with the first column that holds another kind than is expected of its name, or values of several parts."""
    for field in schema:
        holds = kind_of(field.type)
        wanted = next((kind for kind, names in expected.items() if field.name in names), None)
        if holds != "nothing" and (holds != wanted if wanted else holds == "values of several parts"):
            return f"column {field.name[:80]} holds {str(field.type)[:80]}; expected {wanted or 'single values'}"
    return None


def kind_of(column: pa.DataType) -> str:
    """What a column holds, in words; "nothing" where all of it is null."""
    import pyarrow.types as types

    value = column.value_type if types.is_dictionary(column) else column
    kinds = {
        "nothing": types.is_null,
        "true and false": types.is_boolean,
        "numbers": lambda kind: types.is_floating(kind) or types.is_integer(kind),
        "texts": lambda kind: types.is_string(kind) or types.is_large_string(kind),
        "values of several parts": types.is_nested,
    }
    return next((name for name, is_kind in kinds.items() if is_kind(value)), "something else")
