"""What stands behind the rows of a results file: a row holds all its override keys, so that its scenario can be composed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import known_key
from rapid_dse.sweep import standing
from rapid_dse.sweep.overrides import GROUPS
from rapid_dse.sweep.portion import Portion, Priceable

if TYPE_CHECKING:
    import pyarrow as pa

    from rapid_dse.sweep.cases import CaseGroup


def trial_of(row: Mapping[str, Any]) -> Priceable | None:
    """The scenario and the layout of a row; None where they cannot be composed here (a profile of the user's that is gone)."""
    portion = portion_of(row)
    return None if portion is None else Priceable(portion.scenario, portion.layouts)


def portion_of(row: Mapping[str, Any]) -> Portion | None:
    """As ``trial_of``, with the option behind each group."""
    portions_of_row = _portions([row])
    return None if portions_of_row is None else portions_of_row[0]


def usable_of(table: pa.Table) -> NDArray[np.float64] | None:
    """hw.memory.usable of each row, bytes, ``(n_rows,)``; None where it cannot be told."""
    codes, labels = standing.combinations_of(table, memory_keys(table.column_names))
    usable_of_labels = usable_by(labels)
    return None if usable_of_labels is None else np.array([usable_of_labels[label] for label in labels])[codes]


def memory_keys(names: Sequence[str]) -> list[str]:
    """Those of the columns that hw.memory.usable depends on."""
    return [name for name in names if name in standing.OF_USABLE]


def usable_by(labels: Sequence[standing.Label]) -> dict[standing.Label, float] | None:
    """hw.memory.usable under combinations of ``memory_keys``, bytes; None where it cannot be told."""
    portions_of_labels = _portions([dict(label) for label in labels])
    return (
        None
        if portions_of_labels is None
        else {label: of.scenario.hw.memory.usable for label, of in zip(labels, portions_of_labels, strict=True)}
    )


def is_override(name: str) -> bool:
    """Whether a column of results is an override key, a group's or another."""
    return name in GROUPS or (name.split(".")[0] in GROUPS and known_key(name))


def _portions(rows: Sequence[Mapping[str, Any]]) -> list[Portion] | None:
    """The portion of each row, in order."""
    names = dict.fromkeys(name for row in rows for name in row if is_override(name))
    groups = _grouped({name: [row.get(name) for row in rows] for name in names}, len(rows))
    if groups is None:
        return None
    of = {int(at): group.portion for group in groups for at in group.rows}
    return [of[at] for at in range(len(rows))]


def _grouped(columns: Mapping[str, Sequence[Any]], n_rows: int) -> list[CaseGroup] | None:
    """Rows by scenario; None where one cannot be composed here."""
    from rapid_dse.sweep.cases import group_columns

    try:
        return group_columns(columns, n_rows, trusted=True)
    except ValueError:
        return None


def portions_of(table: pa.Table) -> list[Portion] | None:
    """The rows of a table by scenario, in order of their first rows; None where they cannot be composed here."""
    groups = _grouped({name: table[name].to_pylist() for name in table.column_names if is_override(name)}, len(table))
    return None if groups is None else [group.portion for group in groups]
