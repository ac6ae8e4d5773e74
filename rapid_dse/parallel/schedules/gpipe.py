"""GPipe (Huang et al., arXiv 1811.06965)."""

from __future__ import annotations

import numpy as np

from rapid_dse.parallel.schedules.schedule import BACKWARD, FORWARD, Exact, FloatColumn, IntColumn, Order, Schedule, Slots, joined, passes


class GPipe(Schedule):
    """All forwards, then all backwards: every micro-batch is held.

    Each direction is a line in which micro-batches follow each other: it takes the passes of all stages once, and m - 1 times the longest
    of them. Where one stage is the slowest forward and another one backward, that is longer than m of the longest slots.
    """

    exact = Exact.ALL_STAGES
    holds_all = True
    directions_apart = True

    def bubble(self, slots: Slots) -> FloatColumn:
        longest = slots.forward.max(axis=0) + (slots.whole - slots.forward).max(axis=0)
        apart: FloatColumn = np.maximum(0.0, longest - slots.whole.max(axis=0))
        return slots.before + slots.after + (slots.micro_batches - 1) * apart

    def in_flight(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        return micro_batches.astype(np.float64)

    def order(self, stage: int, pp: int, chunks: int, micro_batches: int) -> Order:
        sequence = np.arange(micro_batches)
        return joined(passes(FORWARD, sequence), passes(BACKWARD, sequence))


SCHEDULE = GPipe()
