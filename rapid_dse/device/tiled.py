"""The tile model: thread-block tiles over the SMs in whole waves, the slowest level of the memory hierarchy wins.

Every candidate's time is non-decreasing in each of m, n, k and batch, so the least over candidates is too: the law holds by
construction. A candidate costs the most of
  * multiplying: whole waves of blocks, each its K loop, its pipeline fill and its store, at the clock that the power limit leaves;
  * L2: each tile reads its rows of A and columns of B once, ``hw.cluster`` blocks sharing one of the two reads;
  * HBM: each operand once, and again where a wave covers less than the whole output,
and the kernel's latency, the exposed part of the store, and the reduction of a split K beside it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rapid_dse.config.hardware import PRECISION_BYTES, Hardware
from rapid_dse.device.contract import AttentionShape, Direction, FloatArray, OperatorModel
from rapid_dse.device.flash import flash_seconds
from rapid_dse.device.roofline import ACCUMULATE_BYTES
from rapid_dse.device.tiles import CLUSTERED, K_STEP_BYTES, SYNCHRONOUS, candidates

# Dynamic power goes with activity × f × V², and V falls with f: halving the activity of the tensor cores lets the clock rise by
# about its square root until it meets the boost clock. Between 1/3 (V proportional to f) and 1 (V at its floor); fitted.
POWER_EXPONENT = 0.5
RASTER = 4  # waves that find an operand's rows still in L2
STREAM = 0.92  # bandwidth of a kernel that reads and writes, over one that reads: HBM turns around
RESIDENT = 0.5  # share of L2 in which a tensor of the preceding kernel survives
CHUNK = 2048  # shapes priced together: candidates × shapes stay in cache


def sustained_clock(hw: Hardware, activity: FloatArray) -> FloatArray:
    """Clock, Hz, that the power limit leaves when tensor cores issue ``activity`` (share of their peak at any clock), (n,)."""
    share = hw.efficiency.clock * np.maximum(activity / hw.efficiency.tensor, 1e-9) ** -POWER_EXPONENT
    return np.asarray(hw.clock * np.minimum(share, 1.0), dtype=np.float64)


class Tiled(OperatorModel):
    """The default model of operators."""

    def __init__(self, hw: Hardware) -> None:
        super().__init__(hw)
        self.family = CLUSTERED if hw.cluster > 1 else SYNCHRONOUS
        self._candidates = candidates()

    def elementwise(self, bytes_moved: ArrayLike) -> FloatArray:
        """Streaming at HBM's rate, what the L2 still holds of the preceding kernel at the L2's."""
        moved = np.asarray(bytes_moved, dtype=np.float64)
        hw = self.hw
        resident = np.minimum(moved, RESIDENT * hw.l2.size)
        slow = hw.memory.bandwidth * hw.efficiency.memory * STREAM
        fast = max(hw.l2.bandwidth * hw.efficiency.l2, slow)
        return np.asarray((moved - resident) / slow + resident / fast + hw.kernel_latency, dtype=np.float64)

    def _flash(self, shape: AttentionShape, direction: Direction, kernel: str, precision: str, dropout: bool) -> FloatArray:
        return flash_seconds(self.hw, shape, direction, kernel, precision, dropout, sustained_clock)

    def _gemm(self, m: FloatArray, n: FloatArray, k: FloatArray, batch: FloatArray, *, precision: str, accumulate: bool) -> FloatArray:
        flat = np.stack([array.ravel() for array in (m, n, k, batch)])
        parts = [self._least(flat[:, start : start + CHUNK], precision, accumulate) for start in range(0, m.size, CHUNK)]
        return np.concatenate(parts).reshape(m.shape) if parts else np.zeros(m.shape)

    def _least(self, shapes: FloatArray, precision: str, accumulate: bool) -> FloatArray:
        """Seconds of the best candidate for each of the ``shapes`` (4, n): rows m, n, k, batch."""
        m, n, k, batch = shapes
        hw, family, c = self.hw, self.family, self._candidates
        width = PRECISION_BYTES[precision]
        tiles = batch * np.ceil(m / c.rows) * np.ceil(n / c.columns)
        blocks = tiles * c.split
        compute = self._multiply(m, n, k, batch, blocks, precision)
        hbm = hw.memory.bandwidth * hw.efficiency.memory
        output = batch * m * n * (ACCUMULATE_BYTES if accumulate else max(width, 2))
        wave = RASTER * np.sqrt(hw.sms * 128.0 * 128.0)
        moved = batch * width * (m * k * np.maximum(1, n / wave) + k * n * np.maximum(1, m / wave)) + output
        memory = moved / (hbm * np.minimum(1, blocks / (hw.sms * family.saturation)))
        partials = np.where(c.split > 1, batch * m * n * 8.0 * c.split, 0.0)  # fp32, written and read
        l2 = (tiles * k * width * (c.rows + c.columns / hw.cluster) + partials) / (
            hw.l2.bandwidth * hw.efficiency.l2 * np.minimum(1, blocks / hw.sms)
        )
        beside = hw.kernel_latency + family.store_exposed * output / hbm + np.where(c.split > 1, family.split, 0.0)
        total = np.maximum(np.maximum(compute, memory), l2) + beside
        return np.asarray(total.min(axis=0), dtype=np.float64)

    def _multiply(self, m: FloatArray, n: FloatArray, k: FloatArray, batch: FloatArray, blocks: FloatArray, precision: str) -> FloatArray:
        """Seconds of whole waves of blocks on the tensor cores, (c, n)."""
        hw, family, c = self.hw, self.family, self._candidates
        rate = hw.peak_flops(precision) / (hw.sms * hw.clock)
        step = K_STEP_BYTES // PRECISION_BYTES[precision]
        share = np.ceil(k / (c.split * step)) * step
        issue = 1 + family.issue * 64 * (1 / c.rows + 1 / c.columns)
        block = share * (2 * c.rows * c.columns * issue / (rate * hw.efficiency.tensor))
        queue = np.ceil(blocks / hw.sms)
        clocks = queue * block + np.ceil(queue / c.resident) * (family.block_clocks + family.store_clocks * c.rows * c.columns)
        activity = 2 * m * n * k * batch / (clocks * hw.sms * rate)
        return clocks / sustained_clock(hw, activity)
