"""Rows of a table in blocks of one schedule, most of them of one pipeline.

What stages take or hold has a row for each candidate stage and a column for each layout. In a block of one pipeline, stages are constants
of ``(n_candidates, 1)``, each of them once: nothing of them is gathered or computed layout by layout, and a block's arrays stay in the
processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rapid_dse.common.columns import Positions, Shared, rows_of
from rapid_dse.parallel.layouts import IntColumn
from rapid_dse.parallel.stages import Stages

LEAST = 1024  # layouts of one pipeline that are worth a block of their own: of fewer the calls cost more than what they save
MOST = 16384  # layouts of a block
SHORT = 1 << 16  # numbers below it are sorted in one pass over their digits, in 16 bits


@dataclass(frozen=True)
class PipelineBlock:
    """Layouts of one schedule.

    Attributes:
        rows: where they stand in their table, ``(n_rows,)``.
        schedule: their schedule's code.
        stages: their candidate stages; ``(n_candidates, 1)`` where all have one pipeline.
        candidates: which of the table's candidates those are, ``(n_candidates,)``.
    """

    rows: Positions
    schedule: int
    stages: Stages
    candidates: Positions

    @property
    def one_pipeline(self) -> bool:
        """Whether all layouts have the same pipeline."""
        return bool(self.stages.layers.shape[-1] == 1)

    def of_pipeline(self, column: IntColumn) -> IntColumn:
        """What a column that the pipeline settles has for these layouts, ``(n_rows,)``, or ``(1,)`` where all have the same."""
        return column.take(self.rows[:1] if self.one_pipeline else self.rows)


def pipeline_blocks(schedule: IntColumn, shared_stages: Shared[Stages]) -> Iterator[PipelineBlock]:
    """All rows of a table, whose schedules and stages these are, each in one block; of one pipeline the rows follow each other."""
    kinds = shared_stages.of.layers.shape[-1]
    number = schedule * kinds + shared_stages.kind
    counts, every = np.bincount(number), np.arange(shared_stages.of.layers.shape[0])
    order = np.argsort(number.astype(np.uint16) if len(counts) <= SHORT else number, kind="stable")
    ends, many = np.cumsum(counts), counts >= LEAST
    for pair in np.flatnonzero(many).tolist():
        code, kind = divmod(pair, kinds)
        stages, candidates = shared_stages.of.of_layout(kind)
        for rows in _pieces(order[ends[pair] - counts[pair] : ends[pair]]):
            yield PipelineBlock(rows, code, stages, candidates)
    few = order[np.repeat(~many, counts)]
    codes = schedule.take(few)
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        for rows in _pieces(few[codes == code]):
            yield PipelineBlock(rows, code, rows_of(shared_stages.of, shared_stages.kind.take(rows)), every)


def _pieces(rows: Positions) -> Iterator[Positions]:
    yield from (rows[start : start + MOST] for start in range(0, len(rows), MOST))
