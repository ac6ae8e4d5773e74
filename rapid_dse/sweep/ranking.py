"""Ranking: the best rows of a result table, and what became of the others."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.sweep import arrow

if TYPE_CHECKING:
    import pyarrow as pa

# Of these more is better; of all others less.
MORE_IS_BETTER = frozenset({"tokens_per_s", "tokens_per_s_per_gpu", "requests_per_s", "mfu"})


def descending(by: str) -> bool:
    """Whether the best row has the largest value: of rates, and of what a leading '-' turns around (as in search.objectives)."""
    return by.startswith("-") or by in MORE_IS_BETTER


def require_name(by: str, names: Sequence[str], key: str) -> str:
    """The column that ``by`` names among ``names``.

    Raises:
        ValueError: where there is none, with the nearest; ``key`` is the option that gave it.
    """
    name = by.removeprefix("-")
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(names)}"
    raise ValueError(f"{key}={by}: no column of numbers{hint}")


def require_key(key: str, names: Sequence[str], option: str) -> None:
    """Raises ``ValueError`` where ``key``, the value of ``option``, is none of the override keys ``names``, with the nearest."""
    if key not in names:
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(names)}"
        raise ValueError(f"{option}={key}: no override key of the results{hint}")


def numbers(schema: pa.Schema) -> list[str]:
    """The columns that can rank."""
    import pyarrow as pa

    return [f.name for f in schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]


def best(table: pa.Table, by: str, top: int) -> pa.Table:
    """The ``top`` best rows by a column, best first: what fits before what does not; rows without a value are left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    name = require_name(by, numbers(table.schema), "by")
    table = table.filter(pc.is_finite(table[name].cast(pa.float64())))
    order = "descending" if descending(by) else "ascending"
    if len(table) > 4 * top:  # a partial sort of what fits, then of the rest only if it is needed
        fitting = table.filter(table["fits"])
        table = fitting if len(fitting) >= top else table
    ranked = pc.sort_indices(
        pa.table({"fits": table["fits"].cast(pa.int8()), "by": table[name]}), sort_keys=[("fits", "descending"), ("by", order)]
    )
    return table.take(ranked[:top])


def counts(table: pa.Table) -> tuple[Counter[str], Counter[str]]:
    """How many rows have which status, and how many of those that were rejected have which reason."""
    return _counted(table["status"]), _counted(table["reason"])


def _counted(column: pa.ChunkedArray) -> Counter[str]:
    """How many rows have each text, in the order in which they come in."""
    codes, names = arrow.encoded(column)
    rows, first = np.bincount(codes, minlength=len(names)), np.zeros(len(names), np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of a text that comes again, the first row is set last
    counted: Counter[str] = Counter()
    for kind in sorted(np.flatnonzero(rows).tolist(), key=first.tolist().__getitem__):
        counted.update({names[kind]: int(rows[kind])})
    del counted[None]  # rows without one
    return counted


def ranked_first(table: pa.Table, by: str, most: int) -> pa.Table:
    """The ``most`` first rows by a column, whether they fit or not; all of them, in their order, where there are no more."""
    import pyarrow.compute as pc

    if len(table) <= most:
        return table
    name = require_name(by, numbers(table.schema), "by")
    order = "descending" if descending(by) else "ascending"
    return table.take(pc.sort_indices(table, sort_keys=[(name, order)])[:most])
