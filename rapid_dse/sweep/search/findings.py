"""What a study has found, in a terminal: the best layouts or the front, the best of each chip variant, counts, the proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.sweep import arrow, listing, ranked, ranking, show, standing
from rapid_dse.sweep.portion import Priceable
from rapid_dse.sweep.search.aims import Aims
from rapid_dse.sweep.show import Listed
from rapid_dse.sweep.standing import Aim

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

_VARIANTS = 50  # more variants than this are no table that anyone reads
_NEEDED = {
    **dict.fromkeys(("reason", "status"), "string"),
    "fits": "bool",
    **dict.fromkeys(("step_time_s", "peak_memory_bytes", "cost_usd", "mfu", "tokens_per_s_per_gpu"), "float64"),
}


@dataclass(frozen=True)
class Found:
    """Rows of a study that may win: the feasible ones, or all where none is (``feasible`` false)."""

    rows: pa.Table
    feasible: bool

    @classmethod
    def of(cls, rows: pa.Table, feasible: Sequence[bool]) -> Found:
        """The rows that count, each once."""
        import pyarrow.compute as pc

        first: dict[str, int] = {}
        for at, (key, fits) in enumerate(zip(rows["key"].to_pylist(), feasible, strict=True)):
            if fits:
                first.setdefault(key, at)
        rows = _complete(rows)
        if first:
            return cls(rows.take(arrow.numbers(np.array(list(first.values()), np.int64))), True)
        return cls(rows.filter(pc.is_valid(rows["step_time_s"])), False)


def _complete(rows: pa.Table) -> pa.Table:
    """With the columns that a ranking reads: rows whose trials all failed may lack them."""
    import pyarrow as pa

    for name, kind in _NEEDED.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), pa.type_for_alias(kind)))
    return rows


def front_of(rows: pa.Table, aims: Aims) -> pa.Table:
    """The rows that no other is better than in every objective, by the first objective; of equal rows the first.

    A row without a value of an objective is none of them.
    """
    losses = _losses(rows, aims)
    order = np.lexsort(losses.T[::-1])
    front: list[int] = []
    for at in order[~np.isnan(losses[order]).any(axis=1)]:
        if not (losses[front] <= losses[at]).all(axis=1).any():
            front.append(int(at))
    return rows.take(arrow.numbers(np.array(front, np.int64)))


def _losses(rows: pa.Table, aims: Aims) -> NDArray[np.float64]:
    """The objectives, less is better, NaN where there is none, ``(n_rows, n_objectives)``."""
    return np.stack([(-1.0 if aim.descending else 1.0) * standing.numbers(rows, aim.name) for aim in aims.objectives], axis=1)


def report(out: Console, findings: Found, aims: Aims, aim: Aim, trial: Callable[[ranked.Row], Priceable]) -> None:
    """Prints tables.

    Args:
        aim: what the table is after; its varying keys are those outside the layout that the study searched.
        trial: what stands behind a row.
    """
    if not len(findings.rows):
        return
    if len(aims.objectives) > 1 and findings.feasible:
        front = front_of(findings.rows, aims)
        names = " against ".join(objective.text for objective in aims.objectives)
        listing.say(out, f"the front of {names}: {len(front):,} layouts")
        show.show_rows(out, Listed(front[: aim.top].to_pylist(), aim.by, aim.varying))
    if len(aims.objectives) == 1 or not findings.feasible or aim.best_per is not None:
        _ranked(out, findings, aim, trial)
    outer = [key for key in aim.varying if not key.startswith("workload.global_batch_size")]
    best = _best_by_variant(findings.rows, aims, outer) if findings.feasible else findings.rows[:0]
    if 1 < len(best) <= _VARIANTS:
        listing.say(out, "")
        listing.say(out, f"the best layout for each of {len(best)} variants:")
        rows = ranking.best(best, aim.by, len(best)).to_pylist()
        show.show_rows(out, Listed(rows, aim.by, aim.varying))


def _ranked(out: Console, findings: Found, aim: Aim, trial: Callable[[ranked.Row], Priceable]) -> None:
    """The best of the rows that count; where none does, of all."""
    table = findings.rows
    lanes = standing.place_lanes(len(table))
    stood = standing.standing_of(table, aim, _usable(table, aim, trial), lanes)
    if not findings.feasible:
        listing.say(out, "no layout meets all constraints; these do not:")
    source = ranked.Source(lambda lanes: standing.rows_at(table, lanes), trial, "search.each=true")
    ranked.show_ranking(out, stood, aim, source)


def _usable(table: pa.Table, aim: Aim, trial: Callable[[ranked.Row], Priceable]) -> NDArray[np.float64]:
    """hw.memory.usable of each row, bytes, ``(n_rows,)``; looked up once for rows that agree in what it depends on."""
    codes, _ = standing.combinations_of(table, [key for key in aim.varying if key in standing.OF_USABLE])
    _, first, of = np.unique(codes, return_index=True, return_inverse=True)
    usable_bytes = [trial({"key": table["key"][int(at)].as_py()}).scenario.hw.memory.usable for at in first]
    return np.array(usable_bytes, np.float64)[of]


def _best_by_variant(rows: pa.Table, aims: Aims, outer: Sequence[str]) -> pa.Table:
    """The best row by the first objective of each combination of the ``outer`` keys."""
    if not outer:
        return rows[:0]
    loss, best = _losses(rows, aims)[:, 0], dict[tuple[Any, ...], int]()
    columns = [rows[key].to_pylist() if key in rows.column_names else [None] * len(rows) for key in outer]
    for at, name in enumerate(zip(*columns, strict=True)):
        if name not in best or loss[at] < loss[best[name]]:
            best[name] = at
    return rows.take(arrow.numbers(np.array(list(best.values()), np.int64)))
