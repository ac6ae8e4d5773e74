"""The tile model: thread-block tiles over the SMs in whole waves, the slowest level of the memory hierarchy wins.

A candidate is a tile and a number of blocks that share its K. It takes the most of
  * multiplying: whole waves of blocks, each its K loop and its store, at the clock that the power limit leaves;
  * L2: each tile reads its rows of A and its columns of B, a cluster of blocks sharing the reads;
  * shared memory and registers, which bound it from below where they are slower than all of these;
  * HBM: each operand once, and again where a wave covers less than the whole output,
the kernel's latency, the exposed part of the store and the meeting of a split K beside it. The library is taken to find the best.
Every candidate's time is non-decreasing in each of m, n, k and batch, so the least of them is too: the law holds by construction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rapid_dse.common.columns import added
from rapid_dse.config.hardware import PRECISION_BYTES, Hardware
from rapid_dse.device.contract import AttentionCall, AttentionShape, FloatArray, GroupedCall, OperatorModel
from rapid_dse.device.flash import flash_seconds
from rapid_dse.device.grouped import GROUPED_TILES, grouped_work, stored_bytes
from rapid_dse.device.roofline import ACCUMULATE_BYTES
from rapid_dse.device.tiles import CLUSTERED, K_STEP_BYTES, SYNCHRONOUS, candidates

# A level that is nearly as slow as the slowest gets in its way: levels combine as (Σ tᵖ)^(1/p), the slowest alone at p = ∞. p = 2 ** this;
# fitted.
SQUARED = 2
SPLIT_SECONDS = 2.3e-6  # blocks that share a tile's K meet: a semaphore and a reduction's latency; fitted
RASTER = 4  # waves that find an operand's rows still in L2
STREAM = 0.92  # bandwidth of a kernel that reads and writes, over one that reads: HBM turns around
SMALLEST = 0.42  # of the kernel latency: what the smallest streaming kernel takes (an H200: 1.15 of 2.75 us)
RESIDENT = 0.5  # share of L2 in which a tensor of the preceding kernel survives
CHUNK = 1024  # shapes priced together: candidates × shapes stay in cache


def sustained_clock(hw: Hardware, activity: FloatArray, precision: str = "bf16") -> FloatArray:
    """Clock, Hz, that the power limit leaves when tensor cores issue ``activity`` (share of their peak at any clock), (n,).

    ``hw.efficiency.clock`` is the share held at full activity in bf16; another precision draws power by its energy a FLOP
    (``hw.energy.flop``) and its rate: fp8 at twice the rate takes more than half the energy, and throttles more.

    Dynamic power goes with activity × f × V², and V falls with f: halving the activity of the tensor cores lets the clock rise by about
    its square root until it meets the boost clock. The exponent is between 1/3 (V proportional to f) and 1 (V at its floor); a half is
    fitted.
    """
    draw = tensor_power(hw, precision) / tensor_power(hw, "bf16")
    share = hw.efficiency.clock / np.sqrt(np.maximum(draw * activity, 1e-9) / hw.efficiency.tensor)
    return np.asarray(hw.clock * np.minimum(share, 1.0), dtype=np.float64)


def tensor_power(hw: Hardware, precision: str) -> float:
    """Watts of matrix products at their peak; where the chip or its energy table lacks the precision, those of fp16, then fp32."""
    joules = {str(name): energy for name, energy in hw.energy.flop.items()}
    for name in (precision, "fp16", "fp32"):
        if getattr(hw.tensor_flop_per_sm_clock, name) is not None and name in joules:
            return hw.peak_flops(name) * joules[name]
    return 1.0


class Tiled(OperatorModel):
    """The default model of operators."""

    def __init__(self, hw: Hardware) -> None:
        super().__init__(hw)
        self.family = CLUSTERED if hw.cluster > 1 else SYNCHRONOUS
        self._candidates = candidates(hw)

    def elementwise(self, bytes_moved: ArrayLike) -> FloatArray:
        """Streaming at HBM's rate, what the L2 still holds of the preceding kernel at the L2's."""
        hbm_bytes = np.asarray(bytes_moved, dtype=np.float64)
        hw = self.hw
        resident = np.minimum(hbm_bytes, RESIDENT * hw.l2.size)
        slow = hw.memory.bandwidth * hw.efficiency.memory * STREAM
        fast = max(hw.l2.bandwidth * hw.efficiency.l2, slow)
        return np.asarray((hbm_bytes - resident) / slow + resident / fast + SMALLEST * hw.kernel_latency, dtype=np.float64)

    def _flash(self, shape: AttentionShape, call: AttentionCall) -> FloatArray:
        return flash_seconds(self.hw, shape, call, sustained_clock)

    def _grouped(self, shape: FloatArray, call: GroupedCall) -> FloatArray:
        if self.family is not CLUSTERED:
            return super()._grouped(shape, call)
        hw, (m, n, k, groups), output = self.hw, shape, stored_bytes(shape, call)
        least = np.full(m.shape, np.inf)
        for tile in GROUPED_TILES:
            work = grouped_work(hw, shape, call, tile)
            activity = 2 * m * n * k * groups / (work.clocks * hw.peak_flops(call.precision) / hw.clock)
            levels = (
                work.clocks / sustained_clock(hw, activity, call.precision),
                work.from_l2 / (hw.l2.bandwidth * hw.efficiency.l2),
                self._operands(shape, PRECISION_BYTES[call.precision], output) / (hw.memory.bandwidth * hw.efficiency.memory),
            )
            least = np.minimum(least, together(levels))
        return np.asarray(least + output / (hw.memory.bandwidth * hw.efficiency.memory) + hw.kernel_latency, dtype=np.float64)

    def _gemm(self, m: FloatArray, n: FloatArray, k: FloatArray, batch: FloatArray, *, precision: str, accumulate: bool) -> FloatArray:
        flat = np.stack([array.ravel() for array in (m, n, k, batch)])
        parts = [self._least(flat[:, start : start + CHUNK], precision, accumulate) for start in range(0, m.size, CHUNK)]
        return np.concatenate(parts).reshape(m.shape) if parts else np.zeros(m.shape)

    def _least(self, shapes: FloatArray, precision: str, accumulate: bool) -> FloatArray:
        """Seconds of the best candidate for each of the ``shapes`` (4, n): rows m, n, k, batch."""
        m, n, _, batch = shapes
        c, hw = self._candidates, self.hw
        output = batch * m * n * (ACCUMULATE_BYTES if accumulate else max(PRECISION_BYTES[precision], 2))
        blocks = batch * np.ceil(m / c.rows) * np.ceil(n / c.columns) * c.split
        levels = (
            self._multiplying(shapes, blocks, precision),
            self._from_l2(shapes, blocks, precision),
            self._from_hbm(shapes, output, precision),
        )
        seconds = np.maximum(together(levels), self._inside(shapes, blocks, precision))
        seconds += np.where(c.split > 1, SPLIT_SECONDS, 0.0)
        stored = self.family.store_exposed * output / (hw.memory.bandwidth * hw.efficiency.memory)
        return np.asarray(seconds.min(axis=0) + stored + hw.kernel_latency, dtype=np.float64)

    def _multiplying(self, shapes: FloatArray, blocks: FloatArray, precision: str) -> FloatArray:
        """Seconds of whole waves of blocks on the tensor cores, (c, n)."""
        m, n, k, batch = shapes
        hw, c = self.hw, self._candidates
        rate = hw.peak_flops(precision) / (hw.sms * hw.clock)
        step = K_STEP_BYTES // PRECISION_BYTES[precision]
        depth = np.ceil(k / (c.split * step)) * step
        queue = np.ceil(blocks / hw.sms)
        working = 1.0 if precision == "fp32" else c.working
        clocks = queue * depth * (2 * c.rows * c.columns / (rate * working * hw.efficiency.issued(precision)))
        clocks += np.ceil(queue / c.resident) * (self.family.store_clocks * c.rows * c.columns)
        activity = 2 * m * n * k * batch / (clocks * (hw.sms * rate))
        return np.asarray(clocks / sustained_clock(hw, activity, precision), dtype=np.float64)

    def _from_l2(self, shapes: FloatArray, blocks: FloatArray, precision: str) -> FloatArray:
        """Seconds of the L2's traffic, (c, n): operands by block, an SM's share of the bandwidth to each where blocks are few."""
        m, n, k, batch = shapes
        hw, c = self.hw, self._candidates
        operands = k / c.split * (PRECISION_BYTES[precision] * (c.rows + c.columns) / np.sqrt(hw.cluster))
        partials = batch * m * n * np.where(c.split > 1, 8.0 * c.split, 0.0)  # sums of a split K, fp32, written and read
        traffic = operands * np.maximum(blocks, hw.sms) + partials
        return np.asarray(traffic / (hw.l2.bandwidth * hw.efficiency.l2), dtype=np.float64)

    def _inside(self, shapes: FloatArray, blocks: FloatArray, precision: str) -> FloatArray:
        """Seconds of the traffic within the SMs, (c, n), below which no kernel gets: each block's operands read from shared memory once,
        and of products without tensor cores (fp32) three operands of four bytes from registers for each multiply-add."""
        m, n, k, batch = shapes
        hw, c = self.hw, self._candidates
        operands = k / c.split * (PRECISION_BYTES[precision] * (c.rows + c.columns))
        shared = operands * np.maximum(blocks, hw.sms) / hw.shared_memory.bandwidth
        if precision != "fp32":
            return np.asarray(shared, dtype=np.float64)
        return np.asarray(np.maximum(shared, 12.0 * m * n * k * batch / hw.registers.bandwidth), dtype=np.float64)

    def _from_hbm(self, shapes: FloatArray, output: FloatArray, precision: str) -> FloatArray:
        """Seconds of HBM's traffic, (c, n): all of it at full bandwidth, or a block's at what one SM can draw."""
        m, n, k, _ = shapes
        hw, c = self.hw, self._candidates
        width = PRECISION_BYTES[precision]
        hbm_bytes = self._operands(shapes, width, output)
        block = width * k / c.split * (np.minimum(m, c.rows) + np.minimum(n, c.columns))
        drawn = np.maximum(hbm_bytes, block * (hw.sms * self.family.saturation))
        return np.asarray(drawn / (hw.memory.bandwidth * hw.efficiency.memory), dtype=np.float64)

    def _operands(self, shapes: FloatArray, width: float, output: FloatArray) -> FloatArray:
        """Bytes of HBM: each operand once, and again where a wave covers less than the whole output, (n,)."""
        m, n, k, batch = shapes
        wave = RASTER * np.sqrt(self.hw.sms * 128.0 * 128.0)  # side of the square of C that is under way at once
        hbm_bytes = batch * width * (m * k * np.maximum(1, n / wave) + k * n * np.maximum(1, m / wave)) + output
        return np.asarray(hbm_bytes, dtype=np.float64)


def together(levels: Sequence[FloatArray]) -> FloatArray:
    """Seconds of a kernel from those of each level of its memory hierarchy: the slowest, which nearly as slow ones get in the way of."""
    slowest = np.maximum.reduce(list(levels))
    shares = [level / slowest for level in levels]
    for _ in range(SQUARED):  # powers take ten times as long as products and roots
        shares = [share * share for share in shares]
    combined = added(shares)
    for _ in range(SQUARED):
        combined = np.sqrt(combined)
    return np.asarray(slowest * combined, dtype=np.float64)
