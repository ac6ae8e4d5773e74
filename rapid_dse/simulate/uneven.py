"""Pipelines of unequal chunks: stages wait for each other chunk by chunk, which has no formula.

Interleaved 1F1B is run pass by pass wherever chunks differ, by their layers or by the embedding table that ZeRO 2 and 3 gather and
reduce around the first one; 1F1B where the user has split the layers: frameworks' own splits differ by a
layer or two, of which its closed form is within 1 %.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from rapid_dse.columns import Distinct, distinct, numbered
from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import INTERLEAVED, ONE_F_ONE_B, Layouts
from rapid_dse.network.loading import loading_numba
from rapid_dse.simulate.block import Block
from rapid_dse.simulate.layer import LAYER
from rapid_dse.simulate.slots import host_layer_seconds, launched_slot
from rapid_dse.simulate.stages import PACK, Split

FloatColumn = NDArray[np.float64]

THIRDS = np.array([1 / 3, 2 / 3])  # of a micro-batch's launches: forward, backward


def chunk_waits(
    scenario: Scenario,
    layouts: Layouts,
    block: Block,
    passes: tuple[FloatColumn, FloatColumn],
    sends: tuple[FloatColumn, FloatColumn],
    whole: FloatColumn,
    waits: FloatColumn,
) -> FloatColumn:
    """``waits`` with those of pipelines of unequal chunks as the schedule run pass by pass has them.

    Those stand at the stage with most work; the step is its work and they.

    Args:
        passes: seconds of a layer's forward and backward pass with all that shows beside them, ``(n_layouts,)`` each.
        sends: seconds that a stage sends a micro-batch's chunk, and that its host launches that in, one way, ``(n_layouts,)`` each.
        whole: seconds of a micro-batch on each candidate stage, ``(n_candidates, n_layouts)``.
        waits: the closed forms' idle seconds of each candidate, ``(n_candidates, n_layouts)``.
    """
    split = Split.of(scenario)
    packed = layouts.pp * PACK + layouts.vpp
    alternating = layouts.schedule == INTERLEAVED
    if split.given is not None:
        alternating = alternating | (layouts.schedule == ONE_F_ONE_B)
    alternating = alternating & (layouts.pp > 1)
    splits = [key for key in np.unique(packed[alternating]).tolist() if _differ(split.chunks(*divmod(key, PACK)))]
    # ZeRO 2 and 3 transfer the table around the first chunk of every micro-batch, which is the longer one where layers are equal
    longer = (layouts.schedule == INTERLEAVED) & (layouts.zero >= 2) & (layouts.shards > 1)
    equal = np.setdiff1d(packed[alternating & longer], splits).tolist()
    if not splits and not equal:
        return waits
    step_seconds = _recurrence()
    waits, micro_batches = waits.copy(), layouts.num_micro_batches
    ends = block.embedding, block.embedding_backward, block.head_forward, block.head_backward
    spent = np.stack([*passes, *ends, *sends, host_layer_seconds(scenario, layouts)])
    busiest = whole.max(axis=0)
    # what the passes depend on: ZeRO 0 and 1 are alike
    representative, case = Distinct(layouts).by(*LAYER, "vpp", np.maximum(1, layouts.zero))
    cases = len(representative)
    for key in [*splits, *equal]:
        pp, vpp = divmod(key, PACK)
        rows = np.flatnonzero(alternating & (packed == key) & (longer if key in equal else True))
        first, alike = distinct([(case[rows], cases), numbered(micro_batches[rows])])
        once = rows[first]
        device, launches = _shares(split, pp, vpp)
        host = launches @ spent[-1:, once] + THIRDS.repeat(pp * vpp)[:, None] * (scenario.software.host_micro_batch / vpp)
        lasting = launched_slot(scenario.software, device @ spent[:-1, once], host)
        seconds = step_seconds(lasting, pp, vpp, micro_batches[once])[alike]
        idle = np.maximum(0.0, seconds - micro_batches[rows] * busiest[rows])
        waits[:, rows] = np.where(whole[:, rows] == busiest[rows], idle, 0.0)
    return waits


@cache
def _recurrence() -> Callable[[FloatColumn, int, int, NDArray[np.int64]], FloatColumn]:
    """``recurrence.step_seconds``; numba is loaded where such a layout is priced, and nowhere else."""
    with loading_numba("the recurrence of uneven pipelines (once, about 5 s; then it is cached)"):
        from rapid_dse.trace.recurrence import step_seconds
    return step_seconds


def _differ(chunks: list[list[int]]) -> bool:
    return len({layers for stage in chunks for layers in stage}) > 1


@lru_cache(maxsize=64)
def _shares(split: Split, pp: int, vpp: int) -> tuple[FloatColumn, FloatColumn]:
    """How often each pass spends what, ``(2 * vpp * pp, …)``: on the device the 8 rows of ``chunk_waits``'s ``spent`` but the last, and of
    the host a layer's launches, a third of them forward and the rest backward (``slots.launched_part``)."""
    layers = np.array(split.chunks(pp, vpp)).T
    forward, backward = device = np.zeros((2, vpp, pp, 8))
    forward[..., 0], backward[..., 1] = layers, layers
    forward[0, 0, 2] = backward[0, 0, 3] = forward[-1, -1, 4] = backward[-1, -1, 5] = 1.0
    device[..., 6] = device[..., 7] = 1.0
    forward[-1, -1, 6] = backward[0, 0, 6] = 0.0
    launches = THIRDS.repeat(pp * vpp) * np.concatenate([layers.ravel()] * 2)
    return device.reshape(2 * vpp * pp, -1), launches[:, None]
