"""Which rows of a table are alike, against a count of its rows as tuples."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rapid_dse.common.columns import Distinct, GatheredInTurn, Shared, at, largest
from rapid_dse.parallel.layouts import KEYS, Layouts
from rapid_dse.simulate.results import ABSENT, Priced


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


def test_rows_are_gathered_column_by_column_and_stand_alone_in_another_process() -> None:
    layouts = Layouts.of({name: np.arange(1, 9) for name in KEYS})
    counted = layouts.num_micro_batches
    some, piece = layouts.take(np.array([6, 2])), layouts.take(slice(2, 5))
    assert (len(some), len(piece), len(some.take(np.array([1, 1, 0])))) == (2, 3, 3)
    assert some.take(np.array([1, 1, 0])).tp.tolist() == [3, 3, 7]
    assert piece.pp.tolist() == [3, 4, 5]
    assert some.num_micro_batches.tolist() == counted[[6, 2]].tolist()
    sent = pickle.loads(pickle.dumps(some))
    assert vars(sent).keys() == KEYS.keys()
    assert sent.vpp.tolist() == [7, 3]
    assert replace(some, tp=some.cp + 1).tp.tolist() == [8, 4]
    with pytest.raises(AttributeError, match="no attribute 'tpp'"):
        some.tpp  # type: ignore[attr-defined]  # noqa: B018


def test_results_in_pieces_are_those_of_the_whole() -> None:
    one, nan = np.arange(5.0), np.full(5, np.nan)
    whole = Priced(**{f.name: nan if f.name in ABSENT else one * place for place, f in enumerate(fields(Priced))})
    pieces = [whole.part(slice(0, 3)), whole.part(slice(3, 4)), whole.part(slice(4, 5))]
    shared = np.full(3, np.nan)  # one array in the first piece alone
    pieces[0] = replace(pieces[0], **dict.fromkeys(sorted(ABSENT), shared))
    pieces[1] = replace(pieces[1], goodput=np.array([0.5]))
    result = Priced.in_pieces(5, pieces)
    for f in fields(Priced):
        expected = getattr(whole, f.name).copy()
        expected[3] = 0.5 if f.name == "goodput" else expected[3]
        np.testing.assert_array_equal(getattr(result, f.name), expected, err_msg=f.name)
    assert Priced.in_pieces(5, [whole]) is whole


def test_long_runs_of_rows_that_are_alike() -> None:
    """Of a table with many rows one of each run is looked at: slow columns, with and without fast ones, and runs that come again."""
    runs, rng = np.array([40, 3, 500, 1, 77, 900, 2]), np.random.default_rng(8)
    n_rows = 12 * int(runs.sum())
    table = Table(
        same=np.zeros(n_rows, np.int64),
        flag=np.repeat(np.arange(12) % 2 == 0, runs.sum()),
        few=np.repeat(np.tile(rng.integers(-2, 2, len(runs)), 12), np.tile(runs, 12)),
        far=np.repeat(rng.choice([-(2**62), 7, 2**62], 12), runs.sum()),
        many=np.arange(n_rows) % 5,
    )
    alike = Distinct(table)
    for names in (("flag", "few"), ("same",), ("far", "flag", "few"), ("many",), ("few", "many", "flag", "far"), ("far", "many"), ("few",)):
        rows = list(zip(*(getattr(table, name).tolist() for name in names), strict=True))
        first, kind = alike.by(*names)
        assert [rows[row] for row in first[kind]] == rows, names
        assert len(first) == len(set(rows)), names


def test_blocks_in_turn_have_their_own_rows() -> None:
    gathered = GatheredInTurn(Shared(Table(*(np.arange(4) * 10 + column for column in range(5))), np.array([3, 0, 3, 1, 0])))
    first = gathered.rows(np.array([0, 1]))
    assert first.few.tolist() == [32, 2]
    assert gathered.rows(np.array([2, 4])) is first  # other rows of the same kinds
    assert gathered.rows(np.array([3])).few.tolist() == [12]
