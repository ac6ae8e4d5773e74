"""Single small kernels of PyTorch, predicted: copies, sums, activations, norms, softmax, losses and optimizers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rapid_dse.config.hardware import Hardware
from rapid_dse.config.software import LibraryGeneration
from rapid_dse.device import FloatArray, operator_model
from rapid_dse.simulate.loss import LOSS_BYTES

# Copies, sums and products reach this much more of HBM than the mean small kernel that ``OperatorModel.elementwise`` prices: 4.3 of
# 4.8 TB/s on an H200, where GELU and the like reach 3.6.
STREAMING = 1.2
# Bytes that kernels of these kinds move over those of one fused kernel. SiLU·mul in eager PyTorch: 5 reads and writes for 3; its
# backward pass: two products (6) and SiLU's own gradient (3) for 5.
STREAMED = {
    "add": 1.0,
    "mul": 1.0,
    "copy": 1.0,
    "relu": 1.0,
    "cast_to_bf16": 1.0,
    "cast_to_fp8": 1.0,
    "embedding": 1.0,
    "sum_rows": 1.0,
    "add_rmsnorm_triton": 1.0,
    "gelu_bwd": 1.0,
    "silu_mul": 5 / 3,
    "silu_mul_bwd": 9 / 5,
}
LOSS_FORWARD = 0.5  # of the loss's traffic: its copy in fp32 and the log-softmax
LONG_ROW, AGAIN = 12288, 1.9  # columns above which the layer norm of PyTorch 2.0 reads a row again, and the work of that
RESIDENT_ROWS = 16  # thread blocks of 128 threads, a row each, that run on an SM together
COLD = "cold L2"  # in a note: the kernel finds nothing in L2


@dataclass(frozen=True)
class RowKernel:
    """A kernel of PyTorch in which a thread block works through a row, one that reduces it before it writes.

    Attributes:
        chain: clocks a column that a block alone takes: loads that wait for each other, sums that follow each other.
        work: clocks of an SM an element, whatever the blocks that share it.
    """

    chain: float
    work: float


# Layer norm and RMS norm of PyTorch 2.11 on an H200 (1 to 16,384 rows of 2,048 to 12,288); softmax on that and on an A100.
ROW_KERNELS = {"layernorm": RowKernel(2.3, 0.34), "rmsnorm": RowKernel(2.3, 0.26), "softmax": RowKernel(0.7, 0.57)}

# PyTorch 2.0's, on an A100 (32 to 32,768 rows): large ones nearly stream, where 2.11's keep the SMs busy for longer.
EARLY_ROW_KERNELS = {"layernorm": RowKernel(1.2, 0.306)}


def row_kernel(
    hw: Hardware, kind: str, rows: FloatArray, columns: FloatArray, generation: LibraryGeneration = "current", width: float = 2.0
) -> FloatArray:
    """Seconds of a row kernel over ``rows`` × ``columns`` elements of ``width`` bytes, (n,).

    The SMs' work, and the chain of the blocks that are the last to end, whose share falls where few blocks run: no less than a block
    alone takes, nor than streaming the tensor once in and out.
    """
    kernel = EARLY_ROW_KERNELS.get(kind, ROW_KERNELS[kind]) if generation == "early" else ROW_KERNELS[kind]
    work = kernel.work * np.where((kind == "layernorm") & (columns > LONG_ROW), AGAIN, 1.0)
    shared = work * rows / hw.sms + kernel.chain * np.minimum(1.0, rows / (hw.sms * RESIDENT_ROWS))
    clocks = columns * np.maximum(kernel.chain, shared)
    streamed = operator_model(hw).elementwise(2 * width * rows * columns / STREAMING)
    return np.asarray(np.maximum(clocks / hw.clock + 0.8 * hw.kernel_latency, streamed), dtype=np.float64)


def streamed(rows: pd.DataFrame, hw: Hardware, hbm_bytes: FloatArray, faster: float = 1.0) -> FloatArray:
    """Seconds of kernels that stream ``hbm_bytes`` ``faster`` than the mean small kernel, (n,); without the L2 where the note says so."""
    warm = operator_model(hw).elementwise(hbm_bytes / faster)
    if "note" not in rows:
        return warm
    least = float(operator_model(hw).elementwise(0.0))
    large = 64 * hw.l2.size  # far above what L2 holds: its slope is HBM's
    slope = float(operator_model(hw).elementwise(2 * large) - operator_model(hw).elementwise(large)) / large
    cold = rows["note"].astype(str).str.contains(COLD).to_numpy(bool)
    return np.where(cold, least + hbm_bytes / faster * slope, warm)


def predict_small(kind: str, rows: pd.DataFrame, hw: Hardware, generation: LibraryGeneration = "current") -> FloatArray:
    """Seconds of kernels of a kind, (n,); NaN where nothing here prices it.

    Raises:
        KeyError: a column that the kind needs is missing.
    """
    if kind in ROW_KERNELS:
        return row_kernel(hw, kind, rows["m"].to_numpy(float), rows["n"].to_numpy(float), generation)
    if kind == "gelu":
        return streamed(rows, hw, rows["m"].to_numpy(float) * rows["n"].to_numpy(float) * 4)
    if kind in STREAMED:
        return streamed(rows, hw, STREAMED[kind] * rows["bytes"].to_numpy(float), STREAMING)
    if kind in ("cross_entropy_fwd", "cross_entropy_fwd_bwd"):
        share = LOSS_FORWARD if kind == "cross_entropy_fwd" else 1.0
        return operator_model(hw).elementwise(share * LOSS_BYTES["whole"] * rows["m"].to_numpy(float) * rows["n"].to_numpy(float))
    if kind == "adamw_fused":
        parameters = rows["m"].to_numpy(float) * rows["n"].to_numpy(float)
        return operator_model(hw).update(parameters, rows["bytes"].to_numpy(float) / parameters)
    if kind == "sgd_fused":
        return operator_model(hw).elementwise(rows["bytes"].to_numpy(float))
    return np.full(len(rows), np.nan)
