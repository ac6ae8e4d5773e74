"""What no simulation can beat: the time that a stage computes, without a byte sent, a bubble, or a host that is late."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, Layouts
from rapid_dse.simulate.block import framework_block
from rapid_dse.simulate.stages import stages
from rapid_dse.simulate.training import CHUNK, Prepared, prepare

FloatColumn = NDArray[np.float64]


def lower_bound(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Seconds below which no backend's step can come, ``(n_layouts,)``: the fullest stage's compute, all its micro-batches in a row.

    Every backend prices operators alike, and a stage runs one at a time; whatever else a simulation knows of (transfers, congestion,
    bubbles, the optimizer, launches) only adds to it.

    Raises:
        ValueError: where the network has no closed form, or the chip lacks the precision.
    """
    ready = prepare(scenario, layouts)
    parts = [_computing(scenario, layouts, ready, slice(start, start + CHUNK)) for start in range(0, len(layouts), CHUNK)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _computing(scenario: Scenario, whole: Layouts, ready: Prepared, rows: slice) -> FloatColumn:
    layouts, alone = whole.take(rows), framework_block(scenario, ready.shape, ready.alone, ready.device)
    block = alone.take(ready.where[rows])
    full, selective = layouts.recompute == RECOMPUTE_FULL, layouts.recompute == RECOMPUTE_SELECTIVE
    again = np.where(full, block.layer_forward, np.where(selective, block.selective_recompute, 0.0))
    layer = block.layer_forward + block.layer_backward + again
    found = stages(scenario.model, scenario.software.pipeline_split, layouts.pp, layouts.vpp)
    slot = found.layers * layer + found.has_embedding * block.embedding + found.has_head * (block.head_forward + block.head_backward)
    # A rounding error must not make a bound of what is equal.
    seconds: FloatColumn = layouts.num_micro_batches * slot.max(axis=0) * (1 - 1e-12)
    return seconds
