"""Numbers that answer themselves, against roots known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from rapid_dse.simulate.inference.fixed_points import NEAR, RootSearch, settled

FloatColumn = NDArray[np.float64]
LOW = np.array([1.0, 2.0, 3.0, 5.0, 8.0])


@dataclass(frozen=True)
class Point:
    answer: FloatColumn
    doubled: FloatColumn


class Falling:
    """x = low + (gain / x) ** power: of power 1 the root is (low + sqrt(low² + 4 gain)) / 2."""

    def __init__(self, gain: FloatColumn, power: float = 1.0) -> None:
        self.gain, self.power, self.asked = gain, power, 0

    def __call__(self, at: FloatColumn, rows: NDArray[np.intp] | None) -> Point:
        low, gain = (LOW, self.gain) if rows is None else (LOW.take(rows), self.gain.take(rows))
        self.asked += len(at)
        return Point(low + (gain / at) ** self.power, 2.0 * at)


@pytest.mark.parametrize("gain", [0.0, 1e-3, 1.0, 1e3, 1e9])
def test_roots_of_falling_answers_are_found_with_what_came_of_them(gain: float) -> None:
    """From next to nothing beside the bound to ten thousand times it."""
    gains = np.full(5, gain)
    state, search = settled(Falling(gains), RootSearch.above(LOW))
    roots = (LOW + np.sqrt(LOW * LOW + 4.0 * gains)) / 2.0
    np.testing.assert_allclose(search.at, roots, rtol=NEAR)
    np.testing.assert_array_equal(state.doubled, 2.0 * search.at)
    np.testing.assert_allclose(state.answer, search.at, rtol=NEAR)


def test_a_row_is_found_alike_whatever_stands_beside_it() -> None:
    """To the last bit: where others need more evaluations it stays, and it is asked for alone."""
    gains = np.array([1e-6, 1e6, 3.0, 1e-6, 1e-6])
    together = settled(Falling(gains), RootSearch.above(LOW))[1].at

    def alone(row: int) -> float:
        one = Falling(gains)
        return float(settled(lambda at, _: one(at, np.array([row])), RootSearch.above(LOW[row : row + 1]))[1].at[0])

    assert together.tolist() == [alone(row) for row in range(5)]


def test_rows_that_are_found_are_not_asked_for_again() -> None:
    """Four of five answer the same whatever they are asked; the fifth needs several evaluations, alone."""
    falling = Falling(np.array([0.0, 0.0, 1e4, 0.0, 0.0]))
    settled(falling, RootSearch.above(LOW))
    assert 5 < falling.asked < 20


def test_a_search_that_begins_near_its_end_asks_less_often() -> None:
    """From the root and the slope of nearly the same answers."""
    near, again, afresh = (Falling(np.full(5, gain)) for gain in (10.0, 10.001, 10.001))
    _, found = settled(near, RootSearch.above(LOW))
    _, second = settled(again, RootSearch.above(LOW, found.at, found.slope))
    _, third = settled(afresh, RootSearch.above(LOW))
    np.testing.assert_allclose(second.at, third.at, rtol=2 * NEAR)
    assert again.asked < 0.6 * afresh.asked


@pytest.mark.parametrize("power", [8.0, 40.0])
def test_steep_answers_are_held_between_bounds(power: float) -> None:
    """A bisection of x - low - (gain / x) ** power finds the same."""
    gains = np.array([1.1, 4.0, 30.0, 5.5, 80.0])
    found = settled(Falling(gains, power), RootSearch.above(LOW))[1].at
    low, high = LOW, np.maximum(LOW, gains) + 1.0
    for _ in range(200):
        middle = (low + high) / 2.0
        above = middle > LOW + (gains / middle) ** power
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    np.testing.assert_allclose(found, low, rtol=10 * NEAR)


def test_a_jump_over_the_diagonal_is_bounded_from_both_sides() -> None:
    """No point answers itself: what answers more lies next to what answers less."""
    _, search = settled(lambda at, _: Point(np.where(at < 7.0, 20.0, 2.0), at), RootSearch.above(np.ones(3)))
    np.testing.assert_allclose(search.low, 7.0, rtol=NEAR)
    np.testing.assert_allclose(search.high, 7.0, rtol=NEAR)
