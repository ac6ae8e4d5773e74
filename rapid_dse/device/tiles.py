"""The thread-block tiles that a GEMM library has to choose from, and what its kernels cost beside the multiplying.

A chip whose thread blocks form clusters (``hw.cluster`` > 1: Hopper on) runs another family of kernels: operands arrive by
asynchronous bulk copies that a cluster shares, and a block that stays on its SM stores one tile while it multiplies the next.
The constants of a family are the same for every chip and shape; they were fitted to measured GEMMs (``docs/validation.md``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.config.hardware import Hardware
from rapid_dse.device.contract import FloatArray

# (rows, columns) of C that a thread block computes, of what cuBLAS and CUTLASS instantiate for 16-bit tensor-core GEMMs. More
# (192, 96 or 32 wide) price no measured shape of an A100 better; those of 192 are what cuBLAS runs on Hopper beside them (nvjet_sm90).
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (32, 64), (64, 32), (16, 64), (64, 16))
CLUSTERED_TILES = (*TILES, (256, 192), (192, 128), (128, 192))
SPLITS = (1, 2, 4, 8, 16)  # blocks that share the K dimension of a tile
K_STEP_BYTES = 128  # a stage of the pipeline holds 128 bytes of K: 64 values of 16 bits, one swizzled row of shared memory
ACCUMULATOR_BYTES = 8.0  # registers of an element of C: its fp32 sum, and as much again for operands, addresses and the next tile
MAX_BLOCKS_PER_SM = 4
INSTRUCTION_TILE = 16 * 8  # elements of C that one instruction of a tensor core computes (PTX: mma.m16n8k16)


@dataclass(frozen=True)
class GemmFamily:
    """What the kernels of a generation cost beside the multiplying.

    Attributes:
        store_clocks: clocks per element of C to store a tile while its SM has nothing else to do.
        saturation: share of the SMs that must load before HBM is saturated.
        store_exposed: share of the traffic of C that is not hidden behind the products of other SMs.
    """

    store_clocks: float
    saturation: float
    store_exposed: float


SYNCHRONOUS = GemmFamily(store_clocks=0.155, saturation=0.14, store_exposed=0.42)
CLUSTERED = GemmFamily(store_clocks=0.02, saturation=0.30, store_exposed=0.19)


@dataclass(frozen=True)
class TileCandidates:
    """Every (tile, split) pair as columns (c, 1): ``rows``, ``columns``, ``split``, the ``resident`` blocks of an SM, and the share of the
    SM's tensor cores that a block keeps busy (``working``)."""

    rows: FloatArray
    columns: FloatArray
    split: FloatArray
    resident: FloatArray
    working: FloatArray


def candidates(hw: Hardware) -> TileCandidates:
    """The pairs of the chip's tiles and ``SPLITS``; as many blocks of a tile run on an SM as its registers hold accumulators for, and its
    shared memory a stage of operands each."""
    tiles = CLUSTERED_TILES if hw.cluster > 1 else TILES
    pairs = np.array([(rows, columns, split) for rows, columns in tiles for split in SPLITS], dtype=np.float64)
    rows, columns, split = (pairs[:, i : i + 1] for i in range(3))
    by_registers = hw.registers.size / hw.sms / (ACCUMULATOR_BYTES * rows * columns)
    by_shared_memory = hw.shared_memory.size / hw.sms / (K_STEP_BYTES * (rows + columns))
    # Sizes are written with three digits: 37 MiB of 148 SMs are 256 KiB each within 1 %.
    resident = np.clip(np.floor(np.minimum(by_registers, by_shared_memory) * 1.01), 1, MAX_BLOCKS_PER_SM)
    working = np.minimum(1.0, rows * columns / INSTRUCTION_TILE / hw.tensor_cores_per_sm)
    return TileCandidates(rows, columns, split, resident, working)
