"""ZB-H1 (Qi et al., Zero Bubble Pipeline Parallelism, arXiv 2401.10241, section 3)."""

from __future__ import annotations

import numpy as np

from rapid_dse.parallel.schedules.schedule import (
    FORWARD,
    INPUT,
    WEIGHTS,
    BoolColumn,
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


class ZeroBubbleH1(Schedule):
    """1F1B whose weight gradients run s micro-batches late on stage s, so that later stages pass gradients on early.

    Bubble (p - 1)(F + B - W), B being the input gradient alone: 1F1B's less 2 (p - 1) W. Stage s does s weight gradients at the end:
    either those of the slowest stage end the step, or what they let stages before it do.

    Memory: stage s holds p - s micro-batches whole, as 1F1B, and of s more what their weight gradients need (M_W of M_B, section 3.1:
    inputs of products and gradients of their outputs). The peak comes with a micro-batch's backward pass, which turns what it holds
    whole into what is left for its weight gradient: the larger of the two counts.
    """

    exact = Exact.EQUAL_PASSES
    splits_backward = True

    def rules(self, name: str, pp: IntColumn, micro_batches: IntColumn) -> list[tuple[str, BoolColumn]]:
        return [(f"{name} needs at least pp micro-batches", micro_batches < pp)]

    def bubble(self, slots: Slots) -> FloatColumn:
        until_first = slots.before - slots.weights_before - (slots.position + 1) * slots.weights + slots.weights_first
        ahead = np.maximum(until_first, slots.forward_before)
        idle: FloatColumn = ahead + slots.waits_for(slots.after - slots.weights_after)
        return idle

    def in_flight(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        whole = np.minimum(micro_batches, pp - stage)
        held_micro_batches: FloatColumn = whole - 1 + np.maximum(1.0, late) + np.minimum(stage, micro_batches - whole) * late
        return held_micro_batches

    def order(self, stage: int, pp: int, chunks: int, micro_batches: int) -> Order:
        sequence = np.arange(micro_batches)
        turns = alternating(passes(FORWARD, sequence), passes(INPUT, sequence), min(micro_batches, pp - 1 - stage))
        late = np.flatnonzero((turns[0] == INPUT) & (turns[1] >= stage))
        weights = passes(WEIGHTS, sequence)
        return joined(np.insert(turns, late + 1, weights[:, : len(late)], axis=1), weights[:, len(late) :])


SCHEDULE = ZeroBubbleH1()
