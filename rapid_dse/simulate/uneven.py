"""Pipelines of unequal chunks: stages wait for each other chunk by chunk, which has no formula.

Interleaved 1F1B is run pass by pass wherever chunks differ, by their layers or by the embedding table that ZeRO 2 and 3 gather and
reduce around the first one; 1F1B where the user has split the layers: frameworks' own splits differ by a
layer or two, of which its closed form is within 1 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Positions, distinct, numbered
from rapid_dse.common.compiled import loading_numba
from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.layouts import INTERLEAVED, ONE_F_ONE_B, BoolColumn, IntColumn, Layouts
from rapid_dse.simulate.layer import LAYER
from rapid_dse.simulate.layer_work import Block
from rapid_dse.simulate.slots import host_layer_seconds, launched_slot
from rapid_dse.simulate.stages import PACK, Split

FloatColumn = NDArray[np.float64]

THIRDS = np.array([1 / 3, 2 / 3])  # of a micro-batch's launches: forward, backward


@dataclass(frozen=True)
class ChunkPasses:
    """What the passes of a pipeline's chunks take, ``(n_layouts,)`` each, and which layouts need a run.

    Attributes:
        layer: seconds of a layer's forward and backward pass with all that shows beside them.
        ends: of the embedding's two passes and the head's two.
        sends: seconds that a stage sends a micro-batch's chunk, and that its host launches that in, one way.
        host: seconds in which the host launches a layer.
        split: pp and vpp as one number.
        uneven: whether the chunks differ.
        case: a number that layouts share whose passes take equally long.
    """

    layer: tuple[FloatColumn, FloatColumn]
    ends: tuple[FloatColumn, FloatColumn, FloatColumn, FloatColumn]
    sends: tuple[FloatColumn, FloatColumn]
    host: FloatColumn
    split: IntColumn
    uneven: BoolColumn
    case: Positions


def passes_of(
    scenario: Scenario, layouts: Layouts, block: Block, layer: tuple[FloatColumn, FloatColumn], sends: tuple[FloatColumn, FloatColumn]
) -> ChunkPasses:
    """``ChunkPasses`` of layouts; ``layer`` and ``sends`` as there."""
    split, packed = Split.of(scenario), layouts.pp * PACK + layouts.vpp
    number, count = numbered(packed)
    example = np.empty(count, np.int64)
    example[number] = packed
    differ = np.array([key >= 2 * PACK and _differ(split, *divmod(key, PACK)) for key in example.tolist()], bool)
    # ZeRO 2 and 3 transfer the table around the first chunk of every micro-batch, which is the longer one where layers are equal
    longer = layouts.interleaved & (layouts.zero >= 2) & (layouts.shards > 1) & (layouts.pp > 1)
    _, case = layouts.alike.by(*LAYER, "vpp")
    ends = block.embedding, block.embedding_backward, block.head_forward, block.head_backward
    return ChunkPasses(layer, ends, sends, host_layer_seconds(scenario, layouts), packed, differ[number] | longer, case)


def run_pass_by_pass(scenario: Scenario) -> tuple[int, ...]:
    """The schedules that are run where chunks differ."""
    return (INTERLEAVED,) if scenario.parallel.stage_layers is None else (INTERLEAVED, ONE_F_ONE_B)


def chunk_waits(
    scenario: Scenario, passes: ChunkPasses, kind: Positions, micro_batches: IntColumn, closed: tuple[FloatColumn, FloatColumn]
) -> FloatColumn:
    """The closed forms' waits, but of pipelines of unequal chunks those that the schedule run pass by pass has.

    Those stand at the stage with most work; the step is its work and they.

    Args:
        kind: where each layout stands in ``passes``, ``(n,)``; micro_batches: of its step.
        closed: seconds of a micro-batch, and idle seconds by the closed form, on each candidate stage, ``(n_candidates, n)`` each.
    """
    whole, waits = closed
    rows = np.flatnonzero(passes.uneven.take(kind))
    if not len(rows):
        return waits
    seconds = np.full(len(kind), np.nan)
    seconds[rows] = _run(scenario, passes, kind.take(rows), micro_batches.take(rows))
    busiest = whole.max(axis=0)
    idle = np.where(whole == busiest, np.maximum(0.0, seconds - micro_batches * busiest), 0.0)
    return np.where(np.isnan(seconds), waits, idle)


def _run(scenario: Scenario, passes: ChunkPasses, kind: Positions, micro_batches: IntColumn) -> FloatColumn:
    """Seconds from the first pass of a step to the end of the last, ``(n,)``; layouts whose passes take equally long are run once."""
    split, step_seconds = Split.of(scenario), _recurrence()
    first, alike = distinct([numbered(passes.case.take(kind)), numbered(micro_batches)])
    once, count = kind.take(first), micro_batches.take(first)
    order = np.argsort(passes.split.take(once), kind="stable")  # by split
    once, count = once.take(order), count.take(order)
    seconds, splits = np.empty(len(first)), passes.split.take(once)
    spent = np.stack([column.take(once) for column in (*passes.layer, *passes.ends, *passes.sends)])
    host_layer, ends = passes.host.take(once), [*(np.flatnonzero(np.diff(splits)) + 1).tolist(), len(splits)]
    for start, end in zip([0, *ends], ends, strict=False):
        pp, vpp = divmod(int(splits[start]), PACK)
        device, launches, pass_kind = _shares(split, pp, vpp)
        host = launches[:, :1] * host_layer[start:end] + launches[:, 1:] * scenario.software.host.host_micro_batch
        lasting = launched_slot(scenario.software, device @ spent[:, start:end], host)
        seconds[order[start:end]] = step_seconds(lasting, pp, vpp, count[start:end], pass_kind)
    return seconds.take(alike)


@cache
def _recurrence() -> Callable[[FloatColumn, int, int, IntColumn, Positions], FloatColumn]:
    """``recurrence.step_seconds``; numba is loaded where such a layout is priced, and nowhere else."""
    with loading_numba("the recurrence of uneven pipelines (once, about 5 s; then it is cached)"):
        from rapid_dse.parallel.recurrence import step_seconds
    return step_seconds


@lru_cache(maxsize=4096)
def _differ(split: Split, pp: int, vpp: int) -> bool:
    return len({layers for stage in split.chunks(pp, vpp) for layers in stage}) > 1


@lru_cache(maxsize=64)
def _shares(split: Split, pp: int, vpp: int) -> tuple[FloatColumn, FloatColumn, Positions]:
    """How often each kind of pass spends what, and the kind of each of the ``2 * vpp * pp`` passes.

    Returns:
        ``(n_kinds, 8)`` on the device, ``ChunkPasses``'s layer, ends and sends; ``(n_kinds, 2)`` on the host, a layer's launches and a
        micro-batch's, a third of them forward and the rest backward (``slots.launched_part``); ``(2 * vpp * pp,)`` kinds.
    """
    layers = np.array(split.chunks(pp, vpp)).T
    forward, backward = device = np.zeros((2, vpp, pp, 8))
    forward[..., 0], backward[..., 1] = layers, layers
    forward[0, 0, 2] = backward[0, 0, 3] = forward[-1, -1, 4] = backward[-1, -1, 5] = 1.0
    device[..., 6] = device[..., 7] = 1.0
    forward[-1, -1, 6] = backward[0, 0, 6] = 0.0
    thirds = THIRDS.repeat(pp * vpp)
    launches = np.stack([thirds * np.concatenate([layers.ravel()] * 2), thirds / vpp], axis=1)
    found, kind = np.unique(np.hstack([device.reshape(2 * vpp * pp, -1), launches]), axis=0, return_inverse=True)
    return found[:, :8], found[:, 8:], kind.reshape(-1)
