"""Grouped products, one kernel over many small ones of unequal size: CUTLASS's pointer-array kernels as ``torch._grouped_mm`` calls them.

Such a kernel has two tiles to choose from, of which pairs along the rows form a cluster: a group's rows are padded to whole pairs, where
rows differ from group to group; of weight gradients the depth differs, and is padded to whole steps. A block stores its tile before it
multiplies the next one, so that all traffic of the output shows. Source: PyTorch 2.11, aten/src/ATen/native/cuda/GroupMM.cu, and CUTLASS,
sm90_tile_scheduler_group.hpp. No constant was fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.config.hardware import PRECISION_BYTES, Hardware
from rapid_dse.device.contract import FloatArray, GroupedCall
from rapid_dse.device.roofline import ACCUMULATE_BYTES
from rapid_dse.device.tiles import CLUSTERED, K_STEP_BYTES

GROUPED_TILES = ((64.0, 128.0), (128.0, 256.0))  # rows and columns of C; one block an SM
PAIR = 2.0  # blocks of a cluster, along the rows: they share the columns of B


@dataclass(frozen=True)
class GroupedWork:
    """What a tile makes of the shapes, ``(n,)`` each: clocks of the busiest SM, bytes that blocks read from L2."""

    clocks: FloatArray
    from_l2: FloatArray


def grouped_work(hw: Hardware, shape: FloatArray, call: GroupedCall, tile: tuple[float, float]) -> GroupedWork:
    """Clocks and traffic of one tile. ``shape``: rows m, n, k and groups, (4, n); m or k, by ``call.ragged``, is the groups' mean."""
    (m, n, k, groups), (rows, columns) = shape, tile
    step = K_STEP_BYTES // PRECISION_BYTES[call.precision]
    high, deep = np.ceil(m / (PAIR * rows)), np.ceil(k / step) * step
    if not call.even:  # the mean of what is padded is half a unit
        high = np.maximum(1.0, m / (PAIR * rows) + 0.5) if call.ragged == "m" else high
        deep = np.maximum(step, k + step / 2) if call.ragged == "k" else deep
    blocks = groups * PAIR * high * np.ceil(n / columns)
    rate = hw.peak_flops(call.precision) / (hw.sms * hw.clock) * hw.efficiency.issued(call.precision)
    clocks = deep * (2 * rows * columns / rate) + CLUSTERED.store_clocks * rows * columns
    read = deep * PRECISION_BYTES[call.precision] * (rows + columns) / np.sqrt(PAIR)
    return GroupedWork(np.ceil(blocks / hw.sms) * clocks, read * np.maximum(blocks, hw.sms))


def stored_bytes(shape: FloatArray, call: GroupedCall) -> FloatArray:
    """Bytes of all outputs, (n,)."""
    m, n, _, groups = shape
    return np.asarray(groups * m * n * (ACCUMULATE_BYTES if call.accumulate else max(PRECISION_BYTES[call.precision], 2.0)))
