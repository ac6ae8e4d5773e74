"""Tables as people have them, CSV and Parquet: read as they are, or refused where a cell would land in another column or row."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rapid_dse.common.bounded_files import require_file

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")
MOST_BYTES = 2 << 30  # of a table's file
MOST_CELLS = 200_000_000  # of a Parquet file's, which a few bytes can stand for
MOST_COLUMNS = 10_000
LONGEST_CELL = 1 << 20  # characters
MARK = "\ufeff"  # of the order of bytes, which spreadsheets write before the first name


def read_table(path: str | Path) -> pd.DataFrame:
    """A table as it is, with rows numbered from 0: Parquet or CSV by suffix.

    In CSV an empty cell is blank and the word none a word. An index that has a name becomes a column, one that has none is dropped.

    Raises:
        ValueError: another suffix, a file that is no such table, a row of a CSV file that has not as many cells as the header, two
            columns of one name; OSError where it cannot be read.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix == ".csv":
        deque(csv_rows(path), maxlen=0)
    elif not path.is_dir():  # what other programs write in parts is a folder
        require_small_parquet(path)
    try:
        frame = _read_parquet(path) if suffix == ".parquet" else _read_csv(path)
    except OSError:
        raise
    except Exception as error:  # each reader has exceptions of its own for a file that is none of its kind
        raise ValueError(f"{path}: cannot be read as {suffix[1:]}: {' '.join(str(error).split())}") from None
    named = [name for name in frame.index.names if name is not None]
    check_names([*map(str, named), *map(str, frame.columns)], path)
    unnamed = [level for level, name in enumerate(frame.index.names) if name is None]
    return frame.reset_index(level=unnamed, drop=True).reset_index() if named and unnamed else frame.reset_index(drop=not named)


def suffix_of(path: Path) -> str:
    """What a table's file is by its name, one of ``SUFFIXES``.

    Raises:
        ValueError: it is none of them.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: allowed: a file that ends in .csv or .parquet")
    return suffix


def require_small_parquet(path: Path) -> None:
    """Refuses a Parquet file that is none that can be read, or that says of itself that it holds more than a memory does.

    Raises:
        ValueError: one line; OSError where it cannot be read.
    """
    import pyarrow.parquet as pq

    require_file(path, most=MOST_BYTES)
    try:
        told = pq.read_metadata(path)
    except OSError:
        raise
    except Exception:  # whoever reads it says what is wrong
        return
    if told.num_columns > MOST_COLUMNS or told.num_rows * max(told.num_columns, 1) > MOST_CELLS:
        raise ValueError(
            f"{path}: has {told.num_rows:,} rows of {told.num_columns:,} columns; "
            f"allowed: up to {MOST_COLUMNS:,} columns and {MOST_CELLS:,} cells"
        )


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow.parquet as pq

    pq.read_table(path).validate(full=True)  # texts that are none in UTF-8 are found where a cell is read else
    return pd.read_parquet(path)


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(path, encoding="utf-8-sig", index_col=False, keep_default_na=False, na_values=[""], low_memory=False)


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The names of a CSV file's columns, then the cells of each row, as many: a reader would shift or drop those of another row.

    Raises:
        ValueError: as ``read_table``.
    """
    require_file(path, most=MOST_BYTES)
    csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next(file, "").removeprefix(MARK)  # programs that write a mark before one that is there: pandas drops both too
            rows = csv.reader(chain([first], file), strict=True)  # a quote without its end is an error
            header = next(rows, None)
            if not header:
                raise ValueError(f"{path}: cannot be read as csv: its first line has no names of columns")
            if len(header) > MOST_COLUMNS:
                raise ValueError(f"{path}: has {len(header):,} columns; allowed: up to {MOST_COLUMNS:,}")
            check_names(header, path)
            if header[0].startswith(MARK):
                raise ValueError(f"{path}: cannot be read as csv: more than two byte order marks stand before its first name")
            yield header
            for number, row in enumerate(filter(None, rows), 1):  # a line without anything is no row
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}: row {number} has {len(row)} cell{'s' * (len(row) != 1)}, the header has {len(header)}; "
                        'expected as many (a cell that has a comma stands in quotes: "1,2")'
                    )
                yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as csv: {error}") from None


def check_names(names: list[str], path: Path) -> None:
    """Refuses a table two of whose columns have one name.

    Raises:
        ValueError: with the name.
    """
    for name, count in Counter(names).items():
        if count > 1 and name:
            raise ValueError(f"{path}: {count} columns have the name {name}; expected one")
