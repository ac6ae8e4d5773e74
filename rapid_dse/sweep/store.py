"""The store: ``<results_dir>/<study>/*.parquet``, written atomically, named by content, read as one table.

- A file holds one chunk of a portion and is named by the hash of the keys in it. Keys hold the configuration and the pricing code,
  so a file is never out of date: changed physics asks for other files. Two processes that price the same chunk write the same file.
- A file is written aside, flushed to the disk and moved into place: a killed writer leaves a ``.part`` file, which nobody reads and
  which the next run removes, never half a table. A digest of every byte (``seal.py``) shows a damaged file when it is read; what is
  damaged or another program's is moved aside, under ``.damaged``, and its rows are priced again.
- Rows of older code stay. They are read where no newer row answers the same configuration: of several rows for one configuration
  the current code's wins, then the one written last. The same holds for rows that two files share.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import rapid_dse
from rapid_dse.common import termination
from rapid_dse.common.bounded_files import require_file
from rapid_dse.config.table_file import MOST_BYTES, require_small_parquet
from rapid_dse.sweep import arrow, identity, seal
from rapid_dse.sweep.study_folder import aside

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX, ASIDE = ".parquet", ".damaged"
CODE, WRITTEN, VERSION, CONFIGURATION = (f"rapid_dse.{name}".encode() for name in ("code", "written", "version", "configuration"))
Report = Callable[[str], None]
Wanted = Sequence[str] | Callable[[str], bool] | None


class Damaged(Exception):
    """A file that cannot be read as what was written; the text names it and says what is wrong."""


@dataclass(frozen=True)
class Known:
    """Which file of a study holds which keys: ``lanes`` ``(n_rows, 2)``, ``file`` indexes ``paths``."""

    paths: tuple[Path, ...]
    lanes: identity.Lanes
    file: NDArray[np.int32]

    def files_with(self, wanted: identity.Lanes) -> tuple[Path, ...]:
        """The files that may hold some of the ``wanted`` keys (by half a key: a reader compares the rest)."""
        if not len(self.lanes):
            return ()
        hit = np.isin(self.lanes[:, 0], wanted[:, 0])
        return tuple(self.paths[index] for index in np.unique(self.file[hit]))

    def with_file(self, path: Path, table: pa.Table) -> Known:
        """These, and a file that was written since."""
        new = _done(table)
        file = np.full(len(new), len(self.paths), np.int32)
        return Known((*self.paths, path), np.concatenate([self.lanes, new]), np.concatenate([self.file, file]))


def write(folder: Path, table: pa.Table, configuration: str, name: str) -> Path:
    """Writes a table as ``<name>.parquet``, whole or not at all.

    Args:
        configuration: JSON of the resolved base configuration, kept in the schema's metadata beside version, code hash and time.

    Raises:
        OSError: where the disk is full or the folder went away; nothing is left behind then.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = datetime.now(UTC).isoformat()
    metadata = {CODE: identity.code_hash(), WRITTEN: written, VERSION: rapid_dse.__version__, CONFIGURATION: configuration}
    path, set_aside = folder / f"{name}{SUFFIX}", folder / aside(name)
    texts = [f.name for f in table.schema if pa.types.is_dictionary(f.type)]
    memory = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        memory,
        compression="zstd",
        compression_level=1,
        use_dictionary=texts,
        write_page_checksum=True,
    )
    try:
        with termination.signals_held():
            with set_aside.open("wb") as file:
                for part in seal.sealed(memoryview(memory.getvalue())):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(set_aside, path)
    except BaseException:
        set_aside.unlink(missing_ok=True)
        raise
    _flush_folder(folder)
    return path


def _flush_folder(folder: Path) -> None:
    # The move itself is lost in a power cut unless the folder's entry reaches the disk too.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, columns: Wanted = None, sealed: bool = True) -> pa.Table:
    """One file, Parquet whose seal (or, without one, whose pages' checksums) is verified, or CSV.

    Args:
        columns: those to read, by name or by what says so of a name; None: all of them. Unknown ones are left out.
        sealed: whether the seal is verified; of a file whose seal has just been, the pages' checksums are enough.

    Raises:
        Damaged: where it cannot be read, or is not what was written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".csv":
            require_file(path, most=MOST_BYTES)
            return _read_csv(path)
        require_small_parquet(path)
        whole = seal.is_whole(path) if sealed else None
        if whole is False:
            raise Damaged(f"{path}: damaged (its content does not match its digest)")
        with pq.ParquetFile(path, page_checksum_verification=not whole) as file:
            names = file.schema_arrow.names
            wanted = names if columns is None else filter(columns, names) if callable(columns) else dict.fromkeys(columns)
            return file.read(columns=[name for name in wanted if name in names])
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Damaged(f"{path}: damaged or unreadable ({reason[:200]})") from None


def schema_of(path: Path) -> pa.Schema:
    """The columns of a Parquet file and their types, with its metadata.

    Raises:
        Damaged: where it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"{path}: damaged or unreadable ({str(error).splitlines()[0][:200]})") from None


def read_own(path: Path, columns: Wanted = None) -> pa.Table:
    """A file of a study's folder, which only this program's rows belong in; ``columns`` as of ``read_file``.

    Raises:
        Damaged: where it cannot be read, or holds something else.
    """
    import pyarrow as pa

    named = columns is not None and not callable(columns)
    table = read_file(path, [*columns, "key", "status"] if named else columns)  # type: ignore[misc]
    for name in ("key", "status"):
        if name not in table.column_names:
            raise Damaged(f"{path}: no results of rapid_dse (it has no column {name})")
        kind = table.schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
            raise Damaged(f"{path}: no results of rapid_dse (its column {name} holds {kind})")
    try:
        key_lanes(table["key"].drop_null())
    except Damaged as error:
        raise Damaged(f"{path}: no results of rapid_dse ({error})") from None
    return table


def set_aside(path: Path) -> None:
    """Moves what is damaged or another program's out of the way, where the folder can be written; rows can then take its name."""
    with contextlib.suppress(OSError):
        os.replace(path, path.with_name(f"{path.name}{ASIDE}"))


def _read_csv(path: Path) -> pa.Table:
    import pyarrow.csv as csv

    return csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))


def found_in(folder: Path) -> Iterator[Path]:
    """The Parquet files of a study's folder, or of a folder of studies, in no order; what lies deeper is no study's."""
    for path in itertools.chain(folder.glob(f"*{SUFFIX}"), folder.glob(f"*/*{SUFFIX}")):
        if not path.name.startswith(".") and path.is_file():
            yield path


def files_of(source: Path) -> list[Path]:
    """The Parquet files behind a file, a study's folder, or a folder of studies.

    Raises:
        ValueError: where there are none.
    """
    if source.is_file():
        return [source]
    paths = sorted(found_in(source))
    if not paths:
        what = "no results in this folder" if source.is_dir() else "no such file or folder"
        raise ValueError(f"{source}: {what}; allowed: a results file, results/<study>, or a folder of studies")
    return paths


def read(source: Path, report: Report, columns: Wanted = None) -> pa.Table:
    """Everything under ``source`` as one table, a row a configuration; what cannot be read is reported and left out.

    Args:
        columns: as of ``read_file``, the keys among them.

    Raises:
        ValueError: where nothing can be read.
    """
    tables, damaged = [], []
    wanted = columns if columns is None or callable(columns) else [*columns, "key"]
    reads = read_file if source.is_file() else read_own
    for path in files_of(source):
        try:
            tables.append(reads(path, wanted))
        except Damaged as error:
            damaged.append(str(error))
    if not tables:
        raise nothing_read(source, damaged)
    merged = latest(tables)
    for line in damaged:
        report(line)
    return merged


def nothing_read(source: Path, damaged: Sequence[str]) -> ValueError:
    """What to raise where no file of ``source`` could be read: what is wrong with the first, and how many others there are."""
    what = damaged[0] if damaged else f"{source}: {'no results file' if source.exists() else 'no such file or folder'}"
    if len(damaged) > 1:
        what = f"{source}: none of its {len(damaged)} files holds results that can be read; the first: {what}"
    return ValueError(f"{what}; allowed: files that rapid_dse wrote")


def latest(tables: Iterable[pa.Table]) -> pa.Table:
    """The tables' rows in one table; of rows for the same configuration the current code's stays, then the one written last."""
    import pyarrow as pa

    ordered = sorted(tables, key=lambda table: age(table.schema))
    schema = unified([table.schema for table in ordered])
    merged = pa.concat_tables([table.replace_schema_metadata(None) for table in ordered], promote_options="permissive")
    merged = merged if merged.schema.equals(schema) else merged.cast(schema)
    if any("key" not in table.column_names for table in ordered):
        return merged
    kept = kept_rows([configurations(table) for table in ordered])
    return merged if all(part.all() for part in kept) else merged.filter(arrow.numbers(np.concatenate(kept)))


def unified(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The schema of tables put together, without metadata.

    Raises:
        ValueError: where columns of one name hold things of several kinds.
    """
    import pyarrow as pa

    try:
        return pa.unify_schemas([schema.remove_metadata() for schema in schemas], promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(
            f"these files are no results of one kind ({str(error).splitlines()[0]}); allowed: files that rapid_dse wrote"
        ) from None


def age(schema: pa.Schema) -> tuple[bool, str]:
    """What orders tables: those of older code before the running code's, then by when they were written."""
    metadata: dict[bytes, bytes] = schema.metadata or {}
    return metadata.get(CODE, b"").decode() == identity.code_hash(), metadata.get(WRITTEN, b"").decode()


def kept_rows(configurations: Sequence[identity.Lanes]) -> list[NDArray[np.bool_]]:
    """Rows whose configuration no later row has, ``(n_rows,)`` of each table; arguments in the order of the tables' age."""
    kept = _last_of_each(np.concatenate(configurations))
    return np.split(kept, np.cumsum([len(configuration) for configuration in configurations])[:-1])


def configurations(table: pa.Table) -> identity.Lanes:
    """What each row asks, whatever code priced it: its key without the code's hash, ``(n_rows, 2)``.

    A table without metadata (new, or written by another program) is taken to be of the running code. A row without a key (a case that
    was refused) asks what no other row asks.

    Raises:
        ValueError: where a key is none.
    """
    code = identity.from_hex([(table.schema.metadata or {}).get(CODE, identity.code_hash().encode()).decode()])
    keys = table["key"]
    try:
        if not keys.null_count:
            return key_lanes(keys) ^ code
        lanes = np.random.default_rng().integers(0, 2**64, (len(table), 2), np.uint64)
        # as a list, because Arrow's columns import pandas where they become NumPy's
        lanes[np.array(keys.is_valid().to_pylist(), bool)] = key_lanes(keys.drop_null()) ^ code
    except Damaged as error:
        raise ValueError(f"column key: {error}; allowed: files that rapid_dse wrote") from None
    return lanes


def _last_of_each(lanes: identity.Lanes) -> NDArray[np.bool_]:
    """Which rows hold the last occurrence of their key, ``(n_rows,)``."""
    last = np.ones(len(lanes), bool)
    halves = np.sort(lanes[:, 0])
    shared = halves[1:][halves[1:] == halves[:-1]]
    if len(shared):
        # where few rows share half a key, sorting those alone takes a fiftieth of sorting all
        rows = np.flatnonzero(np.isin(lanes[:, 0], shared)) if 100 * len(shared) < len(lanes) else np.arange(len(lanes))
        order = rows[np.lexsort((rows, lanes[rows, 1], lanes[rows, 0]))]
        last[order[:-1]] = (lanes[order[1:]] != lanes[order[:-1]]).any(axis=1)
    return last


def key_lanes(column: Any) -> identity.Lanes:
    """The keys of a ``key`` column (Arrow, text), ``(n_rows, 2)``.

    Raises:
        Damaged: where a key is none.
    """
    import pyarrow as pa

    if not len(column):
        return np.zeros((0, 2), np.uint64)
    # Other writers (pandas) keep text as large strings or dictionaries; null keys have no digits.
    column = column if column.type == pa.string() else column.cast(pa.string())
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    if (np.diff(offsets) != 32).any():
        raise Damaged("a key has not 32 hex digits")
    codes = np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, 32)
    return identity.from_hex(codes)


def known(paths: Sequence[Path], report: Report) -> Known:
    """The keys of every row in files that need not be priced again (rows that failed are tried again).

    A file that is damaged, or another program's, is reported and set aside.
    """
    readable: list[Path] = []
    lanes, file = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int32)]
    for path in paths:
        try:
            done = _done(read_own(path, ["key", "status"]))
        except Damaged as error:
            report(f"{error}; its rows are priced again")
            set_aside(path)
            continue
        file.append(np.full(len(done), len(readable), np.int32))
        lanes.append(done)
        readable.append(path)
    return Known(tuple(readable), np.concatenate(lanes), np.concatenate(file))


def _done(table: pa.Table) -> identity.Lanes:
    """The keys of rows that did not fail, ``(n_done, 2)``."""
    good = ~arrow.are(table["status"], "error")
    return key_lanes((table if good.all() else table.filter(arrow.numbers(good)))["key"])


def configuration_json(scenario: Any) -> str:
    """The resolved configuration of a portion, for a file's metadata."""
    return json.dumps(scenario.model_dump(mode="json"), separators=(",", ":"))
