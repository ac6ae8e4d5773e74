"""GPipe (Huang et al., arXiv 1811.06965)."""

from __future__ import annotations

import numpy as np

from rapid_dse.parallel.schedules.schedule import BACKWARD, FORWARD, Exact, FloatColumn, IntColumn, Order, Schedule, Slots, joined, passes


class GPipe(Schedule):
    """All forwards, then all backwards: every micro-batch is held."""

    exact = Exact.ALL_STAGES
    holds_all = True

    def bubble(self, slots: Slots) -> FloatColumn:
        return slots.before + slots.after

    def in_flight(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        return micro_batches.astype(np.float64)

    def order(self, stage: int, pp: int, chunks: int, micro_batches: int) -> Order:
        sequence = np.arange(micro_batches)
        return joined(passes(FORWARD, sequence), passes(BACKWARD, sequence))


SCHEDULE = GPipe()
