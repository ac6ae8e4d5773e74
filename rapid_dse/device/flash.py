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

from rapid_dse.config.hardware import PRECISION_BYTES, Hardware
from rapid_dse.device.contract import AttentionCall, AttentionShape, Direction, FloatArray
from rapid_dse.device.roofline import operand_bytes

Clock = Callable[[Hardware, FloatArray, str], FloatArray]
TAIL = 0.5  # of the longest block: what the last SMs work on while others are done (work is uneven under a causal mask)
DROPOUT = 1.25  # of the exposed softmax: random numbers
ROUNDING = 1e-9  # of a count that is whole but for floating point
MMA_ROWS = 16.0  # rows of one tensor-core instruction: what a block of few queries is padded to
UNSPLIT = 0.8  # blocks over SMs from which FlashAttention-2 splits no keys (its num_splits_heuristic)
SPLIT_KEYS = 256  # keys that a block of a decode kernel takes at least when the keys are split over the SMs


@dataclass(frozen=True)
class FlashKernel:
    """What one implementation reaches in one direction; the same for every chip and shape.

    Attributes:
        block: rows that a thread block holds.
        efficiency: share of the usable tensor rate in the products' inner loop.
        softmax: clocks a score (one element of Q Kᵀ) for what is not hidden behind the products: exponentials, rescaling, masks; on
            an SM with 16 exponentials a clock, others' wait for them as long as they are (``EXPONENTIAL``).
        max_rate: FLOP an SM issues a clock through the instructions that the kernel is written with; kernels that use Ampere's
            ``mma.sync`` get no more than this from a Hopper.
        fixed: clocks of a block outside its inner loop.
        wide: share of the efficiency that is left for a head_dim above ``narrow``, where the rows of the output fill the registers
            and the tiles of keys become smaller.
        decode_rows: rows that a block of a decode step is padded to: those of one instruction, or of the kernel that also serves prompts.
    """

    block: float
    efficiency: float
    softmax: float
    max_rate: float
    fixed: float
    wide: float = 1.0
    narrow: float = 128.0
    decode_rows: float = 16.0


ANY_RATE = float("inf")
LEGACY_RATE = 2300.0  # mma.sync on Hopper: 0.55 of what wgmma reaches; fitted to FlashAttention-2 on both chips

# flash2 and cudnn are PyTorch 2.11's FlashAttention-2 and cuDNN 9.19, fitted to 124 shapes on an H200, forward and backward, causal or not,
# head dims 64 to 256, nothing of their operands in L2. The others are fitted to the benchmarks of FlashAttention-2 and -3 (A100, H100);
# flash3 backward rests on figure 6 of the FlashAttention-3 paper (561 TFLOP/s at head_dim 128, 474 at 64, 16k tokens); Triton's backward
# is taken for FlashAttention-2's.
KERNELS: dict[tuple[str, str], FlashKernel] = {
    ("flash1", "forward"): FlashKernel(128, 0.95, 0.42, LEGACY_RATE, 2500, wide=0.40, narrow=64),
    ("flash1", "backward"): FlashKernel(128, 0.94, 0.42, LEGACY_RATE, 2500, wide=0.40, narrow=64),
    ("flash2", "forward"): FlashKernel(128, 0.746, 0.0403, LEGACY_RATE, 4080, wide=0.92, decode_rows=128),
    ("flash2", "backward"): FlashKernel(128, 0.685, 0.0824, LEGACY_RATE, 13840, wide=0.79),
    ("flash3", "forward"): FlashKernel(128, 1.0, 0.049, ANY_RATE, 5100, wide=0.915),
    ("flash3", "backward"): FlashKernel(128, 0.73, 0.10, ANY_RATE, 5000, wide=0.9),
    ("cudnn", "forward"): FlashKernel(128, 1.0, 0.0534, ANY_RATE, 3550, wide=0.92),
    ("cudnn", "backward"): FlashKernel(128, 0.810, 0.1073, ANY_RATE, 9950, wide=0.73),
    ("triton", "forward"): FlashKernel(128, 0.448, 0.0, ANY_RATE, 4500),
    ("triton", "backward"): FlashKernel(128, 0.76, 0.128, LEGACY_RATE, 5300, wide=0.74),
    # PyTorch's memory-efficient kernel (xFormers' on CUTLASS, by Ampere's instructions), which takes heads whose values are narrower than
    # their keys: fitted to its four runs alone on an H200, keys of 192, values of 128 (kernels.csv).
    ("efficient", "forward"): FlashKernel(64, 0.283, 0.0, LEGACY_RATE, 5000),
    ("efficient", "backward"): FlashKernel(64, 0.1125, 0.0, LEGACY_RATE, 5000),
    # Estimate: about 420 TFLOP/s forward and 300 backward on an MI300X at head_dim 128, not causal, 16k tokens.
    ("ck", "forward"): FlashKernel(128, 0.70, 0.30, ANY_RATE, 5000),
    ("ck", "backward"): FlashKernel(128, 0.50, 1.00, ANY_RATE, 5000),
}
# The same kernels as the libraries of 2023 and 2024 had them (``software.library_generation``), fitted to FlashAttention-2's and -3's
# published benchmarks (A100, H100, cuDNN to 9.1) and SimuMax's table of an A100; cuDNN's backward pass was like FlashAttention-3's.
EARLY: dict[tuple[str, str], FlashKernel] = {
    ("flash2", "forward"): FlashKernel(128, 0.714, 0.019, LEGACY_RATE, 3250, wide=0.91, decode_rows=128),
    ("flash2", "backward"): FlashKernel(128, 0.76, 0.128, LEGACY_RATE, 5300, wide=0.74),
    ("cudnn", "forward"): FlashKernel(128, 1.0, 0.074, ANY_RATE, 2950, wide=0.75),
    ("cudnn", "backward"): FlashKernel(128, 0.73, 0.10, ANY_RATE, 5000, wide=0.9),
}
# Kernels whose backward writes dK and dV for each query head, and sums them over the heads that share keys in a kernel of its own.
SUMS_HEADS = ("flash2", "ck")
# Kernels written for tensor cores with a memory of their own: measured forward passes on B200 and GB300 (aiconfigurator-core 0.12).
OF_TENSOR_MEMORY: dict[tuple[str, str], FlashKernel] = {
    ("cudnn", "forward"): FlashKernel(128, 1.0, 0.050, ANY_RATE, 2950, wide=0.75),
}
# Share of a score's softmax that waits for its exponential: 1/16 clock on Hopper, against 5 fp32 operations on 128 lanes.
EXPONENTIAL, EXPONENTIALS = 0.6, 16.0


def flash_seconds(hw: Hardware, shape: AttentionShape, call: AttentionCall, clock: Clock) -> FloatArray:
    """Seconds of fused attention, (n,). ``clock`` gives the clock that an activity of the tensor cores leaves."""
    direction, precision = call.direction, call.precision
    flash = _kernel(hw, call)
    softmax = flash.softmax * (EXPONENTIAL * EXPONENTIALS / hw.exponentials + 1 - EXPONENTIAL)
    rate = hw.peak_flops(precision) / (hw.sms * hw.clock)
    efficiency = flash.efficiency * np.where(shape.head_dim > flash.narrow, flash.wide, 1.0)
    usable = min(rate, flash.max_rate) * hw.efficiency.tensor * efficiency
    products = 2 * (shape.head_dim + shape.v_head_dim) if direction == "forward" else 6 * shape.head_dim + 4 * shape.v_head_dim
    per_score = products / usable + softmax * (DROPOUT if call.dropout else 1.0)
    walk = _forward_walk(hw, shape, flash) if direction == "forward" else _backward_walk(shape, flash)
    block = walk.rows * walk.length * per_score + flash.fixed
    even = np.maximum(walk.count / hw.sms, 1.0) * block  # one query a sequence: walks are as long as one another, and fill in
    clocks = np.where(shape.seq_q == 1, even, _makespan(walk.count, block, hw.sms, shape.causal))
    activity = products * shape.batch * shape.heads * shape.seq_q * shape.keys_per_query / (clocks * hw.sms * rate)
    compute = clocks / clock(hw, activity, precision)
    memory = _bytes(shape, direction, precision) / (hw.memory.bandwidth * hw.efficiency.memory)
    kernels = hw.kernel_latency * np.where(walk.split > 1, 2, 1)  # parts of a split walk are combined by a kernel of their own
    return np.asarray(np.maximum(compute, memory) + _passes(hw, shape, call) + kernels, dtype=np.float64)


def _kernel(hw: Hardware, call: AttentionCall) -> FlashKernel:
    """The kernel that runs: of its library's generation, and on tensor cores with a memory of their own the one written for them."""
    key = call.kernel, call.direction
    flash = EARLY.get(key, KERNELS[key]) if call.generation == "early" else KERNELS[key]
    return OF_TENSOR_MEMORY.get(key, flash) if hw.tensor_memory else flash


@dataclass(frozen=True)
class Walk:
    """What the thread blocks do, arrays (n,).

    ``count`` of them, each with ``rows`` rows that walk over ``length`` others on average; ``split``: blocks that share a walk.
    """

    count: FloatArray
    rows: FloatArray
    length: FloatArray
    split: FloatArray


def _forward_walk(hw: Hardware, shape: AttentionShape, flash: FlashKernel) -> Walk:
    """Rows of Q walk over keys. A decode kernel packs the heads that share keys into a block and splits the keys over idle SMs."""
    group = shape.heads / shape.kv_heads
    decode = shape.seq_q * group <= flash.block
    heads = shape.batch * np.where(decode, shape.kv_heads, shape.heads)
    full = np.ceil(shape.seq_q * group / MMA_ROWS) * MMA_ROWS
    if flash.decode_rows > MMA_ROWS:  # half as many where the keys are split
        full = np.maximum(full, np.where(heads < UNSPLIT * hw.sms, flash.decode_rows / 2, flash.decode_rows))
    rows = np.where(decode, full, flash.block)
    blocks = np.where(decode, 1, np.ceil(shape.seq_q / flash.block))
    keys = shape.keys_per_query
    if shape.causal:  # half a block of masked scores on the diagonal
        keys = np.where(decode, keys, np.minimum(keys + flash.block / 2, shape.seq_kv))
    # Continuous, so that a longer walk never ends sooner than a shorter one for being split once more.
    split = np.minimum(np.maximum(1, keys / SPLIT_KEYS), np.maximum(1, hw.sms / (heads * blocks)))
    split = np.where(shape.seq_q <= flash.block, split, 1)
    return Walk(heads * blocks * split, rows, keys / split, split)


def _backward_walk(shape: AttentionShape, flash: FlashKernel) -> Walk:
    """Rows of K and V walk over queries."""
    blocks = np.ceil(shape.seq_kv / flash.block)
    queries = shape.keys_per_query * shape.seq_q / shape.seq_kv
    if shape.causal:
        queries = np.minimum(queries + flash.block / 2, shape.seq_q)
    queries = np.maximum(queries, np.minimum(shape.seq_q, flash.block))
    return Walk(shape.batch * shape.heads * blocks, np.full_like(queries, flash.block), queries, np.ones_like(queries))


def _makespan(count: FloatArray, mean: FloatArray, sms: int, causal: bool) -> FloatArray:
    """Clocks until the last of ``count`` blocks of ``mean`` clocks ends on ``sms`` SMs."""
    if not causal:
        return np.asarray(np.ceil(count / sms - ROUNDING) * mean, dtype=np.float64)
    longest = 2 * mean
    return np.asarray(np.maximum(count / sms * mean + TAIL * longest * np.minimum(1, count / sms), mean), dtype=np.float64)


def _bytes(shape: AttentionShape, direction: Direction, precision: str) -> FloatArray:
    # Backward reads Q, K, V, O and dO and writes dQ, dK, dV.
    return operand_bytes(shape, precision) * (1.0 if direction == "forward" else 2.0)


def _passes(hw: Hardware, shape: AttentionShape, call: AttentionCall) -> FloatArray:
    """Seconds of the small kernels around the backward: sums of dO ∘ O, dQ from fp32 (written, zeroed, read, stored), and where heads
    share keys the sum of dK and dV over them, which the kernel writes for each head."""
    if call.direction == "forward":
        return np.zeros_like(shape.seq_q)
    rows = shape.batch * shape.heads * shape.seq_q
    hbm_bytes = rows * (4 * shape.v_head_dim + 10 * shape.head_dim)
    shared = (shape.kv_heads < shape.heads) & (call.kernel in SUMS_HEADS)
    for_each = shape.batch * shape.heads * shape.seq_kv * (shape.head_dim + shape.v_head_dim)
    hbm_bytes = hbm_bytes + np.where(shared, 2 * PRECISION_BYTES[call.precision] * for_each, 0.0)
    return np.asarray(hbm_bytes / (hw.memory.bandwidth * hw.efficiency.memory) + 2 * hw.kernel_latency, dtype=np.float64)
