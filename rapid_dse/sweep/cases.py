"""Tables of cases: each row a trial, each column that is an override key overrides it; rows that share a scenario become columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from rapid_dse.config.scenario import Scenario, known_key
from rapid_dse.parallel.layouts import COLUMN_OF, IntColumn, broken_rules
from rapid_dse.sweep.case_tables import CaseTable, is_blank, read_case_table
from rapid_dse.sweep.compose import SHOWN, Composed, composed, hydra_ready, scenario_of, value_at, with_values
from rapid_dse.sweep.overrides import GROUPS, check_key, usual_options
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.space import ColumnType, base_codes, explicit, keys_of, of_other_workload
from rapid_dse.sweep.trusting import GUARDED_PARTS, require_unset

if TYPE_CHECKING:
    import pandas as pd

# The parts of a scenario, each of which rows of a table may share.
SECTIONS: dict[str, type[BaseModel]] = {
    name: info.annotation
    for name, info in Scenario.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
}


class _Cell(Enum):
    """What a cell without a value holds: unlike any value of a table, an empty list among them."""

    BLANK = "blank"

    __hash__ = object.__hash__  # Enum's own is Python's, of which a table asks once a cell


BLANK = _Cell.BLANK


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


Refused = dict[int, str]  # why a row is no case, by its position in the table


def read_cases(path: str | Path, refused: Refused | None = None, trusted: bool = False) -> tuple[CaseTable, list[CaseGroup]]:
    """The table, and its rows grouped by scenario; every row is in one group, or is refused.

    Args:
        refused: takes the rows that have a value which is none of its key's, with what is wrong; None: such a row is an error.
        trusted: whether the table, and options that it names, may set what the command line alone sets else (``trusting.py``).

    Raises:
        ValueError: one line with row (1 is the first below the header), key, value and what is allowed; OSError for the file.
    """
    cases = read_case_table(path)
    n_rows = cases.table.num_rows
    if not n_rows or not cases.values:
        raise ValueError(f"{path}: has no rows")
    columns = {name: values for name, values in cases.values.items() if _is_override(name)}
    return cases, group_columns(columns, n_rows, refused, trusted)


def group_cases(frame: pd.DataFrame, refused: Refused | None = None, trusted: bool = False) -> list[CaseGroup]:
    """``group_columns`` of a table; columns that are no override keys do not count.

    Args:
        refused: as of ``read_cases``; trusted: as of ``read_cases``.

    Raises:
        ValueError: as ``read_cases``.
    """
    columns = {str(name): frame.iloc[:, at].tolist() for at, name in enumerate(frame.columns) if _is_override(str(name))}
    return group_columns(columns, len(frame), refused, trusted)


def group_columns(
    columns: Mapping[str, Sequence[Any]], n_rows: int, refused: Refused | None = None, trusted: bool = False
) -> list[CaseGroup]:
    """Groups rows by scenario, in order of their first row.

    Args:
        columns: the values of each override key, ``(n_rows,)``; None and NaN: a row does not set it.
        refused: as of ``read_cases``; trusted: as of ``read_cases``.

    Raises:
        ValueError: as ``read_cases``.
    """
    cells = {name: _cells(values) for name, values in columns.items()}
    layout = {name: column for name, column in cells.items() if name in COLUMN_OF}
    shared = {name: column for name, column in cells.items() if name not in COLUMN_OF}
    wrong = _Wrong(refused)
    codes = _layout_codes(layout, wrong)
    rows_of: dict[Any, list[int]] = {}
    rows = zip(*shared.values(), strict=True) if shared else iter([()] * n_rows)
    for row, values in enumerate(rows):
        if row not in wrong.rows:
            rows_of.setdefault((values, _types(values)), []).append(row)
    groups = []
    with hydra_ready():
        builder = _Builder(tuple(shared), trusted)
        for (values, _), members in rows_of.items():
            with wrong.at(members):
                groups.append(builder.group(values, np.array(members, np.int64), codes))
    return groups


def _types(values: Sequence[Any]) -> tuple[type, ...]:
    """What tells true from 1, which Python takes for equal."""
    return tuple(map(type, values))


class _Wrong:
    """What becomes of rows with a value that is none of its key's: they are an error, or are collected with what is wrong."""

    def __init__(self, refused: Refused | None) -> None:
        self.rows: Refused = {} if refused is None else refused
        self._stops = refused is None

    @contextmanager
    def at(self, rows: Sequence[int]) -> Iterator[None]:
        """Within, a ``ValueError`` is about these rows: raised with the first one's number, or kept for each."""
        try:
            yield
        except ValueError as error:
            if self._stops:
                raise ValueError(f"row {rows[0] + 1}: {error}") from None
            self.rows.update(dict.fromkeys(rows, " ".join(str(error).split())))


def _is_override(name: str) -> bool:
    """Whether a column overrides a key; ``ValueError`` where it has a known prefix and no such key exists."""
    if name in GROUPS:
        return True
    if name.split(".")[0] not in GROUPS or "." not in name:
        if name != name.strip() and _is_override(name.strip()):
            raise ValueError(f"column {name!r} has blanks around the name; expected {name.strip()}")
        return False
    if not known_key(name):
        check_key(name)
    return True


def _cells(column: Sequence[Any]) -> list[Any]:
    """Plain values: blank, bool, int, float or text; a table writes 8 as 8.0 or as text, and true as True."""
    if not set(map(type, column)) <= {str, int, float, bool, type(None)}:
        return [_plain(value) for value in column]
    plain = {key: _plain(key[1]) for key in set(_typed(column))}
    return [plain[key] for key in _typed(column)]


def _typed(values: Sequence[Any]) -> Iterator[tuple[type, Any]]:
    """Values with what tells true from 1, which Python takes for equal."""
    return zip(map(type, values), values, strict=True)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if is_blank(value):
        return BLANK
    if isinstance(value, list | dict):
        return _frozen(value)
    if isinstance(value, Decimal):
        value = float(value)
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
        except (ValueError, RecursionError):  # brackets in brackets in brackets
            return _bare_list(stripped)
    try:
        number = float(stripped)
    except ValueError:
        return stripped
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _bare_list(text: str) -> Any:
    """A list as overrides write it, [a,b]; other text as it is."""
    inner = text[1:-1]
    words = [_word(part) for part in inner.split(",")]
    plain = text[0] == "[" and text[-1] == "]" and not set(inner) & set("[]{}'\"") and BLANK not in words
    return tuple(words) if plain else text


class _Items(tuple[tuple[str, Any], ...]):
    """A mapping as its sorted items."""


def _frozen(value: Any) -> Any:
    # Rows are grouped by their values, which have to be hashable.
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return _Items(sorted((str(key), _frozen(item)) for key, item in value.items()))
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _layout_codes(layout: Mapping[str, Sequence[Any]], wrong: _Wrong) -> dict[str, list[float | None]]:
    """Codes of each layout column, ``None`` where a cell is blank or wrong; by the column's short name."""
    codes: dict[str, list[float | None]] = {}
    for key, column in layout.items():
        kind = ColumnType(key)
        code_of: dict[tuple[type, Any], float | None] = {}
        for cell in dict.fromkeys(_typed(column)):
            try:
                code_of[cell] = None if cell[1] is BLANK else kind.code(_thawed(cell[1]))
            except ValueError:
                with wrong.at([row for row, other in enumerate(_typed(column)) if other == cell]):
                    raise
        codes[COLUMN_OF[key]] = [code_of.get(cell) for cell in _typed(column)]
    return codes


class _Builder:
    """Composes and validates what distinct scenarios share once: groups by their options, hardware by its keys."""

    def __init__(self, names: tuple[str, ...], trusted: bool) -> None:
        self._names, self._trusted = names, trusted
        self._composed: dict[tuple[tuple[str, Any], ...], Composed] = {}
        self._sections: dict[tuple[Any, ...], BaseModel] = {}

    def group(self, values: tuple[Any, ...], rows: IntColumn, codes: Mapping[str, Sequence[float | None]]) -> CaseGroup:
        """The group of the rows whose scenario columns have ``values``."""
        given = {name: value for name, value in zip(self._names, values, strict=True) if value is not BLANK}
        composed_case, scenario, broken = self._scenario(given)
        base = base_codes(scenario)
        own = keys_of(scenario)
        picked = {name: _column(codes.get(name), rows, base[name]) for name in own}
        layouts = explicit(picked, scenario)
        if broken is None:
            rule, reasons = broken_rules(layouts, scenario)
        else:
            rule, reasons = np.zeros(len(rows), np.int64), [broken]
        for name in codes.keys() - own.keys():
            told = np.array([codes[name][row] is not None for row in rows.tolist()])
            rule, reasons = np.where(told, len(reasons), rule), [*reasons, of_other_workload(scenario, name)]
        keys = {key: value_at(scenario, key) for key in given if key not in GROUPS}
        choices = {group: composed_case.choices[group] for group in SHOWN}
        pinned = {key: value for key, value in keys.items() if key.startswith("software.")}
        return CaseGroup(Portion(scenario, choices, keys, layouts, rule, tuple(reasons), said=composed_case.said), rows, pinned)

    def _scenario(self, given: Mapping[str, Any]) -> tuple[Composed, Scenario, str | None]:
        options = {name: _name(name, value) for name, value in given.items() if name in GROUPS}
        options, plain = usual_options(options, {name: value for name, value in given.items() if name not in GROUPS}, ())
        composed_case = self._composed.get(tuple(options.items()))
        if composed_case is None:
            composed_case = composed(options, (), self._trusted)
            require_unset(composed_case.tree, (), self._trusted)
            self._composed[tuple(options.items())] = composed_case
        if composed_case.whole:
            raise ValueError(f"parallel={options['parallel']}: is a sweep; allowed: one layout, as parallel.tp=8")
        values = {name: _thawed(value) for name, value in plain.items()}
        marks = _marks(options, plain)
        known = {name: self._sections[mark] for name, mark in marks.items() if mark in self._sections}
        tree = with_values(composed_case.tree, {key: value for key, value in values.items() if key.split(".", 1)[0] not in known})
        if any(key.split(".", 1)[0] in GUARDED_PARTS for key in values):
            require_unset(tree, (), self._trusted)
        for name in SECTIONS.keys() - known.keys():
            try:
                known[name] = self._sections[marks[name]] = SECTIONS[name].model_validate(tree[name])
            except ValidationError:
                continue  # the scenario says what is wrong
        return composed_case, *scenario_of(tree | known)


def _marks(options: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What each part of a scenario is made of: the options, and those of the values that are its own."""
    own: dict[str, list[Any]] = {name: [] for name in SECTIONS}
    for key, value in values.items():
        own[key.split(".", 1)[0]] += (key, type(value), value)
    chosen = tuple(options.items())
    return {name: (name, chosen, *told) for name, told in own.items()}


def _column(codes: Sequence[float | None] | None, rows: IntColumn, default: float) -> NDArray[Any]:
    if codes is None:
        return np.full(len(rows), default)
    cells = (codes[row] for row in rows.tolist())
    return np.array([default if code is None else code for code in cells])


def _name(group: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{group}={value!r}: allowed: the name of an option")
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, _Items):
        return {key: _thawed(item) for key, item in value}
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value
