"""Which rows a ranked table shows: each, or one for all layouts that no prediction can tell apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.sweep.standing import FITS, Aim, Standing

REACH = 2.0  # lines for layouts that no prediction tells apart go on to this multiple of the best


@dataclass(frozen=True)
class Line:
    """One line of a ranked table.

    Attributes:
        at: the row's position in the standing.
        rank: its rank among the rows of its group that count, from 1; 0 where it does not count.
        alike: how many rows of its variant behind it are within the error to expect of it; None where each row has a line of its own.
        simplest: it is the simplest of the rows that cannot be told from the best.
        inside: it is the best of the rows whose settings all lie inside what was measured.
    """

    at: int
    rank: int
    alike: int | None = None
    simplest: bool = False
    inside: bool = False


def chosen(standing: Standing, group: int, aim: Aim) -> list[Line]:
    """The lines of a group's table.

    All rows, best first and what does not count last (the nearest to fitting first), where ``Aim.top`` has room for them. Else, where
    the error to expect is known, one line for a row and all of its variant that lie within its error, up to ``REACH`` times the
    variant's best, and the simplest of those alike to the best. The best row inside what was measured has a line too.
    ``Aim.best_per``: the best row of each value.
    """
    rows, count = ordered(standing, group)
    if aim.best_per is not None:
        _, first = np.unique(standing.per[rows[:count]], return_index=True)
        return [Line(int(rows[at]), int(at) + 1) for at in np.sort(first)]
    if count > aim.top and not aim.each and not np.isnan(standing.error[rows[0]]):
        return _with_inside(standing, rows[:count], _classes(standing, rows[:count], aim.top))
    count_of_lines = len(rows) if len(rows) <= aim.top else min(aim.top, count or len(rows))
    alike = like_the_best(standing, rows[:count])
    simple = alike[simplest(standing, rows[alike])] if len(alike) > 1 else -1
    lines = [Line(int(rows[at]), at + 1 if at < count else 0, simplest=at == simple) for at in range(count_of_lines)]
    return _with_inside(standing, rows[:count], lines)


def _with_inside(standing: Standing, rows: NDArray[np.int64], lines: list[Line]) -> list[Line]:
    """The lines with the best row inside what was measured marked; it is put at its place where it is none of them."""
    if not standing.inside[rows].any():
        return lines
    at = int(np.argmax(standing.inside[rows]))
    if any(line.rank == at + 1 for line in lines):
        return [replace(line, inside=line.rank == at + 1) for line in lines]
    counting = [line for line in lines if line.rank]
    return sorted([*counting, Line(int(rows[at]), at + 1, inside=True)], key=lambda line: line.rank) + lines[len(counting) :]


def ordered(standing: Standing, group: int) -> tuple[NDArray[np.int64], int]:
    """The rows of a group, best first, and how many of them count; what does not count comes last, the nearest to fitting first."""
    rows = np.flatnonzero(standing.group == group)
    counts = standing.verdict[rows] == FITS
    order = np.lexsort((standing.plainness[rows], standing.loss[rows], np.where(counts, 0.0, standing.over[rows])))
    return rows[order], int(counts.sum())


def like_the_best(standing: Standing, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the rows, best first, no prediction can tell from the first, itself included; none where its error is not known.

    They lie within the error to expect of it, and differ from it in their layout alone: of two chips under one layout the difference
    is known better than either's step time.
    """
    if not len(rows) or np.isnan(standing.error[rows[0]]):
        return np.zeros(0, np.int64)
    alike = (standing.loss[rows] <= _limit(standing, int(rows[0]))) & (standing.variant[rows] == standing.variant[rows[0]])
    return np.flatnonzero(alike)


def simplest(standing: Standing, rows: NDArray[np.int64]) -> int:
    """Which of the rows, best first, is the simplest (see ``standing.plainness``); of several the best."""
    return int(np.argmin(standing.plainness[rows]))


def _limit(standing: Standing, row: int) -> float:
    """The largest loss that cannot be told from a row's."""
    loss, error = float(standing.loss[row]), float(standing.error[row])
    return loss * (1 + error) if loss >= 0 else loss / (1 + error)


def _reached(standing: Standing, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows, best first, lie within ``REACH`` of the best of their variant, ``(n_rows,)``."""
    variants = np.unique(standing.variant)
    variant = np.searchsorted(variants, standing.variant[rows]).astype(np.int32)
    loss = standing.loss[rows]
    best = np.full(len(variants), np.inf)
    np.minimum.at(best, variant, loss)
    reached: NDArray[np.bool_] = loss <= np.where(best >= 0, best * REACH, best / REACH)[variant]
    return reached


def _classes(standing: Standing, rows: NDArray[np.int64], top: int) -> list[Line]:
    """A line for each row that is not within the error of one of its variant that has a line: ``top`` of them."""
    rest = np.flatnonzero(_reached(standing, rows))
    lines: list[Line] = []
    alike = like_the_best(standing, rows)
    simple = int(alike[simplest(standing, rows[alike])])
    while len(rest) and len(lines) < top:
        at = int(rest[0])
        row = int(rows[at])
        same = np.flatnonzero(standing.variant[rows] == standing.variant[row])
        same = same[same >= at]
        known = not np.isnan(standing.error[row])
        last = int(np.searchsorted(standing.loss[rows[same]], _limit(standing, row), side="right")) if known else 1
        lines.append(Line(row, at + 1, last - 1, simplest=at == simple))
        rest = rest[~np.isin(rest, same[:last])]
    if simple > 0:
        lines = sorted([*lines[: max(1, top - 1)], Line(int(rows[simple]), simple + 1, None, simplest=True)], key=lambda line: line.rank)
    return lines
