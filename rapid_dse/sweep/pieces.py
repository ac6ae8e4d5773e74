"""Results file by file, so that a table of millions of rows is looked at in little memory, and in a processor's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.sweep import arrow, store
from rapid_dse.sweep.identity import Lanes

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Piece:
    """The rows of one file that count.

    Attributes:
        path: the file.
        schema: of all pieces.
        kept: which of its rows no other file's answer later, ``(n_rows,)``.
        content: what it holds, where that cannot be read by columns (CSV).
    """

    path: Path
    schema: pa.Schema
    kept: NDArray[np.bool_]
    content: pa.Table | None = None

    def __len__(self) -> int:
        return int(self.kept.sum())

    def read(self, wanted: Sequence[str] | None = None) -> pa.Table:
        """The rows with these columns, in the order of ``schema``; None: with all. Those that there are not are left out.

        Raises:
            ValueError: where the file has changed.
        """
        import pyarrow as pa

        names = [name for name in self.schema.names if wanted is None or name in wanted]
        schema = pa.schema([self.schema.field(name) for name in names])
        table = self._table([*names, self.schema.names[0]])  # a table of no columns has no rows
        present = table.select([name for name in names if name in table.column_names]).replace_schema_metadata(None)
        if len(table) != len(self.kept):
            raise ValueError(f"{self.path}: was written anew while it was read; the same command reads it again")
        if not present.schema.equals(schema):
            present = pa.table({name: present[name] if name in present.column_names else pa.nulls(len(table)) for name in names}).cast(
                schema
            )
        return present if self.kept.all() else present.filter(arrow.numbers(self.kept))

    def _table(self, names: Sequence[str]) -> pa.Table:
        if self.content is not None:
            return self.content
        try:
            return store.read_file(self.path, names, sealed=False)
        except store.Damaged as error:
            raise ValueError(f"{error}; the same command prices its rows again") from None


def pieces_of(source: Path, report: store.Report) -> list[Piece]:
    """The files under ``source`` by their age; of rows for one configuration those of ``store.latest`` are kept.

    What cannot be read is reported and left out.

    Raises:
        ValueError: where nothing can be read, or columns of one name hold things of several kinds.
    """
    pieces: list[tuple[Piece, Lanes | None]] = []
    damaged = []
    reads = store.read_file if source.is_file() else store.read_own
    for path in store.files_of(source):
        try:
            whole = path.suffix.lower() == ".csv"
            keys = reads(path, None if whole else ["key"])
            piece = Piece(path, keys.schema if whole else store.schema_of(path), np.ones(len(keys), bool), keys if whole else None)
        except store.Damaged as error:
            damaged.append(str(error))
            continue
        pieces.append((piece, store.configurations(keys) if "key" in keys.column_names else None))
    if not pieces:
        raise store.nothing_read(source, damaged)
    pieces.sort(key=lambda piece: store.age(piece[0].schema))
    schema = store.unified([piece.schema for piece, _ in pieces])
    lanes = [lanes for _, lanes in pieces if lanes is not None]
    kept = store.kept_rows(lanes) if len(lanes) == len(pieces) else [piece.kept for piece, _ in pieces]
    for line in damaged:
        report(line)
    return [replace(piece, schema=schema, kept=rows) for (piece, _), rows in zip(pieces, kept, strict=True)]


def rows_at(pieces: Sequence[Piece], places: NDArray[Any], wanted: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows by their place among those of all pieces, ``(n_places,)``, with columns as of ``Piece.read``."""
    ends = np.cumsum([len(piece) for piece in pieces])
    of = np.searchsorted(ends, places, side="right")
    rows: dict[int, dict[str, Any]] = {}
    for at in np.unique(of).tolist():
        table, mine = pieces[at].read(wanted), places[of == at]
        own = (mine - (ends[at] - len(pieces[at]))).astype(np.int64)
        rows |= dict(zip(mine.tolist(), table.take(arrow.numbers(own)).to_pylist(), strict=True))
    return [rows[place] for place in places.tolist()]
