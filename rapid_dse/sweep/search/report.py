"""What a study has found, in a terminal: the best layouts or the front, the best of each chip variant, counts, the proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rapid_dse.sweep import ranking, show
from rapid_dse.sweep.search.aims import Aims
from rapid_dse.sweep.search.answers import Row

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

_VARIANTS = 50  # more variants than this are no table that anyone reads


@dataclass(frozen=True)
class Found:
    """Rows of a study that may win: the feasible ones, or all where none is (``feasible`` false)."""

    rows: Sequence[Row]
    feasible: bool

    @classmethod
    def of(cls, rows: Sequence[Row], feasible: Sequence[bool]) -> Found:
        """The rows that count."""
        kept = list({row["key"]: row for row, fits in zip(rows, feasible, strict=True) if fits}.values())
        return cls(kept, True) if kept else cls([row for row in rows if row.get("step_time_s") is not None], False)


def table_of(rows: Sequence[Row]) -> pa.Table:
    """A table of rows that may lack some columns."""
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    needed = ("reason", "fits", "status", "step_time_s", "peak_memory_bytes", "cost_usd", "mfu", "tokens_per_s_per_gpu")
    return pa.table({name: [row.get(name) for row in rows] for name in dict.fromkeys([*names, *needed])})


def front_of(rows: Sequence[Row], aims: Aims) -> list[Row]:
    """The rows that no other is better than in every objective, by the first objective; of equal rows the first."""
    losses = np.array([aims.losses(row) for row in rows])
    order = np.lexsort(losses.T[::-1])
    front: list[int] = []
    for at in order:
        if not any((losses[other] <= losses[at]).all() for other in front):
            front.append(int(at))
    return [rows[at] for at in front]


def report(out: Console, found: Found, aims: Aims, outer: Sequence[str], top: int) -> pa.Table | None:
    """Prints tables; the ranked rows, best first (None where there are none).

    Args:
        outer: keys outside the layout that the study searched.
        top: rows to show.
    """
    if not found.rows:
        return None
    by = aims.objectives[0]
    several = len(aims.objectives) > 1 and found.feasible
    rows = table_of(front_of(found.rows, aims)) if several else ranking.best(table_of(found.rows), by.text, len(found.rows))
    if several:
        names = " against ".join(objective.text for objective in aims.objectives)
        out.print(f"the front of {names}: {len(rows):,} layouts", highlight=False, markup=False)
    if not found.feasible:
        out.print("no layout meets all constraints; these do not:", highlight=False, markup=False)
    out.print(show.ranked_table(rows[:top], by.text))
    best = _best_by_variant(found.rows, aims, outer) if found.feasible else []
    if 1 < len(best) <= _VARIANTS:
        out.print(f"\nthe best layout for each of {len(best)} variants:", highlight=False, markup=False)
        out.print(show.ranked_table(ranking.best(table_of(best), by.text, len(best)), by.text))
    return rows


def _best_by_variant(rows: Sequence[Row], aims: Aims, outer: Sequence[str]) -> list[Row]:
    """The best row by the first objective of each combination of the ``outer`` keys."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        name = tuple(row.get(key) for key in outer)
        if name not in best or aims.losses(row)[0] < aims.losses(best[name])[0]:
            best[name] = row
    return list(best.values()) if outer else []


def counts(rows: Sequence[Mapping[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """How many rows have which status, and which reason."""
    return Counter(row["status"] for row in rows), Counter(row["reason"] for row in rows if row.get("reason"))
