"""Energy of what a chip does: joules of products, attention, bytes moved and bits sent, idle power, and the power limit.

All figures of ``hw.energy`` are of the chip's highest clock. Under load a chip that would draw more than its limit lowers its clock and,
with it, its voltage, until it draws the limit: so it draws what its work asks for, or the limit, whichever is less.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added
from rapid_dse.config.cluster import Cluster
from rapid_dse.config.hardware import Hardware
from rapid_dse.parallel.layouts import IntColumn

FloatColumn = NDArray[np.float64]

# Of what the limit leaves beside idle power, the share that a chip at its limit draws in the mean: steps of an H200 hold 690 of 700 W,
# of which 122 are idle power.
HELD = 0.983
# Dynamic energy goes with clock^0.8, since the voltage falls with the clock: products of an H200 take 1.07 pJ/FLOP at 1,980 MHz and 0.84 at
# 1,470.
CLOCK_EXPONENT = 0.8
# Joules of a FLOP that attention needs over those of a product's: softmax, and products of smaller instructions. Measured on an H200 at
# its limit, at about 1,650 MHz: FlashAttention-2 1.8 pJ/FLOP and cuDNN's 1.05, where products take 0.9; the others by their kind, but for
# PyTorch's memory-efficient kernel, whose instructions wait: of the 30.5 J of a layer of latent attention 22 for 2.4 TFLOP.
ATTENTION: Mapping[str, float] = {"cudnn": 1.1, "flash3": 1.1, "flash2": 1.9, "flash1": 1.9, "triton": 1.9, "ck": 1.9, "efficient": 8.9}
# Rows of queries that an instruction of a fused attention kernel takes: a decode step fills the rest with what nobody needs, and pays it.
ATTENTION_ROWS = 64.0
BACKWARD_ATTENTION = 2.5  # products of attention backward over those forward: five for two (Dao, FlashAttention-2, 2023, 3.1)


def product_energy(hw: Hardware, precision: str, flops: FloatColumn) -> FloatColumn:
    """Joules of matrix products, with what their operands take from cache and registers."""
    return flops * joules_a_flop(hw, precision)


def attention_energy(hw: Hardware, precision: str, kernel: str, flops: FloatColumn) -> FloatColumn:
    """Joules of the arithmetic of an attention kernel; of an unfused one (no entry in ``ATTENTION``) those of its products."""
    return flops * (joules_a_flop(hw, precision) * ATTENTION.get(kernel, 1.0))


def moved_energy(hw: Hardware, hbm_bytes: FloatColumn) -> FloatColumn:
    """Joules of bytes that come from HBM or go there, through L2 and the SMs."""
    return hbm_bytes * (hw.energy.hbm + hw.energy.l2)


def sent_energy(hw: Hardware, sent: NDArray[np.float64]) -> FloatColumn:
    """Joules of bytes sent into each network dimension, ``(n_dimensions, n)``: ``(n,)``."""
    return added(dimension.energy * sent_bytes for dimension, sent_bytes in zip(hw.network.dimensions, sent, strict=True))


def most_watts(hw: Hardware, limit: float) -> float:
    """What a chip under a power limit draws in the mean where its work asks for more, W."""
    return hw.energy.idle + HELD * (limit - hw.energy.idle)


def gpu_energy(hw: Hardware, dynamic: FloatColumn, seconds: FloatColumn) -> FloatColumn:
    """Joules of GPUs over so many seconds of theirs, in which their work takes ``dynamic`` joules at the highest clock: with idle power
    throughout, and never more than the chip's own limit (``hw.energy.tdp``) lets it draw."""
    joules: FloatColumn = np.minimum(dynamic + hw.energy.idle * seconds, most_watts(hw, hw.energy.tdp) * seconds)
    return joules


def site_energy(cluster: Cluster, hw: Hardware, joules: FloatColumn, seconds: FloatColumn, num_gpus: IntColumn) -> FloatColumn:
    """Joules of the whole site over so many seconds in which the GPUs took ``joules``: with their nodes, cooling and conversion."""
    nodes = np.ceil(num_gpus / hw.gpus_per_node)
    return (joules + nodes * cluster.node_power * seconds) * cluster.pue


def joules_a_flop(hw: Hardware, precision: str) -> float:
    """J/FLOP of products in the precision, or in the nearest one that the chip's table has: of narrow weights alone that of 16 bits."""
    joules = {str(name): energy for name, energy in hw.energy.flop.items()}
    nearest = ("fp8",) if precision == "fp4" else ()
    return next(joules[name] for name in (hw.arithmetic(precision), *nearest, "bf16", "fp16", "tf32", "fp32") if name in joules)
