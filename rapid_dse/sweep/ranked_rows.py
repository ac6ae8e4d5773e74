"""The lines of a ranked table as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rapid_dse.sweep.choosing import chosen
from rapid_dse.sweep.identity import Lanes
from rapid_dse.sweep.standing import FITS, Aim, Standing


def ranked_rows(standing: Standing, aim: Aim, rows: Callable[[Lanes], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The rows that a ranked table has a line for, group by group (models and workloads), best first.

    Each has, beside its columns, ``rank`` (from 1 within its group; null where it does not count: it does not fit, or breaks a
    constraint), ``group`` (what all rows of its group share), ``alike`` (rows behind it that no prediction can tell from it; null where
    each has a line), ``simplest`` (of those alike to the best) and ``inside`` (the best with nothing outside what was measured).
    """
    listed: list[dict[str, Any]] = []
    for group, label in enumerate(standing.labels):
        if not (standing.group == group).any():
            continue
        lines = chosen(standing, group, aim)
        for line, row in zip(lines, rows(standing.lanes[[line.at for line in lines]]), strict=True):
            counts = int(standing.verdict[line.at]) == FITS
            place = {"rank": line.rank if counts and line.rank else None, "group": dict(label), "alike": line.alike}
            listed.append({**place, "simplest": line.simplest, "inside": line.inside, "row": dict(row)})
    return listed
