"""Which rows of a study are asked for: terms such as ``hw=h100 tp>=4 step_time_s<20 fits``, answered on columns."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import unit_of
from rapid_dse.config.units import to_si
from rapid_dse.explorer.study_shelf import LoadedStudy
from rapid_dse.sweep import standing

Mask = NDArray[np.bool_]
_TERM = re.compile(r"([A-Za-z_][\w.]*)\s*(<=|>=|!=|=|<|>)\s*(.*)")
_COMPARED = {"<=": np.less_equal, ">=": np.greater_equal, "<": np.less, ">": np.greater}
_ENDS = (("_bytes", "bytes"), ("_s", "s"))
_TRUTH = {"true": 1.0, "false": 0.0}
_CLOSE = 1e-9  # relative difference up to which a number is the one that was asked for
STATUSES = ("fits", "ok", "oom", "invalid", "error")
INSIDE = "inside"  # of rows in which nothing lies outside what was measured
ALLOWED = f"{', '.join((*STATUSES, INSIDE))}, or column=value, with != < <= > >= and lists of values as tp=4,8"


def matching(study: LoadedStudy, text: str, chosen: Mapping[str, Sequence[str]]) -> Mask:
    """The rows for which all terms of ``text`` hold, and whose columns have one of the ``chosen`` values, ``(n_rows,)``.

    Raises:
        ValueError: a term that is none, with what is allowed.
    """
    mask = np.ones(len(study), bool)
    for term in _terms(text):
        mask &= _holds(study, term)
    for name, values in chosen.items():
        mask &= _is_any(study, column_of(study, name), values, name)
    return mask


def _terms(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(
            f"filter: {text!r} cannot be read ({error}); allowed: terms with blanks between, a blank in a value in quotes"
        ) from None


def _holds(study: LoadedStudy, term: str) -> Mask:
    if term == INSIDE:
        return standing.inside(study.table)
    if term in STATUSES:
        return _has_status(study, term)
    parts = _TERM.fullmatch(term)
    if parts is None:
        raise ValueError(f"filter: {term!r} is no term; allowed: {ALLOWED}")
    name, sign, value = column_of(study, parts[1]), parts[2], parts[3]
    if sign == "=":
        return _is_any(study, name, value.split(","), parts[1])
    if sign == "!=":
        return ~_is_any(study, name, value.split(","), parts[1])
    if study.is_text(name):
        raise ValueError(f"filter: {term!r}: {name} holds texts; allowed: {parts[1]}=value, or {parts[1]}!=value")
    with np.errstate(invalid="ignore"):
        mask: Mask = _COMPARED[sign](study.column_of_numbers(name), _number(name, value, term))
    return mask


def _has_status(study: LoadedStudy, word: str) -> Mask:
    if word == "fits":
        fits: Mask = study.column_of_numbers("fits") == 1
        return fits
    return _is_any(study, "status", [word], "status")


def column_of(study: LoadedStudy, name: str) -> str:
    """The column that a name stands for: itself, or the one key that ends in it, as tp does for parallel.tp.

    Raises:
        ValueError: where there is none or there are several, with the nearest.
    """
    names: list[str] = study.table.column_names
    if name in names:
        return name
    ending = [column for column in names if column.endswith(f".{name}")]
    if len(ending) > 1:
        usual = [column for column in ending if column == f"parallel.{name}"]
        if not usual:
            raise ValueError(f"filter: {name} stands for several columns; allowed: {', '.join(ending)}")
        ending = usual
    if ending:
        return ending[0]
    near = difflib.get_close_matches(name, [*names, *(column.rsplit(".", 1)[-1] for column in names)], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(names)}"
    raise ValueError(f"filter: {name}: no column of this study{hint}")


def _is_any(study: LoadedStudy, name: str, values: Sequence[str], term: str) -> Mask:
    """The rows whose column is one of the values; ``default`` stands for rows that have none."""
    if study.is_text(name):
        column = study.column_of_texts(name)
        codes = [column.values.index(value) for value in values if value in column.values]
        return np.isin(column.codes, [*codes, *([-1] if "default" in values else [])])
    numbers = study.column_of_numbers(name)
    mask = np.isnan(numbers) if "default" in values else np.zeros(len(study), bool)
    for value in (value for value in values if value != "default"):
        number = _number(name, value, f"{term}={value}")
        mask |= numbers == number if number == round(number) else np.abs(numbers - number) <= _CLOSE * abs(number)
    return mask


def _number(name: str, text: str, term: str) -> float:
    """A number in the column's SI unit."""
    if text in _TRUTH:
        return _TRUTH[text]
    unit = unit_of(name) or next((unit for end, unit in _ENDS if name.endswith(end) and "tokens" not in name and "per_s" not in name), None)
    try:
        value = to_si(text, unit) if unit else float(text)
    except ValueError as error:
        what = str(error) if unit else f"{text!r} is no number"
        raise ValueError(f"filter: {term!r}: {what}; allowed: {name} beside a number") from None
    if not math.isfinite(value):
        raise ValueError(f"filter: {term!r}: {text} is not finite; allowed: a finite number")
    return value
