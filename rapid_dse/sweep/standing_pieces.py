"""How the rows of many files stand, read file by file: first what differs between them, then the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.parallel.layouts import COLUMN_OF
from rapid_dse.sweep import ranking, result_columns, show, standing
from rapid_dse.sweep.pieces import Piece
from rapid_dse.sweep.restored import is_override, memory_keys, usable_by

if TYPE_CHECKING:
    import pyarrow as pa

# What a row's standing is told from, beside override keys and what an aim names.
_RESULTS = ("status", "reason", "fits", "step_time_s", "peak_memory_bytes", "mfu", "expected_error", "outside")


class StandingPieces:
    """Pieces of a study, or of several.

    Attributes:
        varying: override keys outside the layout that differ between priced rows.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        names = pieces[0].schema.names
        keys, self._memory = standing.outer_keys(names, show.SECTIONS), memory_keys(names)
        values: dict[str, set[str]] = {key: set() for key in keys}
        labels: dict[standing.Label, None] = {}
        self._all_fit = True
        for piece in pieces:
            table = self._read(piece, [*keys, *self._memory, "status", "reason", "step_time_s", "fits"])
            for key, distinct in standing.distinct_values(table, keys).items():
                values[key] |= distinct
            labels |= dict.fromkeys(standing.combinations_of(table, self._memory)[1])
            self._all_fit &= bool((standing.numbers(table, "fits") != 0).all())
        self._labels = list(labels)
        self.varying = [key for key, distinct in values.items() if len(distinct) > 1]

    def standing(self, aim: standing.Aim) -> tuple[standing.Standing, Counter[str], Counter[str]]:
        """How the rows stand, each told by its place among all; and how many rows have which status, and which reason."""
        names = [name for name in self._pieces[0].schema.names if is_override(name) or name in COLUMN_OF]
        wanted = [
            *names,
            *_RESULTS,
            aim.by.removeprefix("-"),
            *(constraint.name for constraint in aim.constraints),
            aim.best_per or "status",
        ]
        usable = usable_by(self._labels) if aim.headroom or not self._all_fit else None
        parts, status, reasons, start = [], Counter[str](), Counter[str](), 0
        for piece in self._pieces:
            table = self._read(piece, wanted)
            lanes = standing.place_lanes(len(table))
            lanes[:, 0] += np.uint64(start)
            start += len(table)
            codes, labels = standing.combinations_of(table, self._memory)
            capacities = None if usable is None else np.array([usable[label] for label in labels])[codes]
            parts.append(standing.standing_of(table, aim, capacities, lanes))
            for counter, more in zip((status, reasons), ranking.counts(table), strict=True):
                counter.update(more)
        return standing.together(parts, aim), status, reasons

    @staticmethod
    def _read(piece: Piece, wanted: Sequence[str]) -> pa.Table:
        return result_columns.require_results(piece.read(wanted), piece.path)
