"""All rows of a study for the page's own script: columns as codes of few values or as 32-bit floats, compressed together, as text."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.analysis.report.study_sections import axis_of
from rapid_dse.sweep import arrow, ranking, show, standing

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 200_000  # of a page; of more the best
_KEY_DIGITS = 12  # of a key, where so many tell all rows apart
_CODES = 65_536  # distinct values up to which a column is codes
_LEVEL = 6  # of zlib: higher ones take far longer for little


@dataclass(frozen=True)
class PackedRows:
    """Rows as text in base64: a header (JSON, its bytes' count before it, 32 bits), then the columns one after the other, in zlib's form.

    The header lists of each column its ``name``, how its bytes are laid out (``codes`` and ``width``; ``floats``; ``hex`` digits) and its
    distinct ``values``. Bytes of a column lie by place: all first bytes, then all second ones, which compresses better.
    """

    text: str
    rows: int
    of: int


def packed_rows(table: pa.Table, by: str) -> PackedRows:
    """The rows of a study, all of them or the best ``MOST_ROWS`` by a column.

    Args:
        table: as ``result_columns.require_results`` gives it.
    """
    some = ranking.best(table, by, MOST_ROWS) if len(table) > MOST_ROWS else table
    columns, parts = [], []
    for name in some.column_names:
        packed, content = _column(some, name)
        if content:
            columns.append({"name": name, **packed})
            parts.append(content)
    header = json.dumps(
        {"rows": len(some), "columns": columns, "axes": _axes(some), "layout": _layout(some), "more": sorted(ranking.MORE_IS_BETTER)}
    ).encode()
    whole = len(header).to_bytes(4, "little") + header + b"".join(parts)
    return PackedRows(base64.b64encode(zlib.compress(whole, _LEVEL)).decode(), len(some), len(table))


def _axes(table: pa.Table) -> dict[str, Any]:
    """Title and unit of each column that can be an axis."""
    axes = {name: axis_of(name) for name in ranking.numbers(table.schema)}
    return {name: {"title": axis.title, "unit": axis.unit} for name, axis in axes.items()}


def _layout(table: pa.Table) -> list[str]:
    """The override keys that differ between rows."""
    return standing.differing(table, show.SECTIONS)


def _column(table: pa.Table, name: str) -> tuple[dict[str, Any], bytes]:
    """How a column is laid out, and its bytes; none where it holds nothing."""
    import pyarrow as pa

    kind = table.schema.field(name).type
    if name == "key":
        return _keys(table[name])
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        codes, values = arrow.encoded(table[name])
        return _as_codes(codes, [None if value is None else str(value) for value in values])
    if pa.types.is_null(kind):
        return {}, b""
    numbers = standing.numbers(table, name).astype("<f4")
    distinct, codes = np.unique(numbers, return_inverse=True)
    whole = pa.types.is_boolean(kind)
    if len(distinct) <= _CODES:
        texts = [None if np.isnan(value) else bool(value) if whole else _shortest(value) for value in distinct]
        return _as_codes(codes, texts)
    return {"kind": "floats"}, _by_place(numbers)


def _shortest(value: np.float32) -> float:
    """The double with the fewest digits that is this 32-bit float."""
    return float(str(value))


def _as_codes(codes: NDArray[np.int64], values: Sequence[Any]) -> tuple[dict[str, Any], bytes]:
    used, codes = np.unique(codes, return_inverse=True)
    texts = [values[at] for at in used.tolist()]
    if all(value is None for value in texts):
        return {}, b""
    width = 1 if len(used) <= 256 else 2
    return {"kind": "codes", "width": width, "values": texts}, _by_place(codes.astype(f"<u{width}"))


def _keys(column: pa.ChunkedArray) -> tuple[dict[str, Any], bytes]:
    """The beginnings of keys that tell all rows apart; a row without a key has zeros."""
    keys = [key or "" for key in column.to_pylist()]
    digits = next((count for count in (_KEY_DIGITS, 16, 32) if len({key[:count] for key in keys}) == len(set(keys))), 32)
    content = bytes.fromhex("".join(key[:digits].ljust(digits, "0") for key in keys))
    return {"kind": "hex", "digits": digits}, content


def _by_place(values: NDArray[Any]) -> bytes:
    """The bytes of values, all first ones, then all second ones, and so on."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(len(values), -1).T).tobytes()
