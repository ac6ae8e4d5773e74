"""Interleaved 1F1B (Narayanan et al., arXiv 2104.04473, section 2.2; memory: Korthikanti et al., arXiv 2205.05198, section 4.2.3)."""

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
    alternating,
    passes,
)


class Interleaved(Schedule):
    """1F1B of several chunks a stage, as Megatron-LM runs it: pp micro-batches pass through a chunk, then through the next.

    The bubble is v times smaller; the first stage holds 1 + (p - 1) / (p v) times 1F1B's activations. Chunks of unequal layers wait longer.
    """

    exact = Exact.EQUAL_CHUNKS
    interleaves = True
    overlaps_sends = True
    plain = True

    def rules(self, name: str, pp: IntColumn, micro_batches: IntColumn) -> list[tuple[str, BoolColumn]]:
        return [(f"{name} needs micro-batches that divide by pp", (pp > 1) & (micro_batches % pp != 0))]

    def bubble(self, slots: Slots) -> FloatColumn:
        idle: FloatColumn = (slots.before + slots.waits) / slots.chunks
        return idle

    def in_flight(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        warm_up = 2 * (pp - stage - 1) + (chunks - 1) * pp + 1
        held_micro_batches: FloatColumn = np.minimum(warm_up, micro_batches * chunks) / chunks
        return held_micro_batches

    def order(self, stage: int, pp: int, chunks: int, micro_batches: int) -> Order:
        total = micro_batches * chunks
        k = np.arange(total)
        chunk, micro_batch = k % (pp * chunks) // pp, k // (pp * chunks) * pp + k % pp
        warm_up = min(total, 2 * (pp - 1 - stage) + (chunks - 1) * pp)
        return alternating(passes(FORWARD, micro_batch, chunk), passes(BACKWARD, micro_batch, chunks - 1 - chunk), warm_up)


SCHEDULE = Interleaved()
