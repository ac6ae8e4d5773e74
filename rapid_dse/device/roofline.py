"""The roofline: an operator takes as long as its FLOP at the sustained peak or its bytes at the sustained bandwidth, the slower."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rapid_dse.config.hardware import PRECISION_BYTES
from rapid_dse.device.contract import AttentionCall, AttentionShape, FloatArray, OperatorModel

ACCUMULATE_BYTES = 8.0  # fp32 output, read and written


class Roofline(OperatorModel):
    """Williams, Waterman, Patterson (CACM 2009), with the shares of the peaks that the chip sustains (``hw.efficiency``)."""

    def elementwise(self, bytes_moved: ArrayLike) -> FloatArray:
        rate = self.hw.memory.bandwidth * self.hw.efficiency.memory
        return np.asarray(np.asarray(bytes_moved, dtype=np.float64) / rate + self.hw.kernel_latency, dtype=np.float64)

    def _gemm(self, m: FloatArray, n: FloatArray, k: FloatArray, batch: FloatArray, *, precision: str, accumulate: bool) -> FloatArray:
        width = PRECISION_BYTES[precision]
        output = ACCUMULATE_BYTES if accumulate else max(width, 2)
        hbm_bytes = batch * (width * (m * k + k * n) + output * m * n)
        return self._slower(2 * batch * m * n * k, hbm_bytes, precision)

    def _flash(self, shape: AttentionShape, call: AttentionCall) -> FloatArray:
        # Backward: five products for the forward's two, and gradients beside the operands (Dao, FlashAttention-2, 2023, 3.1).
        products, copies = (1.0, 1.0) if call.direction == "forward" else (2.5, 2.0)
        flops = products * shape.multiply_flops
        return self._slower(flops, copies * operand_bytes(shape, call.precision), call.precision)

    def _slower(self, flops: FloatArray, hbm_bytes: FloatArray, precision: str) -> FloatArray:
        efficiency = self.hw.efficiency
        compute = flops / (self.hw.peak_flops(precision) * efficiency.clock * efficiency.issued(precision))
        memory = hbm_bytes / (self.hw.memory.bandwidth * efficiency.memory)
        return np.asarray(np.maximum(compute, memory) + self.hw.kernel_latency, dtype=np.float64)


def operand_bytes(shape: AttentionShape, precision: str) -> FloatArray:
    """Bytes of Q, K, V and the output, (n,); a window leaves unread what no query sees (decoding)."""
    width = PRECISION_BYTES[precision]
    keys = np.minimum(shape.seq_kv, shape.window + shape.seq_q)
    dims = shape.head_dim + shape.v_head_dim
    return np.asarray(shape.batch * width * dims * (shape.heads * shape.seq_q + shape.kv_heads * keys), dtype=np.float64)
