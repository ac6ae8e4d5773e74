"""Which rows of a table are alike, against a count of its rows as tuples."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rapid_dse.common.columns import Distinct, Shared, at, largest


@dataclass(frozen=True)
class Table:
    """Columns that are constant, boolean, of few values, of few but far apart, and of as many values as rows."""

    same: NDArray[Any]
    flag: NDArray[Any]
    few: NDArray[Any]
    far: NDArray[Any]
    many: NDArray[Any]


@pytest.mark.parametrize("n_rows", [0, 1, 2, 500, 20_000])
def test_rows_that_are_alike_have_one_kind(n_rows: int) -> None:
    rng = np.random.default_rng(n_rows)
    table = Table(
        same=np.full(n_rows, -(10**12)),
        flag=rng.random(n_rows) < 0.5,
        few=rng.integers(-3, 4, n_rows),
        far=rng.choice([-(2**62), 0, 7, 2**62], n_rows) if n_rows else np.zeros(0, np.int64),
        many=rng.permutation(n_rows) * 1000,
    )
    for names in (("same",), ("flag", "few"), ("far", "same", "few"), ("many", "few"), ("far", "many", "flag", "few")):
        rows = list(zip(*(getattr(table, name).tolist() for name in names), strict=True))
        first, kind = Distinct(table).by(*names)
        seen: dict[Any, int] = {}
        expected = [seen.setdefault(row, number) for number, row in enumerate(rows)]  # the first row that is alike
        assert first[kind].tolist() == expected
        assert sorted(first.tolist()) == sorted(seen.values())


def test_a_record_of_kinds_has_a_row_for_each_row() -> None:
    shared = Shared(Table(*(np.arange(3) * 10 + column for column in range(5))), np.array([2, 0, 2]))
    assert shared.rows.few.tolist() == [22, 2, 22]
    assert shared.take(np.array([1, 1])).gather(lambda table: table.many).tolist() == [4, 4]


def test_the_first_of_the_largest_is_found_and_read() -> None:
    values = np.array(list(product([0.0, 1.0, 2.0], repeat=4))).T
    where = largest(values)
    np.testing.assert_array_equal(where, values.argmax(axis=0))
    np.testing.assert_array_equal(at(values, where, np.arange(values.shape[1])), values.max(axis=0))
