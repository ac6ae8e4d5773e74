"""Fused attention: one kernel forward, one (and two small passes) backward, the scores never in HBM.

A thread block holds ``block`` rows of Q (backward: of K and V) and walks over the tiles of the other side that it sees. Its time
is the products' on the tensor cores and the part of the exponentials and rescaling that the kernel does not hide behind them.
Blocks queue over the SMs; without a causal mask in whole waves, with one the SMs that drew short rows fill in, until the last.
Dao et al., FlashAttention (2022), FlashAttention-2 (2023), FlashAttention-3 (Shah et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rapid_dse.config.hardware import Hardware
from rapid_dse.device.contract import AttentionShape, Direction, FloatArray
from rapid_dse.device.roofline import operand_bytes

Clock = Callable[[Hardware, FloatArray, str], FloatArray]
TAIL = 0.5  # of the longest block: what the last SMs work on while others are done (work is uneven under a causal mask)
SPLIT_KEYS = 256  # keys that a block of a decode kernel takes at least when the keys are split over the SMs


@dataclass(frozen=True)
class FlashKernel:
    """What one implementation reaches in one direction; the same for every chip and shape.

    Attributes:
        block: rows that a thread block holds.
        efficiency: share of the usable tensor rate in the products' inner loop.
        softmax: clocks a score (one element of Q Kᵀ) for what is not hidden behind the products: exponentials, rescaling, masks.
        max_rate: FLOP an SM issues a clock through the instructions that the kernel is written with; kernels that use Ampere's
            ``mma.sync`` get no more than this from a Hopper.
        fixed: clocks of a block outside its inner loop.
        wide: share of the efficiency that is left for a head_dim above ``narrow``, where the rows of the output fill the registers
            and the tiles of keys become smaller.
    """

    block: float
    efficiency: float
    softmax: float
    max_rate: float
    fixed: float
    wide: float = 1.0
    narrow: float = 128.0


ANY_RATE = float("inf")
LEGACY_RATE = 2300.0  # mma.sync on Hopper: 0.55 of what wgmma reaches; fitted to FlashAttention-2 on both chips

# Fitted to the benchmarks of FlashAttention-2 and -3 (A100, H100) and SimuMax's A100 table, forward and backward, causal or not,
# head dims 64 to 256. Those of flash3 and cudnn backward rest on figure 6 of the FlashAttention-3 paper (561 TFLOP/s at head_dim
# 128, 474 at 64, 16k tokens); Triton's backward is taken for FlashAttention-2's.
KERNELS: dict[tuple[str, str], FlashKernel] = {
    ("flash1", "forward"): FlashKernel(128, 0.95, 0.42, LEGACY_RATE, 2500, wide=0.40, narrow=64),
    ("flash1", "backward"): FlashKernel(128, 0.94, 0.42, LEGACY_RATE, 2500, wide=0.40, narrow=64),
    ("flash2", "forward"): FlashKernel(128, 0.714, 0.019, LEGACY_RATE, 3250, wide=0.91),
    ("flash2", "backward"): FlashKernel(128, 0.76, 0.128, LEGACY_RATE, 5300, wide=0.74),
    ("flash3", "forward"): FlashKernel(128, 1.0, 0.049, ANY_RATE, 5100, wide=0.915),
    ("flash3", "backward"): FlashKernel(128, 0.73, 0.10, ANY_RATE, 5000, wide=0.9),
    ("cudnn", "forward"): FlashKernel(128, 1.0, 0.074, ANY_RATE, 2950, wide=0.75),
    ("cudnn", "backward"): FlashKernel(128, 0.73, 0.10, ANY_RATE, 5000, wide=0.9),
    ("triton", "forward"): FlashKernel(128, 0.448, 0.0, ANY_RATE, 4500),
    ("triton", "backward"): FlashKernel(128, 0.76, 0.128, LEGACY_RATE, 5300, wide=0.74),
}


def flash_kernel(kernel: str, direction: str) -> FlashKernel:
    """The constants of an implementation; ``ValueError`` names those there are."""
    if (kernel, direction) not in KERNELS:
        names = sorted({name for name, _ in KERNELS})
        raise ValueError(f"kernel={kernel!r}; allowed: {', '.join(names)}, fused_softmax, unfused")
    return KERNELS[kernel, direction]


def flash_seconds(
    hw: Hardware, shape: AttentionShape, direction: Direction, kernel: str, precision: str, dropout: bool, clock: Clock
) -> FloatArray:
    """Seconds of fused attention, (n,). ``clock`` gives the clock that an activity of the tensor cores leaves."""
    flash = flash_kernel(kernel, direction)
    forward = direction == "forward"
    rate = hw.peak_flops(precision) / (hw.sms * hw.clock)
    usable = min(rate, flash.max_rate) * flash.efficiency * hw.efficiency.tensor
    # Rows that blocks are cut from, and the mean length of the walk, half a block of padding and half a masked one more.
    rows = shape.seq_q if forward else shape.seq_kv
    blocks = np.ceil(rows / flash.block)
    scores = np.maximum(shape.seq_q, flash.block) * _walk(shape, flash.block)
    products = 2 * (shape.head_dim + shape.v_head_dim) if forward else 6 * shape.head_dim + 4 * shape.v_head_dim
    usable = usable * np.where(shape.head_dim > flash.narrow, flash.wide, 1.0)
    per_score = products / usable + flash.softmax * (1.25 if dropout else 1.0)
    heads = shape.batch * shape.heads
    split = np.where(shape.seq_q <= flash.block, np.maximum(1, np.floor(shape.seq_kv / SPLIT_KEYS)), 1) if forward else 1.0
    split = np.minimum(split, np.maximum(1, np.ceil(hw.sms / (heads * blocks))))
    count = heads * blocks * split
    mean = scores / (blocks * split) * per_score + flash.fixed
    clocks = _makespan(count, mean, hw.sms, shape.causal)
    activity = products * heads * shape.seq_q * shape.keys_per_query / (clocks * hw.sms * rate)
    compute = clocks / clock(hw, activity, precision)
    memory = _bytes(shape, direction, precision) / (hw.memory.bandwidth * hw.efficiency.memory)
    return np.asarray(np.maximum(compute, memory) + _passes(hw, shape, direction) + hw.kernel_latency, dtype=np.float64)


def _walk(shape: AttentionShape, block: float) -> FloatArray:
    """Keys that a row of a block walks over on average: those it sees, and the masked rest of the tiles at the mask's edge."""
    if not shape.causal:
        return np.minimum(shape.keys_per_query, shape.seq_kv)
    return np.asarray(np.minimum(shape.keys_per_query + block / 2, shape.seq_kv), dtype=np.float64)


def _makespan(count: FloatArray, mean: FloatArray, sms: int, causal: bool) -> FloatArray:
    """Clocks until the last of ``count`` blocks of ``mean`` clocks ends on ``sms`` SMs."""
    if not causal:
        return np.asarray(np.ceil(count / sms) * mean, dtype=np.float64)
    longest = 2 * mean
    return np.asarray(np.maximum(count / sms * mean + TAIL * longest * np.minimum(1, count / sms), mean), dtype=np.float64)


def _bytes(shape: AttentionShape, direction: Direction, precision: str) -> FloatArray:
    # Backward reads Q, K, V, O and dO and writes dQ, dK, dV.
    return operand_bytes(shape, precision) * (1.0 if direction == "forward" else 2.0)


def _passes(hw: Hardware, shape: AttentionShape, direction: Direction) -> FloatArray:
    """Seconds of the small kernels around the backward: sums of dO ∘ O, and dQ from fp32 (written, zeroed, read, stored)."""
    if direction == "forward":
        return np.zeros_like(shape.seq_q)
    rows = shape.batch * shape.heads * shape.seq_q
    moved = rows * (4 * shape.v_head_dim + 10 * shape.head_dim)
    return np.asarray(moved / (hw.memory.bandwidth * hw.efficiency.memory) + 2 * hw.kernel_latency, dtype=np.float64)
