"""ZB-V (Qi et al., Pipeline Parallelism with Controllable Memory, arXiv 2405.15362), as PyTorch's ``ScheduleZBVZeroBubble`` orders it."""

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
    in_turn,
    joined,
    passes,
)
from rapid_dse.parallel.schedules.stage_maps import V_SHAPED


class ZeroBubbleV(Schedule):
    """Two chunks a stage in a V, whose weight gradients fill what 1F1B waits for.

    No bubble where forward pass, input gradient and weight gradient take the same time, at the activations of 1F1B's first stage: p
    micro-batches on every stage. As published, a stage begins its next step when it has ended its own, so that nobody waits for all to
    update their weights (the optimizer's step is validated afterwards, arXiv 2401.10241, section 4).

    Memory: while micro-batches still come in, 2 p chunks are held whole, and a chunk's backward pass turns one of them into what its weight
    gradient needs; of the last micro-batches stage s leaves 2 s weight gradients to the end.
    """

    stage_map = V_SHAPED
    exact = Exact.EQUAL_PASSES
    fixed_chunks = 2
    splits_backward = True
    overlaps_sends = True
    runs_on = True

    def bubble(self, slots: Slots) -> FloatColumn:
        return np.zeros_like(slots.whole)

    def in_flight(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        padded = np.maximum(2 * pp - 1, micro_batches)  # the order is that of so many, without those that there are not
        more = np.maximum(0.0, late - 1.0)
        whole = np.minimum(2 * pp, micro_batches + np.minimum(micro_batches, stage + 1)) + more
        late_backward = np.maximum(0, micro_batches - (padded - pp))  # backward passes of the first chunk that come at the end
        delayed = np.minimum(late_backward, stage) + np.clip(micro_batches - (padded - stage), 0, stage)
        rest = np.maximum(0, late_backward - stage)
        held_micro_batches: FloatColumn = np.maximum(whole, rest + delayed * late + np.where(rest > 0, more, 0.0)) / chunks
        return held_micro_batches

    def order(self, stage: int, pp: int, chunks: int, micro_batches: int) -> Order:
        total = max(2 * pp - 1, micro_batches)
        first, second, behind = 2 * pp - 1 - stage, pp, pp - stage

        def run_of(kind: int, chunk: int, begin: int, end: int) -> Order:
            return passes(kind, np.arange(begin, end), chunk)

        order = joined(
            run_of(FORWARD, 0, 0, first - stage),
            in_turn(run_of(FORWARD, 1, 0, stage), run_of(FORWARD, 0, first - stage, first)),
            in_turn(run_of(FORWARD, 1, stage, second), run_of(INPUT, 1, 0, behind), run_of(WEIGHTS, 1, 0, behind)),
            _steady(stage, pp, total),
            in_turn(run_of(INPUT, 0, total - pp, total - behind), run_of(INPUT, 1, total - stage, total)),
            in_turn(run_of(INPUT, 0, total - behind, total), run_of(WEIGHTS, 0, total - pp, total - stage)),
            run_of(WEIGHTS, 1, total - stage, total),
            run_of(WEIGHTS, 0, total - stage, total),
        )
        return order[:, order[1] < micro_batches]


def _steady(stage: int, pp: int, total: int) -> Order:
    """One forward pass, input gradient and weight gradient of each chunk in turn, until no forward passes are left."""
    turns = np.arange(total - pp)
    order = in_turn(
        passes(FORWARD, turns + 2 * pp - 1 - stage, 0),
        passes(INPUT, turns, 0),
        passes(WEIGHTS, turns, 0),
        passes(FORWARD, turns + pp, 1),
        passes(INPUT, turns + pp - stage, 1),
        passes(WEIGHTS, turns + pp - stage, 1),
    )
    return order[:, order[1] < total]


SCHEDULE = ZeroBubbleV()
