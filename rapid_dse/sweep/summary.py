"""A sweep or a search as one value: what ``-m --json`` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rapid_dse.sweep import ranking, store
from rapid_dse.sweep.driver import INTERRUPTED
from rapid_dse.sweep.overrides import Given
from rapid_dse.sweep.quiet import of_stderr, priced_study


def summarized(given: Given, say: Callable[[list[str]], None]) -> tuple[dict[str, Any], int]:
    """Prices what a command line spans; its summary, and the exit code.

    Args:
        say: is given the lines on settings without effect.

    Raises:
        ValueError: one line, as of a sweep.
    """
    err = of_stderr()
    study = priced_study(given, say, err)
    if study.code == INTERRUPTED:
        return {"study": study.name, "folder": str(study.folder), "interrupted": True}, study.code
    table = store.read(study.folder, lambda line: err.print(line, highlight=False, markup=False, soft_wrap=True))
    status, reasons = ranking.counts(table)
    by = study.search.objectives[0]
    fitting = table.filter(table["fits"])
    best = ranking.best(fitting, by, study.search.top).to_pylist() if len(fitting) else []
    summary = {
        "study": study.name,
        "folder": str(study.folder),
        "trials": table.num_rows,
        "status": dict(status),
        "reasons": dict(reasons.most_common()),
        "left_out": dict(study.left_out),
        "by": by,
        "best": best,
    }
    return summary, study.code
