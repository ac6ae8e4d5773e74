"""The studies of a folder, by name, and their tables as columns: read once, and again when a file changes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rapid_dse.sweep import arrow, ranking, result_columns, standing, store
from rapid_dse.sweep.show import SECTIONS

if TYPE_CHECKING:
    import pyarrow as pa

KEPT = 2  # tables that stay in memory
MOST_CHOICES = 60  # distinct values up to which a column is offered as a choice
SHOWN = ("tokens_per_s", "tokens_per_s_per_gpu", "mfu", "peak_memory_bytes", "cost_usd")  # beside what makes a table one of results
_HASHED = 20_000  # rows of which distinct values are looked at before those of all

Signature = tuple[tuple[str, int, int], ...]  # path, time (ns) and bytes of each file


@dataclass(frozen=True)
class TextColumn:
    """A column of texts: ``codes`` index ``values``, −1 where a row has none, ``(n_rows,)``."""

    codes: NDArray[np.int64]
    values: tuple[str, ...]


@dataclass
class LoadedStudy:
    """A study's rows, with the columns that were asked for so far as NumPy has them.

    Attributes:
        name: as the page lists it.
        source: file or folder.
        table: all rows, a row a configuration.
        damaged: a line for each file that could not be read.
    """

    name: str
    source: Path
    table: pa.Table
    damaged: tuple[str, ...]
    _numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _texts: dict[str, TextColumn] = field(default_factory=dict)
    _choices: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def is_text(self, name: str) -> bool:
        """Whether a column holds texts."""
        import pyarrow as pa

        kind = self.table.schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def column_of_numbers(self, name: str) -> NDArray[np.float64]:
        """Numbers or truth values, NaN where a row has none, ``(n_rows,)``."""
        if name not in self._numbers:
            self._numbers[name] = standing.numbers(self.table, name)
        return self._numbers[name]

    def column_of_texts(self, name: str) -> TextColumn:
        """Texts as indices into the distinct ones."""
        if name not in self._texts:
            import pyarrow as pa
            import pyarrow.compute as pc

            column = self.table[name]
            column = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)
            whole = column.unify_dictionaries().combine_chunks()
            whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
            codes = np.nan_to_num(arrow.floats(pa.chunked_array([whole.indices])), nan=-1).astype(np.int64)
            self._texts[name] = TextColumn(codes, tuple(str(value) for value in whole.dictionary.to_pylist()))
        return self._texts[name]

    @property
    def numeric(self) -> list[str]:
        """Columns that can rank and be an axis."""
        return ranking.numbers(self.table.schema)

    @property
    def varying(self) -> tuple[str, ...]:
        """Override keys outside the layout that differ in the study."""
        if "" not in self._choices:
            self._choices[""] = tuple(standing.differing(self.table, SECTIONS))
        return self._choices[""]

    def choices(self, name: str) -> tuple[str, ...]:
        """The values of an override key as filters write them, where there are few; none where there is one or many."""
        if name not in self._choices:
            self._choices[name] = self._distinct(name)
        return self._choices[name]

    def _distinct(self, name: str) -> tuple[str, ...]:
        if self.is_text(name):
            column = self.column_of_texts(name)
            seen = np.unique(column.codes[column.codes >= 0]).tolist()
            distinct_values = sorted(column.values[code] for code in seen)
        else:
            values = self.column_of_numbers(name)
            if len(np.unique(values[:_HASHED])) > MOST_CHOICES:
                return ()
            distinct_values = [f"{value:.12g}" for value in np.unique(values[np.isfinite(values)]).tolist()]
        return tuple(distinct_values) if 1 < len(distinct_values) <= MOST_CHOICES else ()


@dataclass(frozen=True)
class ListedStudy:
    """A study as the list shows it: ``rows`` of its files, of which some may answer the same configuration."""

    name: str
    files: int
    rows: int
    bytes: int
    written: datetime


@dataclass
class Shelf:
    """The studies of a folder: its subfolders that hold results, and results files in it."""

    root: Path
    _tables: OrderedDict[str, tuple[Signature, LoadedStudy]] = field(default_factory=OrderedDict)
    _rows: dict[tuple[str, int, int], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sources(self) -> dict[str, Path]:
        """File or folder of each study by its name; a name that a page was given is looked up here, and never made a path."""
        paths: dict[str, Path] = {}
        if not self.root.is_dir():
            return paths
        for entry in sorted(os.scandir(self.root), key=lambda path: path.name):
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            of_file = entry.is_file() and path.suffix.lower() == store.SUFFIX
            if of_file or (entry.is_dir() and any(store.found_in(path))):
                paths[entry.name] = path
        return paths

    def listed(self) -> list[ListedStudy]:
        """Every study, the one that was written last first."""
        studies = []
        for name, path in self.sources().items():
            files = _signature(path)
            rows = sum(self._rows_of(file) for file in files)
            when = datetime.fromtimestamp(max(time for _, time, _ in files) / 1e9, UTC)
            studies.append(ListedStudy(name, len(files), rows, sum(size for _, _, size in files), when))
        return sorted(studies, key=lambda file: file.written, reverse=True)

    def _rows_of(self, file: tuple[str, int, int]) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if file not in self._rows:
            try:
                self._rows[file] = int(pq.read_metadata(file[0]).num_rows)
            except (pa.ArrowException, OSError):
                self._rows[file] = 0  # said where the study is opened
        return self._rows[file]

    def opened(self, name: str) -> LoadedStudy:
        """A study's rows.

        Raises:
            KeyError: where no study of the list has the name.
            ValueError: where nothing can be read.
        """
        source = self.sources()[name]
        with self._lock:
            signature = _signature(source)
            kept = self._tables.get(name)
            if kept is None or kept[0] != signature:
                self._tables.pop(name, None)
                damaged: list[str] = []
                table = _complete(result_columns.require_results(store.read(source, damaged.append), source), source)
                kept = (signature, LoadedStudy(name, source, table.combine_chunks(), tuple(damaged)))
                self._tables[name] = kept
            self._tables.move_to_end(name)
            while len(self._tables) > KEPT:
                self._tables.popitem(last=False)
            return kept[1]


def _complete(table: pa.Table, source: Path) -> pa.Table:
    """The table, which has every column of results that the page shows.

    Raises:
        ValueError: where it lacks some.
    """
    missing = [name for name in SHOWN if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{source}: no results that the page can show, lacks {', '.join(missing)}; allowed: what a sweep or evaluate wrote"
        )
    return table


def _signature(source: Path) -> Signature:
    """Path, time and bytes of each file of a study; what is gone in the meantime is left out."""
    stamps = []
    for path in store.files_of(source):
        try:
            at = path.stat()
        except FileNotFoundError:
            continue
        stamps.append((str(path), at.st_mtime_ns, at.st_size))
    if not stamps:
        raise ValueError(f"{source.name}: its files are gone; allowed: a study that holds results")
    return tuple(stamps)
