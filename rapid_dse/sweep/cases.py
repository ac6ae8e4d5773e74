"""Tables of cases: each row a trial, each column that is an override key overrides it; rows that share a scenario become columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rapid_dse.config.hardware import Hardware
from rapid_dse.config.scenario import Scenario, known_key
from rapid_dse.layouts import COLUMN_OF, KEYS, IntColumn, broken_rules
from rapid_dse.sweep.compose import SHOWN, Composed, composed, hydra_ready, scenario_of, value_at, with_values
from rapid_dse.sweep.overrides import GROUPS, check_key
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.space import ColumnType, base_codes, explicit

if TYPE_CHECKING:
    import pandas as pd

BLANK: tuple[()] = ()  # no value of a table equals it


@dataclass(frozen=True)
class CaseGroup:
    """Cases that share a scenario.

    Attributes:
        portion: the scenario with one layout a case.
        rows: position of each case in the table, ``(n_layouts,)``.
        pinned: software.* keys that the table itself gives, with their values: a fit leaves those alone.
    """

    portion: Portion
    rows: IntColumn
    pinned: Mapping[str, Any]


def read_table(path: str | Path) -> pd.DataFrame:
    """A table as it is: Parquet or CSV by suffix; in CSV an empty cell is blank and the word none a word.

    Raises:
        ValueError: another suffix, or a file that is no such table; OSError where it cannot be read.
    """
    import pandas as pd

    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: allowed: a file that ends in .csv or .parquet")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, keep_default_na=False, na_values=[""], low_memory=False)
    except OSError:
        raise
    except Exception as error:  # each reader has exceptions of its own for a file that is none of its kind
        raise ValueError(f"{path}: cannot be read as {path.suffix[1:]}: {' '.join(str(error).split())}") from None


def read_cases(path: str | Path) -> tuple[pd.DataFrame, list[CaseGroup]]:
    """The table, and its rows grouped by scenario; every row is in one group.

    Raises:
        ValueError: one line with row (1 is the first below the header), key, value and what is allowed; OSError for the file.
    """
    frame = read_table(path)
    if frame.empty:
        raise ValueError(f"{path}: has no rows")
    return frame, group_cases(frame)


def group_cases(frame: pd.DataFrame) -> list[CaseGroup]:
    """Groups a table's rows by scenario, in order of their first row; columns that are no override keys do not count.

    Raises:
        ValueError: as ``read_cases``.
    """
    cells = {str(name): _cells(frame[name]) for name in frame.columns if _is_override(str(name))}
    layout = {name: column for name, column in cells.items() if name in COLUMN_OF}
    shared = {name: column for name, column in cells.items() if name not in COLUMN_OF}
    rows_of: dict[tuple[Any, ...], list[int]] = {}
    rows = zip(*shared.values(), strict=True) if shared else iter([()] * len(frame))
    for row, values in enumerate(rows):
        rows_of.setdefault(values, []).append(row)
    codes = _layout_codes(layout)
    with hydra_ready():
        builder = _Builder(tuple(shared))
        return [builder.group(values, np.array(rows, np.int64), codes) for values, rows in rows_of.items()]


def _is_override(name: str) -> bool:
    """Whether a column overrides a key; ``ValueError`` where it has a known prefix and no such key exists."""
    if name in GROUPS:
        return True
    if name.split(".")[0] not in GROUPS or "." not in name:
        return False
    if not known_key(name):
        check_key(name)
    return True


def _cells(column: pd.Series[Any]) -> list[Any]:
    """Plain values: blank, bool, int, float or text; a table writes 8 as 8.0 or as text, and true as True."""
    memo: dict[Any, Any] = {}
    found = []
    for value in column.tolist():
        key = (type(value), value) if not isinstance(value, list | dict | np.ndarray) else None
        if key is None:
            found.append(_plain(value))
            continue
        if key not in memo:
            memo[key] = _plain(value)
        found.append(memo[key])
    return found


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return BLANK
    if isinstance(value, np.ndarray):
        return _frozen(value.tolist())
    if isinstance(value, list | dict):
        return _frozen(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return _word(value) if isinstance(value, str) else value


def _word(text: str) -> Any:
    stripped = text.strip()
    if stripped.lower() in ("true", "false"):
        return stripped.lower() == "true"
    if stripped == "":
        return BLANK
    if stripped[0] in "[{":
        import json

        try:
            return _frozen(json.loads(stripped))
        except ValueError:
            return stripped
    try:
        number = float(stripped)
    except ValueError:
        return stripped
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _frozen(value: Any) -> Any:
    # Rows are grouped by their values, which have to be hashable.
    if isinstance(value, dict):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _layout_codes(layout: Mapping[str, Sequence[Any]]) -> dict[str, list[int | None]]:
    """Codes of each layout column, ``None`` where a cell is blank; by the column's short name."""
    codes: dict[str, list[int | None]] = {}
    for key, column in layout.items():
        kind = ColumnType(key)
        memo: dict[Any, int | None] = {}
        for row, value in enumerate(column):
            mark = (type(value), value)
            if mark not in memo:
                memo[mark] = None if value is BLANK else _at_row(row, lambda: kind.code(value))  # noqa: B023 called at once
        codes[COLUMN_OF[key]] = [memo[type(value), value] for value in column]
    return codes


def _at_row(row: int, action: Any) -> Any:
    try:
        return action()
    except ValueError as error:
        raise ValueError(f"row {row + 1}: {error}") from None


class _Builder:
    """Composes and validates what distinct scenarios share once: groups by their options, hardware by its keys."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._composed: dict[tuple[tuple[str, Any], ...], Composed] = {}
        self._hardware: dict[tuple[Any, ...], Hardware] = {}

    def group(self, values: tuple[Any, ...], rows: IntColumn, codes: Mapping[str, Sequence[int | None]]) -> CaseGroup:
        """The group of the rows whose scenario columns have ``values``."""
        given = {name: value for name, value in zip(self._names, values, strict=True) if value is not BLANK}
        found, scenario, broken = _at_row(int(rows[0]), lambda: self._scenario(given))
        base = base_codes(scenario)
        picked = {name: _column(codes.get(name), rows, base[name]) for name in KEYS}
        layouts = explicit(picked)
        if broken is None:
            rule, reasons = broken_rules(layouts, scenario)
        else:
            rule, reasons = np.zeros(len(rows), np.int64), [broken]
        keys = {key: value_at(scenario, key) for key in given if key not in GROUPS}
        choices = {group: found.choices[group] for group in SHOWN}
        pinned = {key: value for key, value in keys.items() if key.startswith("software.")}
        return CaseGroup(Portion(scenario, choices, keys, layouts, rule, tuple(reasons)), rows, pinned)

    def _scenario(self, given: Mapping[str, Any]) -> tuple[Composed, Scenario, str | None]:
        options = {name: _name(name, value) for name, value in given.items() if name in GROUPS}
        found = self._composed.get(tuple(options.items()))
        if found is None:
            found = self._composed[tuple(options.items())] = composed(options)
        values = {name: _thawed(value) for name, value in given.items() if name not in GROUPS}
        mark = (options.get("hw"), *((name, value) for name, value in given.items() if name.startswith("hw.")))
        tree = with_values(found.tree, values)
        if mark in self._hardware:
            tree["hw"] = self._hardware[mark]
        scenario, broken = scenario_of(tree)
        self._hardware[mark] = scenario.hw
        return found, scenario, broken


def _column(codes: Sequence[int | None] | None, rows: IntColumn, default: int) -> IntColumn:
    if codes is None:
        return np.full(len(rows), default, np.int64)
    found = (codes[row] for row in rows.tolist())
    return np.array([default if code is None else code for code in found], np.int64)


def _name(group: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{group}={value!r}: allowed: the name of an option")
    return value


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value
