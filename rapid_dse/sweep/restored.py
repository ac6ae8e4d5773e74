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


def trial_of(row: Mapping[str, Any]) -> Priceable | None:
    """The scenario and the layout of a row; None where they cannot be composed here (a profile of the user's that is gone)."""
    found = portion_of(row)
    return None if found is None else Priceable(found.scenario, found.layouts)


def portion_of(row: Mapping[str, Any]) -> Portion | None:
    """As ``trial_of``, with the option behind each group."""
    found = _portions([{key: value for key, value in row.items() if is_override(key)}])
    return None if found is None else found[0]


def usable_of(table: pa.Table) -> NDArray[np.float64] | None:
    """hw.memory.usable of each row, bytes, ``(n_rows,)``; None where it cannot be told."""
    hardware = [name for name in table.column_names if name.split(".")[0] == "hw" and name != "hw.num_gpus"]
    keys = [name for name in hardware if is_override(name)]
    codes, labels = standing.combinations_of(table, keys)
    found = _portions([dict(label) for label in labels])
    return None if found is None else np.array([portion.scenario.hw.memory.usable for portion in found])[codes]


def is_override(name: str) -> bool:
    """Whether a column of results is an override key, a group's or another."""
    return name in GROUPS or (name.split(".")[0] in GROUPS and known_key(name))


def _portions(rows: Sequence[Mapping[str, Any]]) -> list[Portion] | None:
    """The portion of each row, in order."""
    import pandas as pd

    from rapid_dse.sweep.cases import group_cases

    try:
        groups = group_cases(pd.DataFrame([{**row, "row": at} for at, row in enumerate(rows)], dtype=object), trusted=True)
    except ValueError:
        return None
    of = {int(at): group.portion for group in groups for at in group.rows}
    return [of[at] for at in range(len(rows))]


def portions_of(table: pa.Table) -> list[Portion] | None:
    """The rows of a table by scenario, in order of their first rows; None where they cannot be composed here."""
    import pandas as pd

    from rapid_dse.sweep.cases import group_cases

    columns = [name for name in table.column_names if is_override(name)]
    frame = pd.DataFrame({name: pd.Series(table[name].to_pylist(), dtype=object) for name in columns})
    try:
        return [group.portion for group in group_cases(frame, trusted=True)]
    except ValueError:
        return None
