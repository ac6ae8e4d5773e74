"""The ladder of fidelity: the best rows of a sweep, priced again by an event-driven backend, and what that does to their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.config.run import Search
from rapid_dse.sweep import identity, ranking, store, workers
from rapid_dse.sweep.chunks import Chunk, chunks_of, rows_of, take
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.snapshots import find
from rapid_dse.sweep.standing import Aim

if TYPE_CHECKING:
    import pyarrow as pa

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Refined:
    """Rows priced twice, in the order of the second price.

    Attributes:
        rows: the second prices, best first; what could not be priced again comes last, with the first price.
        first: the first price of each row, in the same order, ``(n_rows,)``.
        places: the rank of each row by the first price, from 0, ``(n_rows,)``.
        failed: how many rows the second backend could not price.
        by: the column that ranks.
    """

    rows: pa.Table
    first: Sequence[float]
    places: Sequence[int]
    failed: int
    by: str

    @property
    def swapped(self) -> tuple[int, int]:
        """Pairs of rows whose order changed, and pairs in all; rows that failed are in none."""
        priced = self.places[: len(self.places) - self.failed]
        pairs = [(a, b) for i, a in enumerate(priced) for b in priced[i + 1 :]]
        return sum(a > b for a, b in pairs), len(pairs)


def refine(best: pa.Table, chunks: Sequence[Chunk], search: Search, folder: Path, aim: Aim, notice: Notice) -> Refined:
    """Prices the first ``search.refine`` rows of what fits again, at ``search.refine_backend``, and stores what comes out.

    Args:
        best: ranked rows, best first.
        chunks: where they come from.
        notice: is told what could not be priced.

    Raises:
        OSError: where a file cannot be written.
    """
    import pyarrow as pa

    fitting = best.filter(best["fits"])
    rows = (fitting if len(fitting) else best)[: search.refine]
    portions = [_refined_portion(*find(chunks, lanes), search) for lanes in store.key_lanes(rows["key"])]
    again = list(chunks_of(portions, folder, Aim(aim.by, len(portions))))
    refined = []
    for summary in workers.summaries(again, search.jobs, search.launcher, search.launcher_address):
        refined.append(pa.Table.from_pylist(rows_of(summary.files, summary.standing.lanes)))
        for reason, count in summary.failures.items():
            notice(f"{count:,} of the best cannot be priced by {search.refine_backend}: {reason}")
    keys = [identity.keys(portion.scenario, portion.layouts)[0].tobytes() for portion in portions]
    return _ordered(rows, refined, keys, aim.by)


def _refined_portion(portion: Portion, row: int, search: Search) -> Portion:
    """The one layout of a portion under the refining backend."""
    one = take(portion, np.array([row]))
    name = search.refine_backend
    backend = portion.scenario.backend.model_copy(update={"name": name})
    return replace(one, scenario=portion.scenario.model_copy(update={"backend": backend}), choices={**portion.choices, "backend": name})


def _ordered(rows: pa.Table, refined: Sequence[pa.Table], keys: Sequence[bytes], by: str) -> Refined:
    import pyarrow as pa

    name = by.removeprefix("-")
    rows, second = _decoded(rows), _decoded(pa.concat_tables(refined, promote_options="permissive"))
    at = {lanes.tobytes(): row for row, lanes in enumerate(store.key_lanes(second["key"]))}
    places = [place for place, key in enumerate(keys) if key in at]
    values = np.array([second[name][at[keys[place]]].as_py() for place in places], float)
    ranked = np.argsort(-values if ranking.descending(by) else values, kind="stable")
    order = [places[i] for i in ranked.tolist()]
    failed = [place for place in range(len(keys)) if keys[place] not in at]
    taken = second.take(pa.array([at[keys[place]] for place in order], pa.int64())), rows.take(pa.array(failed, pa.int64()))
    # a few rows; those of a grid and of a study have their texts in columns of different types
    parts = [pa.Table.from_pylist(part.to_pylist()) for part in taken]
    first = [rows[name][place].as_py() for place in (*order, *failed)]
    return Refined(pa.concat_tables(parts, promote_options="permissive"), first, (*order, *failed), len(failed), by)


def _decoded(table: pa.Table) -> pa.Table:
    """Texts as they are: rows of a study and rows of a sweep hold them in different ways."""
    import pyarrow as pa

    kinds = [f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in table.schema]
    return table.cast(pa.schema([pa.field(f.name, kind) for f, kind in zip(table.schema, kinds, strict=True)]))
