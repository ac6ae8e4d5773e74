"""Which columns a table of results must have, and what each may hold."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from rapid_dse.simulate.results import Priced
from rapid_dse.sweep import arrow

_NUMBERS = frozenset({*(field.name for field in fields(Priced)), "expected_error", "elapsed_s"} - {"fits"})
_OF_KIND = {"texts": ("status", "reason"), "true and false": ("fits",), "numbers": _NUMBERS}


def require_results(table: Any, source: Path) -> Any:
    """The table, in which ``fits`` is true or false.

    Raises:
        ValueError: as ``require_columns``.
    """
    import pyarrow as pa

    require_columns(table.schema, source)
    return table.set_column(table.column_names.index("fits"), "fits", table["fits"].cast(pa.bool_()))


def require_columns(schema: Any, source: Path) -> None:
    """Requires the columns of results.

    Raises:
        ValueError: where the schema lacks columns that a ranking needs, or one holds what it cannot.
    """
    missing = [name for name in ("status", "reason", "fits", "step_time_s") if name not in schema.names]
    if missing:
        raise ValueError(f"{source}: no results of rapid_dse, lacks {', '.join(missing)}; allowed: what a sweep or evaluate wrote")
    if wrong := arrow.wrong_column(schema, _OF_KIND):
        raise ValueError(f"{source}: {wrong}, as a sweep or evaluate writes them")
