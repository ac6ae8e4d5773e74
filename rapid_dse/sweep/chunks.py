"""The unit of work of a sweep: a chunk of layouts is priced, written to one file, and summed up in a few rows.

This is what workers run: a chunk goes in, a file is written, a ``Summary`` comes back, so that memory is bounded by the chunk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.sweep import arrow, identity, ranking, store
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.standing import Aim, Standing, standing_of
from rapid_dse.sweep.table import priced_table

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 50_000  # layouts of closed forms: 20 MB of columns
# What a layout costs with all columns and its share of a file, s; an order of magnitude, to choose chunks and workers by.
SECONDS_A_LAYOUT: Mapping[str, float] = {
    "analytical": 4e-6,
    "hybrid": 0.02,
    "full_astrasim_hierarchical": 0.2,
    "full_astrasim_flattened": 5.0,
}
_SECONDS_A_SIMULATION, _SECONDS_A_CHUNK = 0.1, 5.0


@dataclass(frozen=True)
class Chunk:
    """Layouts that share a file.

    Attributes:
        pieces: parts of portions that share their choices, in order.
        lanes: the keys of all their layouts, ``(n_layouts, 2)``.
        folder: the study's.
        others: files under other names that hold some of the keys.
        aim: what the ranking is after.
    """

    pieces: tuple[Portion, ...]
    lanes: identity.Lanes
    folder: Path
    aim: Aim
    others: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.lanes)

    @property
    def name(self) -> str:
        """The file's name without suffix: a hash of the keys."""
        return identity.digest_of(self.lanes)

    @property
    def own(self) -> Path:
        """The file that holds all of its rows, where one does."""
        return self.folder / f"{self.name}{store.SUFFIX}"


@dataclass(frozen=True)
class Summary:
    """What became of a chunk: rows in all and newly priced, counts, how the rows stand, and what the user should hear of.

    ``files`` are those that hold the rows.
    """

    rows: int
    priced: int
    status: Counter[str]
    reasons: Counter[str]
    standing: Standing
    failures: Counter[str]
    notices: tuple[str, ...]
    files: tuple[Path, ...]


def seconds_a_layout(portion: Portion) -> float:
    """What pricing a layout of the portion takes, roughly, s."""
    return seconds_of(portion.scenario)


def seconds_of(scenario: Scenario) -> float:
    """What pricing a layout of the scenario takes, roughly, s."""
    return SECONDS_A_LAYOUT.get(scenario.backend.name, _SECONDS_A_SIMULATION)


def chunks_of(portions: Sequence[Portion], folder: Path, aim: Aim) -> Iterator[Chunk]:
    """Cuts portions into chunks; small neighbours with the same choices share one file."""
    waiting: list[Portion] = []
    for portion in portions:
        size = max(1, min(CHUNK, int(_SECONDS_A_CHUNK / seconds_a_layout(portion))))
        for start in range(0, len(portion.layouts), size):
            piece = take(portion, slice(start, start + size))
            waiting_rows = sum(len(other.layouts) for other in waiting)
            if waiting and (waiting_rows + len(piece.layouts) > size or waiting[0].choices != piece.choices):
                yield _chunk(waiting, folder, aim)
                waiting = []
            waiting.append(piece)
    if waiting:
        yield _chunk(waiting, folder, aim)


def _chunk(pieces: Sequence[Portion], folder: Path, aim: Aim) -> Chunk:
    lanes = np.concatenate([identity.keys(piece.scenario, piece.layouts) for piece in pieces])
    return Chunk(tuple(pieces), lanes, folder, aim)


def take(portion: Portion, rows: NDArray[Any] | slice) -> Portion:
    """The portion with the layouts at ``rows``; what was left out of the enumeration is counted once, so not here."""
    return replace(portion, layouts=portion.layouts.take(rows), rule=portion.rule[rows], rejected={})


def run_chunk(chunk: Chunk) -> Summary:
    """Makes sure that every layout of a chunk is in the store, pricing only what is missing.

    Raises:
        OSError: where the file cannot be written.
        Exception: what pricing raised, where search.fail_fast is set.
    """
    stored, notices = _stored(chunk)  # moves what is damaged out of the way
    missing = _missing(chunk.lanes, stored)
    tables, files = list(stored), [chunk.own] if chunk.own.exists() else list(chunk.others)
    if missing.any():
        new = _priced(chunk, missing)
        tables.append(new)
        own = not chunk.others or bool(missing.all())
        whole = store.latest(tables) if own else new
        name = chunk.name if own else identity.digest_of(chunk.lanes[missing])
        written = store.write(chunk.folder, whole, store.configuration_json(chunk.pieces[0].scenario), name)
        files = [written] if own else [*files, written]
    table = tables[0] if len(tables) == 1 else store.latest(tables)
    return _summary(chunk, table, int(missing.sum()), notices, files)


def _stored(chunk: Chunk) -> tuple[list[pa.Table], tuple[str, ...]]:
    """Rows of the chunk that are stored and did not fail, and what is wrong with files that should have held them."""
    own = chunk.own
    tables, notices = [], []
    for path in [own] if own.exists() else chunk.others:
        try:
            table = store.read_own(path)
            good = ~arrow.are(table["status"], "error")
            good &= path == own or contained(store.key_lanes(table["key"]), chunk.lanes)
            tables.append(table if good.all() else table.filter(arrow.numbers(good)))
        except store.Damaged as error:
            notices.append(f"{error}; its rows are priced again")
            store.set_aside(path)
    return [table for table in tables if len(table)], tuple(notices)


def _missing(lanes: identity.Lanes, stored: Sequence[pa.Table]) -> NDArray[np.bool_]:
    """Which keys no table holds, ``(n_layouts,)``."""
    if not stored:
        return np.ones(len(lanes), bool)
    if len(stored) == 1 and len(stored[0]) == len(lanes):
        known = store.key_lanes(stored[0]["key"])
        if (known == lanes).all():
            return np.zeros(len(lanes), bool)
    return ~contained(lanes, np.concatenate([store.key_lanes(table["key"]) for table in stored]))


def contained(lanes: identity.Lanes, among: identity.Lanes) -> NDArray[np.bool_]:
    """Which rows of ``lanes`` are also rows of ``among``, ``(n_rows,)``."""
    whole = np.dtype([("high", np.uint64), ("low", np.uint64)])
    sought, right = (np.ascontiguousarray(side).view(whole).ravel() for side in (lanes, among))
    inside: NDArray[np.bool_] = np.isin(sought, right)
    return inside


def _priced(chunk: Chunk, missing: NDArray[np.bool_]) -> pa.Table:
    import pyarrow as pa

    tables, start = [], 0
    for piece in chunk.pieces:
        rows = missing[start : start + len(piece.layouts)]
        start += len(piece.layouts)
        if rows.any():
            tables.append(priced_table(piece if rows.all() else take(piece, rows)))
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")


def _summary(chunk: Chunk, table: pa.Table, priced: int, notices: tuple[str, ...], files: Sequence[Path]) -> Summary:
    status, reasons = ranking.counts(table)
    failed = ranking.counts(table.filter(arrow.numbers(arrow.are(table["status"], "error"))))[1] if status["error"] else Counter()
    lanes = store.key_lanes(table["key"])
    standing = standing_of(table, chunk.aim, _usable(chunk, lanes), lanes)
    return Summary(len(table), priced, status, reasons, standing, failed, notices, tuple(files))


def _usable(chunk: Chunk, lanes: identity.Lanes) -> NDArray[np.float64] | float:
    """hw.memory.usable of each row, bytes, ``(n_rows,)``; a number where it is the same for all."""
    capacities = [piece.scenario.hw.memory.usable for piece in chunk.pieces]
    if len(set(capacities)) == 1:
        return capacities[0]
    usable = np.repeat(capacities, [len(piece.layouts) for piece in chunk.pieces])
    if len(lanes) == len(chunk.lanes) and (lanes == chunk.lanes).all():
        return usable
    known = dict(zip(map(bytes, chunk.lanes), usable.tolist(), strict=True))
    return np.array([known[bytes(key)] for key in lanes])


def rows_of(files: Sequence[Path], lanes: identity.Lanes) -> list[dict[str, Any]]:
    """The rows with these keys, in their order, from the files of a sweep's chunks.

    Raises:
        ValueError: where a file was damaged after it was written.
    """
    rows_by_key: dict[bytes, dict[str, Any]] = {}
    for path in dict.fromkeys(files):
        try:
            keys = store.key_lanes(store.read_file(path, ["key"])["key"])
            at = np.flatnonzero(contained(keys, lanes))
            whole = store.read_file(path) if len(at) else None
            rows = [row for number in at.tolist() for row in whole.slice(number, 1).to_pylist()] if whole is not None else []
        except store.Damaged as error:
            raise ValueError(f"{error}; the same command prices its rows again") from None
        for key, row in zip(map(bytes, keys[at]), rows, strict=True):
            if row["status"] != "error" or key not in rows_by_key:
                rows_by_key[key] = row
    return [rows_by_key[bytes(key)] for key in lanes]
