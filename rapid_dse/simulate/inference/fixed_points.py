"""Numbers that answer themselves, x = answer(x), one a row: by secants, between bounds where one leads astray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import rows_of, with_rows

FloatColumn = NDArray[np.float64]
Positions = NDArray[np.intp]

NEAR = 3e-8  # how far an answer is from what is asked for at most, as a share of it
EVALUATIONS = 100  # at most: bounds that halve their ratio meet long before
STEEPEST = 0.9  # slope of answers up to which a secant is followed
SLOW = 0.5  # share of the gap before that is left at most, or else the next point halves the bounds' ratio
FEW = 0.5  # share of rows below which these are asked for alone


class Answered(Protocol):
    """What an evaluation gives, a dataclass of columns: the ``answer``, and whatever came of it."""

    @property
    def answer(self) -> FloatColumn: ...


State = TypeVar("State", bound=Answered)


@dataclass(frozen=True)
class RootSearch:
    """Where the search of each row stands, ``(n_rows,)`` each: positive numbers ``low`` and ``high`` that bound it, the number to ask for
    next (``at``), the last one (``asked``) with its ``answer``, None where none was asked for, and the ``slope`` of answers there."""

    low: FloatColumn
    high: FloatColumn
    at: FloatColumn
    asked: FloatColumn | None
    answer: FloatColumn | None
    slope: FloatColumn

    @classmethod
    def above(cls, low: FloatColumn, at: FloatColumn | None = None, slope: FloatColumn | None = None) -> RootSearch:
        """A search above ``low``, which begins there or ``at`` another point, with a guess of the slope."""
        begin = low if at is None else np.maximum(at, low)
        return cls(low, np.full_like(low, np.inf), begin, None, None, np.zeros_like(low) if slope is None else slope)

    def after(self, answer: FloatColumn) -> tuple[RootSearch, NDArray[np.bool_]]:
        """The search after such an answer, and which rows it goes on for; of the others the point stays."""
        asked, gap, slope = self.at, answer - self.at, self._slope(answer)
        near = NEAR * asked
        goes_on = (np.abs(gap) > near) & (self.high - self.low > near)
        if not goes_on.any():
            return replace(self, asked=asked, answer=answer, slope=slope), goes_on
        up = gap > 0
        low, high = np.where(up, asked, self.low), np.where(up, self.high, asked)
        point = asked + gap / np.maximum(1.0 - slope, 1.0 - STEEPEST)
        astray = ~((point > low) & (point < high))
        if self.asked is not None and self.answer is not None:
            astray |= np.abs(gap) > SLOW * np.abs(self.answer - self.asked)
        astray &= np.isfinite(high)
        if astray.any():
            point = np.where(astray, np.sqrt(low * high), point)
        return RootSearch(low, high, np.where(goes_on, point, asked), asked, answer, slope), goes_on

    def _slope(self, answer: FloatColumn) -> FloatColumn:
        """Of answers between the last point and the one before; that of before where they are the same."""
        if self.asked is None or self.answer is None:
            return self.slope
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = (answer - self.answer) / (self.at - self.asked)
        known = np.isfinite(slope)
        return slope if known.all() else np.where(known, slope, self.slope)


def settled(
    ask: Callable[[FloatColumn, Positions | None], State], search: RootSearch, rows: Positions | None = None, before: int = 0
) -> tuple[State, RootSearch]:
    """What is found where each row answers itself, and the search at its end.

    Args:
        ask: evaluates points, ``(n_rows,)``, or those of some ``rows`` alone. The answer of a row depends on its own point.
        before: evaluations already.
    """
    for count in range(before + 1, EVALUATIONS + 1):
        state = ask(search.at, rows)
        search, goes_on = search.after(state.answer)
        unsettled = np.flatnonzero(goes_on)
        if not len(unsettled):
            break
        if len(unsettled) < FEW * len(goes_on):
            rest = settled(ask, rows_of(search, unsettled), unsettled if rows is None else rows.take(unsettled), count)
            return with_rows(state, unsettled, rest[0]), with_rows(search, unsettled, rest[1])
    return state, search
