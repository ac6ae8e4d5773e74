"""Engines of several tables as those of one: scenarios that differ in the lengths of their requests alone have passes of their own, whose
tables stand one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rapid_dse.parallel.engines import Degrees
from rapid_dse.simulate.inference.distinct_steps import Between, Costs, Places, StepGrid, places_in
from rapid_dse.simulate.inference.engine_memory import Room
from rapid_dse.simulate.inference.passes import EnginePass
from rapid_dse.simulate.inference.request_lives import OF_LENGTHS
from rapid_dse.simulate.inference.serving import Engine

FloatColumn = NDArray[np.float64]
IntColumn = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class JoinedGrids(StepGrid):
    """Grids each of which has neighbours among ``batches``; their flattened tables stand one behind the other. Passes are made: it has none
    of the works they are made of (``works``), and tells where batches lie in them alone.

    Of each kind, ``(n_kinds,)``: the interval of ``batches`` with which its own grid begins (``begins``), that grid's first and last batch,
    where the first stands in the tables if ``batches`` began there too (``first``), and how far apart its batches are there (``apart``).
    """

    begins: IntColumn
    lowest: FloatColumn
    highest: FloatColumn
    first: IntColumn
    apart: IntColumn

    def most(self, kind: IntColumn) -> FloatColumn | float:
        """As of one grid."""
        return self.highest.take(kind)

    def at(self, kind: IntColumn, batch: FloatColumn) -> Between:
        """As in one grid."""
        inside = np.minimum(np.maximum(batch, self.lowest.take(kind)), self.highest.take(kind))
        interval = self._places.below.take(self._places.of(inside), mode="clip")
        interval = np.maximum(interval, self.begins.take(kind))  # a grid's first batch is the last of an interval of other grids
        apart = self.apart.take(kind)
        below = self.first.take(kind) + interval * apart
        share = (inside - self.batches.take(interval)) * self._a_batch.take(interval)
        return Between(below, below + apart, share, 1.0 - share)

    @cached_property
    def _places(self) -> Places:
        return places_in(self.batches, 1)

    @cached_property
    def _a_batch(self) -> FloatColumn:
        """How much nearer to the next batch of the grid one batch more is, of each interval."""
        return np.asarray(1.0 / np.diff(self.batches))


def joined(engines: Sequence[Engine]) -> Engine:
    """The rows of all engines, one behind the other; either all of them generate more than one token or none does."""
    one, whole = engines[0], copy(engines[0])
    kinds, rows = [len(engine.costs.cut.tp) for engine in engines], [len(engine.kind) for engine in engines]
    whole.costs = _joined_costs([engine.costs for engine in engines])
    whole.place(np.concatenate([engine.kind for engine in engines]) + np.repeat(np.cumsum(kinds) - kinds, rows))
    for name in OF_LENGTHS:
        setattr(whole, name, np.repeat([getattr(engine, name) for engine in engines], rows))
    for name, value in vars(one).items():
        tables = [getattr(engine, name) for engine in engines]
        if isinstance(value, EnginePass):
            columns = ([getattr(table, field.name) for table in tables] for field in fields(EnginePass))
            setattr(whole, name, EnginePass(*map(_flat, columns)))
        elif isinstance(value, np.ndarray) and value.ndim == 2:  # by batch and kind
            setattr(whole, name, _flat(tables))
    return whole


def _flat(tables: Sequence[FloatColumn]) -> FloatColumn:
    return np.concatenate([table.reshape(-1) for table in tables])


def _joined_costs(every: Sequence[Costs]) -> Costs:
    rooms = (np.concatenate([getattr(costs.room, field.name) for costs in every]) for field in fields(Room))
    return replace(
        every[0],
        cut=Degrees.concatenate([costs.cut for costs in every]),
        room=Room(*rooms),
        decode=_joined_grids([costs.decode for costs in every]),
        prefill=_joined_grids([costs.prefill for costs in every]),
        together=np.concatenate([costs.together for costs in every]),
    )


def _joined_grids(grids: Sequence[StepGrid]) -> JoinedGrids:
    batches = np.array(sorted({batch for grid in grids for batch in grid.batches.tolist()}))
    kinds = np.array([grid.works[0].products.shape[1] for grid in grids])
    sizes = kinds * [len(grid.batches) for grid in grids]
    begins = batches.searchsorted([grid.batches[0] for grid in grids])
    assert all(np.array_equal(batches[start : start + len(grid.batches)], grid.batches) for start, grid in zip(begins, grids, strict=True))
    own = np.arange(kinds.sum()) - np.repeat(np.cumsum(kinds) - kinds, kinds)
    return JoinedGrids(
        batches=batches,
        works=(),
        begins=begins.repeat(kinds),
        lowest=np.repeat([grid.batches[0] for grid in grids], kinds),
        highest=np.repeat([grid.batches[-1] for grid in grids], kinds),
        first=np.repeat(np.cumsum(sizes) - sizes - begins * kinds, kinds) + own,
        apart=kinds.repeat(kinds),
    )
