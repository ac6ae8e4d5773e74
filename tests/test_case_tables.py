"""Cells of tables of cases, by pandas' reading of the same files."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rapid_dse.config.table_file import read_table
from rapid_dse.sweep import case_tables
from rapid_dse.sweep.case_tables import read_case_table


@pytest.fixture(autouse=True, params=[1 << 30, 0], ids=["small", "large"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read as small ones are, and as large ones."""
    monkeypatch.setattr(case_tables, "LARGE", request.param)


WORDS = {
    "whole": ["8", "-3", "+5", " 12", "007"],
    "whole and blank": ["8", "", "9007199254740993", "1", "2"],
    "numbers": ["8", "1.5", "-2e-3", "inf", ".5"],
    "names": ["1", "2", "3", "4", "99999999999999999999999"],
    "truth": ["True", "false", "TRUE", "False", "true"],
    "truth and blank": ["True", "", "False", "", "true"],
    "nothing": ["", "", "", "", ""],
    "words": ["a", "", "None", "nan", "é, \n ü"],
    "mixed": ["1", "true", "x", "", "2"],
    "no numbers": ["nan", "1_000", "1", "2", "0x10"],
    "": ["1", "2", "3", "4", "5"],
    "Unnamed: 10": ["6", "7", "8", "9", "10"],  # as pandas calls the one before, which a table that was saved twice with its index has
}
OWN = {"whole and blank": [8, 2**53 + 1, 1, 2]}  # pandas has a number with a fraction where a cell of the column is blank


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("marks", [0, 1, 2])
def test_cells_of_a_csv_file_are_read_as_pandas_reads_them(tmp_path: Path, end: str, marks: int) -> None:
    path = tmp_path / "in.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write("\ufeff" * marks)
        csv.writer(file, lineterminator=end).writerows([WORDS.keys(), *zip(*WORDS.values(), strict=True)])
    expected, found = read_table(path), read_case_table(path)
    table = found.table.to_pandas()
    assert list(table) == list(expected) == list(found.values)
    assert next(iter(table)) == "whole"
    for name in table:
        blank = expected[name].isna()
        assert table[name].isna().tolist() == blank.tolist() == [value is None for value in found.values[name]], name
        told = [str(value) if name == "names" else value for value in expected.loc[~blank, name]]  # pandas has them as Python's integers
        assert typed(table.loc[~blank, name]) == typed(told), name
        assert typed(value for value in found.values[name] if value is not None) == typed(OWN.get(name, told)), name


NAMES = ["99999999999999999999", "-9223372036854775809"]  # numbers in pandas, but too many digits for 64 bits
LATE = ["_", "0.5", "1e30", *NAMES, "nan", "1_0", "true", "x"]


@pytest.mark.parametrize("n_kinds", [3, 2000])
def test_a_long_column_is_what_all_its_cells_are(tmp_path: Path, n_kinds: int) -> None:
    """2,000 cells that repeat or do not, and behind them one that may be of another kind."""
    whole = [str(row % n_kinds - 1) for row in range(2000)]
    kinds = {"whole": whole, "part": [f"{word}.25" for word in whole]}
    columns = {f"{kind} {late}": [*words, late.strip("_")] for late in LATE for kind, words in kinds.items()}
    pd.DataFrame(columns).to_csv(tmp_path / "in.csv", index=False)
    expected, found = read_table(tmp_path / "in.csv"), read_case_table(tmp_path / "in.csv")
    assert list(found.values) == list(expected)
    for name in columns:
        told = expected[name].astype(object).where(expected[name].notna(), None)
        own = columns[name] if name.split()[1] in NAMES else told
        assert found.table[name].to_pylist() == list(own), name
        assert found.values[name] == list(own), name


def typed(values: Iterable[Any]) -> list[tuple[type, Any]]:
    """Values with what tells true from 1; NumPy's as Python's."""
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    return [(type(value), value) for value in plain]
