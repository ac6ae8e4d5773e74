"""What no simulation can beat: what the stages compute, one after the other where one waits for another, without a byte sent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import summed
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.architecture import split_of
from rapid_dse.parallel import schedules
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.parallel.stages import packed, stages, unpacked
from rapid_dse.simulate.end_of_step import update_seconds
from rapid_dse.simulate.held_weights import stage_weights
from rapid_dse.simulate.layer_work import Block, framework_block
from rapid_dse.simulate.recomputed import recomputed
from rapid_dse.simulate.shard_copies import with_copies
from rapid_dse.simulate.training import Prepared, price_operators

FloatColumn = NDArray[np.float64]

CHUNK = 131072  # layouts whose bounds are found together, all candidate stages of each at once

# The event engine counts whole ns, and a layer's passes are at most this many computations.
_LAYER_NODES = 32


def lower_bound(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Seconds below which no backend's step can come, whatever the network, ``(n_layouts,)``.

    Every backend prices operators alike, and a stage runs one at a time. So a stage takes no less than its own compute for all
    micro-batches, before which the first one passes the stages ahead of it, and after which the last one passes them again, backward.
    What else a simulation knows of (transfers, congestion, a host that is late) only adds to that.

    Raises:
        ValueError: where the chip lacks the precision, or the model is none that can be priced.
    """
    ready = price_operators(scenario, layouts)
    block = framework_block(scenario, ready.shape, ready.alone, ready.device)
    parts = [_computing(scenario, layouts, ready, block, slice(start, start + CHUNK)) for start in range(0, len(layouts), CHUNK)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _computing(scenario: Scenario, whole: Layouts, ready: Prepared, alone: Block, rows: slice) -> FloatColumn:
    layouts, software = whole.take(rows), scenario.software
    block = with_copies(scenario, layouts, alone.take(ready.where[rows]), ready.device)
    stage_columns = stages(split_of(scenario), layouts)
    ahead = _layers_ahead(scenario, layouts, stage_columns.position)
    layers = [layer.forward + layer.backward + recomputed(scenario, layouts, layer) for layer in block.layers]
    of_layers = summed(stage_columns.of_kinds, layers)
    slot = of_layers + stage_columns.has_embedding * block.embedding + stage_columns.has_head * (block.head_forward + block.head_backward)
    # A split backward pass ends a stage with weight gradients, which no other stage waits for.
    delayed = schedules.SPLITS_BACKWARD.take(layouts.schedule)
    passing = [
        np.where(delayed, np.clip(whole - 2 * layer.weight_gradient, 0.0, layer.forward), whole)
        for whole, layer in zip(layers, block.layers, strict=True)
    ]
    update = update_seconds(scenario, layouts, stage_weights(scenario, layouts, stage_columns, trained=True).first_stage(), ready.device)
    own = layouts.num_micro_batches * slot + summed(ahead, passing) + np.where(delayed & (stage_columns.position > 0), 0.0, update)
    rounding = 0.5e-9 * _LAYER_NODES * (layouts.num_micro_batches * (stage_columns.layers + 1) + ahead.sum(axis=0) + 1)
    seconds: FloatColumn = (own - rounding).max(axis=0) * (1 - 1e-12) + software.host.host_step
    return np.maximum(seconds, 0.0)


def _layers_ahead(scenario: Scenario, layouts: Layouts, position: NDArray[np.int64]) -> FloatColumn:
    """Layers of each kind that a micro-batch passes before it comes to a stage's first chunk, ``(n_kinds, n_candidates, n_layouts)``; 0
    where a stage runs on into its next step.

    Of an uneven chunk no more counts than the closed forms' mean.
    """
    split = split_of(scenario)
    ahead = np.zeros((split.kinds, *position.shape))
    number, waits = packed(layouts), (layouts.pp > 1) & ~schedules.RUNS_ON.take(layouts.schedule)
    for key in np.unique(number[waits]).tolist():
        of_kinds = split.of_kinds(*unpacked(key))  # (pp, chunks, n_kinds)
        passed = np.minimum(of_kinds[:, 0], of_kinds.mean(axis=1))
        rows = waits & (number == key)
        up_to = np.concatenate([np.zeros((1, split.kinds)), np.cumsum(passed, axis=0)])
        ahead[:, :, rows] = np.moveaxis(up_to[position[:, rows]], -1, 0)
    return ahead
