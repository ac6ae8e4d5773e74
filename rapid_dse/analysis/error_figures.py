"""What is said of predictions' errors, in every table of them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def error_figures(lines: pd.DataFrame, by: Sequence[str], *, sort: bool = False) -> pd.DataFrame:
    """Figures of ``lines["error"]``, predicted / measured − 1, by group, a line each: ``n`` that are known; ``mape``, ``median`` and
    ``p90`` of the absolute error; ``bias``, the mean.

    Args:
        by: the columns that make groups; ``sort``: by their values, else as they come.
    """
    groups = lines.assign(absolute=lines["error"].abs()).groupby(list(by), sort=sort)
    absolute = groups["absolute"]
    return pd.DataFrame(
        {
            "n": absolute.count(),
            "mape": absolute.mean(),
            "median": absolute.median(),
            "p90": absolute.quantile(0.9),
            "bias": groups["error"].mean(),
        }
    )
