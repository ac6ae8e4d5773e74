"""What a study has found, in a terminal: the best layouts or the front, the best of each chip variant, counts, the proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rapid_dse.sweep import listing, ranked, ranking, show, standing
from rapid_dse.sweep.portion import Priceable
from rapid_dse.sweep.search.aims import Aims
from rapid_dse.sweep.search.answers import Row
from rapid_dse.sweep.show import Listed
from rapid_dse.sweep.standing import Aim

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


def report(out: Console, findings: Found, aims: Aims, aim: Aim, trial: Callable[[ranked.Row], Priceable]) -> None:
    """Prints tables.

    Args:
        aim: what the table is after; its varying keys are those outside the layout that the study searched.
        trial: what stands behind a row.
    """
    if not findings.rows:
        return
    if len(aims.objectives) > 1 and findings.feasible:
        front = front_of(findings.rows, aims)
        names = " against ".join(objective.text for objective in aims.objectives)
        listing.say(out, f"the front of {names}: {len(front):,} layouts")
        show.show_rows(out, Listed(front[: aim.top], aim.by, aim.varying))
    if len(aims.objectives) == 1 or not findings.feasible or aim.best_per is not None:
        _ranked(out, findings, aim, trial)
    outer = [key for key in aim.varying if not key.startswith("workload.global_batch_size")]
    best = _best_by_variant(findings.rows, aims, outer) if findings.feasible else []
    if 1 < len(best) <= _VARIANTS:
        listing.say(out, "")
        listing.say(out, f"the best layout for each of {len(best)} variants:")
        rows = ranking.best(table_of(best), aim.by, len(best)).to_pylist()
        show.show_rows(out, Listed(rows, aim.by, aim.varying))


def _ranked(out: Console, findings: Found, aim: Aim, trial: Callable[[ranked.Row], Priceable]) -> None:
    """The best of the rows that count; where none does, of all."""
    table = table_of(findings.rows)
    lanes = standing.place_lanes(len(table))
    usable = np.array([trial(row).scenario.hw.memory.usable for row in findings.rows])
    stood = standing.standing_of(table, aim, usable, lanes)
    if not findings.feasible:
        listing.say(out, "no layout meets all constraints; these do not:")
    source = ranked.Source(lambda lanes: standing.rows_at(table, lanes), trial, "search.each=true")
    ranked.show_ranking(out, stood, aim, source)


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
