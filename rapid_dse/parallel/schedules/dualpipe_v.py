"""DualPipeV: DualPipe (DeepSeek-V3, arXiv 2412.19437, section 3.2.1) cut in half, as DeepSeek's ``dualpipev.py`` orders it."""

from __future__ import annotations

import numpy as np

from rapid_dse.parallel.schedules.schedule import (
    BACKWARD,
    FORWARD,
    FORWARD_BESIDE,
    INPUT,
    WEIGHTS,
    BoolColumn,
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


class DualPipeV(Schedule):
    """Two chunks a stage in a V; in the middle of a step a forward pass of one chunk runs together with a backward pass of the other.

    Bubble (p - 1)(F&B + B - 3 W) of a chunk's passes, B being the whole backward pass and F&B the two that run together: DualPipe's table
    with p / 2 - 1 for its p chunks, of which a stage here holds two, so that no parameters are doubled.

    Memory: 2 p + 1 chunks. Where a weight gradient needs more than was kept whole (under recomputation), those of the last micro-batches
    or of the first may need more.
    """

    stage_map = V_SHAPED
    exact = Exact.EQUAL_PASSES
    fixed_chunks = 2
    splits_backward = True
    overlaps_sends = True
    pairs_passes = True  # its report, section 3.2.1: both kinds of communication are hidden

    def rules(self, name: str, pp: IntColumn, micro_batches: IntColumn) -> list[tuple[str, BoolColumn]]:
        return [(f"{name} needs at least 2 · pp micro-batches", micro_batches < 2 * pp)]

    def bubble(self, slots: Slots) -> FloatColumn:
        together, backward = slots.whole, slots.whole - slots.forward
        idle: FloatColumn = (slots.position + slots.behind) * np.maximum(0.0, together + backward - 3 * slots.weights) / slots.chunks
        return idle

    def in_flight(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn, micro_batches: IntColumn, late: FloatColumn) -> FloatColumn:
        behind = pp - stage - 1
        first = np.where(behind > 0, 2 * pp - 1 + late, 0.0)
        last = behind + (stage + 1) * late
        held_micro_batches: FloatColumn = np.maximum(np.maximum(2 * pp + 1, first), last) / chunks
        return held_micro_batches

    def order(self, stage: int, pp: int, chunks: int, micro_batches: int) -> Order:
        behind, own = pp - stage - 1, stage + 1
        main = micro_batches - 2 * pp + own  # turns in which all passes of two micro-batches run

        def run_of(kind: int, chunk: int, begin: int, count: int) -> Order:
            return passes(kind, begin + np.arange(count), chunk)

        late = _late(stage, micro_batches - own, micro_batches - pp)
        delayed = np.concatenate([late[1:, late[0] == INPUT], run_of(INPUT, 0, micro_batches - behind, behind)[1:]], axis=1)
        weights = np.concatenate([np.full((1, delayed.shape[1]), WEIGHTS), delayed])  # in the order in which their inputs' gradients came
        turns = in_turn(
            run_of(FORWARD_BESIDE, 0, 2 * behind + own, main),
            run_of(BACKWARD, 1, behind, main),
            run_of(FORWARD_BESIDE, 1, pp, main),
            run_of(BACKWARD, 0, 0, main),
        )
        if stage == pp - 1:
            turns[0, 0] = FORWARD  # the last stage's first pair does not run together: its backward pass waits for this forward pass
        return joined(
            run_of(FORWARD, 0, 0, 2 * behind),
            in_turn(run_of(FORWARD, 0, 2 * behind, own), run_of(FORWARD, 1, 0, own)),
            in_turn(run_of(INPUT, 1, 0, behind), run_of(WEIGHTS, 1, 0, behind), run_of(FORWARD, 1, own, behind)),
            turns,
            in_turn(
                run_of(BACKWARD, 1, behind + main, behind), run_of(FORWARD_BESIDE, 1, pp + main, behind), run_of(BACKWARD, 0, main, behind)
            ),
            late,
            in_turn(weights[:, :behind], run_of(INPUT, 0, micro_batches - behind, behind)),
            weights[:, behind:],
        )


def _late(stage: int, second: int, first: int) -> Order:
    """The backward passes of both chunks in turn once no forward passes are left, from these micro-batches of the ``second`` and the
    ``first`` chunk on; from the middle on without their weight gradients."""
    own = np.arange(stage + 1)
    order = in_turn(passes(BACKWARD, second + own, 1), passes(BACKWARD, first + own, 0))
    order[0, order.shape[1] // 2 :] = INPUT
    return order


SCHEDULE = DualPipeV()
