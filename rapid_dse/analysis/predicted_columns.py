"""What is predicted of a table that is none of cases, as columns beside its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rapid_dse.device import FloatArray
from rapid_dse.sweep.cases import CaseGroup, group_cases

AsCases = Callable[[pd.DataFrame], pd.DataFrame]
Predict = Callable[[CaseGroup, pd.DataFrame], Mapping[str, FloatArray]]


def predicted_columns(
    table: pd.DataFrame,
    left_out: pd.Series[str],
    as_cases: AsCases,
    predict: Predict,
    figures: Sequence[str],
) -> pd.DataFrame:
    """``predicted.<column>`` for each of ``figures`` that the table has: a row's prediction where the figure was measured, else NaN.

    Args:
        left_out: why a row is not predicted; empty where it is.
        as_cases: rows as override keys; ``predict`` gives the figures of rows of one scenario, ``(n_rows,)`` by column.

    Raises:
        ValueError: a chip that conf/hw lacks, or a value that is none of its key's.
    """
    priced = table[left_out.eq("")]
    columns = {name: np.full(len(table), np.nan) for name in figures}
    if len(priced):
        place = table.index.get_indexer(priced.index)
        for group in group_cases(as_cases(priced)):
            for name, values in predict(group, priced.iloc[group.rows]).items():
                columns[name][place[group.rows]] = values
    wanted = [name for name in figures if name in table]
    measured_alone = {f"predicted.{name}": np.where(table[name].notna().to_numpy(), columns[name], np.nan) for name in wanted}
    return pd.DataFrame(measured_alone, index=table.index)


def llama_on_one_gpu(rows: pd.DataFrame) -> dict[str, Any]:
    """The override keys of a Llama whose dimensions stand in a table's columns, on the chip of its row."""
    return {
        "hw": rows["hw"],
        "model": "llama",
        "model.num_hidden_layers": rows["layers"],
        "model.hidden_size": rows["hidden"],
        "model.num_attention_heads": rows["heads"],
        "model.num_key_value_heads": rows["kv_heads"],
        "model.head_dim": rows["head_dim"],
        "model.intermediate_size": rows["ffn"],
    }
