"""One trial as a row of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.table import priced_table


def priced_row(portion: Portion) -> dict[str, Any]:
    """The row of a portion's only layout, which is legal: all columns, plain values.

    Raises:
        ValueError: what pricing raises, which in a sweep is the row's reason.
    """
    search = portion.scenario.search.model_copy(update={"fail_fast": True})
    alone = replace(portion, scenario=portion.scenario.model_copy(update={"search": search}))
    row: dict[str, Any] = priced_table(alone).to_pylist()[0]
    if row["status"] not in ("ok", "oom"):
        raise ValueError(row["reason"])
    return row


def illegal(reason: str, overrides: Sequence[str]) -> str:
    """What is said of a trial whose layout breaks a rule: one between layout keys names none of the values, one between others does."""
    return reason if "=" in reason or not overrides else f"{' '.join(overrides)}: {reason}"
