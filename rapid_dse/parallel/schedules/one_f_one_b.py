"""1F1B (Narayanan et al., arXiv 2104.04473, section 2.2)."""

from __future__ import annotations

import numpy as np

from rapid_dse.parallel.schedules.schedule import (
    BACKWARD,
    FORWARD,
    Exact,
    FloatColumn,
    IntColumn,
    Order,
    Schedule,
    Slots,
    alternating,
    passes,
)


class OneForwardOneBackward(Schedule):
    """One forward and one backward in turn: the bubble of GPipe, at most p - s micro-batches held.

    On stages that differ, the slowest waits less for faster ones behind it (``Slots.waits``).
    """

    exact = Exact.SIMILAR_STAGES
    plain = True

    def bubble(self, slots: Slots) -> FloatColumn:
        return slots.before + slots.waits

    def in_flight(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        held_micro_batches: FloatColumn = np.minimum(micro_batches, pp - stage).astype(np.float64)
        return held_micro_batches

    def order(self, stage: int, pp: int, chunks: int, micro_batches: int) -> Order:
        sequence = np.arange(micro_batches)
        return alternating(passes(FORWARD, sequence), passes(BACKWARD, sequence), min(micro_batches, pp - 1 - stage))


SCHEDULE = OneForwardOneBackward()
