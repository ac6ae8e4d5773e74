"""ZB-2P (Qi et al., Zero Bubble Pipeline Parallelism, arXiv 2401.10241): about twice 1F1B's activations for no bubble.

The order is that of ZB-H2 (section 2.3), which needs no search; the paper's automatic schedules at this memory differ from it where passes
are unequal.
"""

from __future__ import annotations

import numpy as np

from rapid_dse.parallel.schedules.schedule import (
    FORWARD,
    INPUT,
    WEIGHTS,
    Exact,
    FloatColumn,
    IntColumn,
    Order,
    Schedule,
    Slots,
    alternating,
    joined,
    passes,
)


class ZeroBubble2P(Schedule):
    """Twice as long a warm-up as ZB-H1's, and weight gradients that run 2 s micro-batches late on stage s.

    Bubble (p - 1)(F + B - 2 W), B being the input gradient alone, and no less than (p - 1)(B - F) nor 0. A stage begins its next step when
    it has ended its own: nobody waits for all to update their weights (the optimizer's step is validated afterwards, section 4).

    Memory: stage s holds 2 (p - s) - 1 micro-batches whole, and of 2 s more what their weight gradients need.
    """

    exact = Exact.EQUAL_PASSES
    splits_backward = True
    runs_on = True

    def bubble(self, slots: Slots) -> FloatColumn:
        backward = slots.whole - slots.forward - slots.weights
        idle_a_stage = np.maximum(slots.forward + backward - 2 * slots.weights, np.maximum(0.0, backward - slots.forward))
        idle: FloatColumn = idle_a_stage * (slots.position + slots.behind)
        return idle

    def in_flight(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        whole = np.minimum(micro_batches, 2 * (pp - stage) - 1)
        filled = whole + np.minimum(2 * stage, micro_batches - whole) * late
        backward = np.minimum(2 * stage + 1, micro_batches)  # passes before the first weight gradient, of few micro-batches all of them
        ahead = np.minimum(micro_batches, 2 * (pp - 1 - stage) + backward)
        drained = ahead + (backward - 1) * (late - 1.0)
        held_micro_batches: FloatColumn = np.maximum(filled, drained) + np.maximum(0.0, late - 1.0)
        return held_micro_batches

    def order(self, stage: int, pp: int, chunks: int, micro_batches: int) -> Order:
        sequence = np.arange(micro_batches)
        turns = alternating(passes(FORWARD, sequence), passes(INPUT, sequence), min(micro_batches, 2 * (pp - 1 - stage)))
        late = np.flatnonzero((turns[0] == INPUT) & (turns[1] >= 2 * stage))
        weights = passes(WEIGHTS, sequence)
        return joined(np.insert(turns, late + 1, weights[:, : len(late)], axis=1), weights[:, len(late) :])


SCHEDULE = ZeroBubble2P()
