"""No pipeline at all."""

from __future__ import annotations

import numpy as np

from rapid_dse.parallel.schedules.schedule import (
    BACKWARD,
    FORWARD,
    BoolColumn,
    Exact,
    FloatColumn,
    IntColumn,
    Order,
    Schedule,
    Slots,
    in_turn,
    passes,
)


class NoPipeline(Schedule):
    """pp = 1: nothing waits, one micro-batch is held."""

    exact = Exact.ALL_STAGES
    plain = True

    def rules(self, name: str, pp: IntColumn, micro_batches: IntColumn) -> list[tuple[str, BoolColumn]]:
        return [(f"a pipeline needs a schedule (schedule={name} is for pp = 1)", pp > 1)]

    def bubble(self, slots: Slots) -> FloatColumn:
        return np.zeros_like(slots.whole)

    def in_flight(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        return np.ones(len(pp))

    def order(self, stage: int, pp: int, chunks: int, micro_batches: int) -> Order:
        sequence = np.arange(micro_batches)
        return in_turn(passes(FORWARD, sequence), passes(BACKWARD, sequence))


SCHEDULE = NoPipeline()
