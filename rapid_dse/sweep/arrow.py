"""Arrow columns from numpy columns, by their buffers.

``pyarrow.array`` and ``pyarrow.scalar`` import pandas (0.25 s) to find out whether what they are given is a series. A sweep needs no
pandas, so it makes its columns here; numbers are not copied either.
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


def numbers(values: NDArray[Any], absent: NDArray[np.bool_] | None = None) -> pa.Array:
    """Numbers or truth values; null where ``absent``, both ``(n_rows,)``."""
    import pyarrow as pa

    valid = None if absent is None or not absent.any() else _bits(~absent)
    data = _bits(values) if values.dtype == np.bool_ else pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, data])


def _bits(truth: NDArray[np.bool_]) -> pa.Buffer:
    import pyarrow as pa

    return pa.py_buffer(np.packbits(truth, bitorder="little"))


def texts(values: Sequence[str]) -> pa.Array:
    """A column of texts."""
    return _few_texts(tuple(values)) if len(values) <= FEW else _texts(values)


@lru_cache(maxsize=256)
def _few_texts(values: tuple[str, ...]) -> pa.Array:
    """What the texts of statuses, reasons and options are, table after table."""
    return _texts(values)


def _texts(values: Sequence[str]) -> pa.Array:
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *(len(value) for value in encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


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
    for chunk in column.chunks:
        whole = chunk.cast(pa.int8()) if pa.types.is_boolean(chunk.type) else chunk
        values = whole.cast(pa.float64(), safe=False)
        end = values.offset + len(values)
        numbers = np.frombuffer(values.buffers()[1], np.float64)[values.offset : end] if len(values) else np.zeros(0)
        if values.null_count:
            valid = np.unpackbits(np.frombuffer(values.buffers()[0], np.uint8), bitorder="little")[values.offset : end]
            numbers = np.where(valid == 1, numbers, np.nan)
        parts.append(numbers)
    return np.concatenate(parts)


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
