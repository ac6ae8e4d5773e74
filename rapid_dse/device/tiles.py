"""The thread-block tiles that a GEMM library has to choose from, and what its kernels cost beside the multiplying.

A chip whose thread blocks form clusters (``hw.cluster`` > 1: Hopper on) runs another family of kernels: operands arrive by
asynchronous bulk copies that a cluster shares, and a block that stays on its SM stores one tile while it multiplies the next.
The constants of a family are the same for every chip and shape; they were fitted to measured GEMMs (``docs/validation.md``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.device.contract import FloatArray

# (rows, columns) of C that a thread block computes: what cuBLAS and CUTLASS instantiate for 16-bit tensor-core GEMMs.
TILES = (
    (256, 128),
    (128, 256),
    (192, 128),
    (128, 192),
    (128, 128),
    (256, 64),
    (64, 256),
    (128, 64),
    (64, 128),
    (64, 64),
    (32, 128),
    (128, 32),
    (16, 128),
    (128, 16),
    (32, 64),
    (64, 32),
    (16, 64),
    (64, 16),
)
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)  # blocks that share the K dimension of a tile
K_STEP_BYTES = 128  # a stage of the pipeline holds 128 bytes of K: 64 values of 16 bits, one swizzled row of shared memory
REGISTER_TILE = 128 * 256  # accumulators that fill an SM's registers: smaller tiles run several to the SM
MAX_BLOCKS_PER_SM = 4


@dataclass(frozen=True)
class GemmFamily:
    """What the kernels of a generation cost beside the multiplying.

    Attributes:
        issue: extra issue time of a tile of 64×64 over an unlimited one, as a share of its multiplying (fragments loaded per product).
        block_clocks: clocks to fill a block's pipeline, once for the blocks that run together.
        store_clocks: clocks per element of C to store a tile that no other work of the SM hides.
        saturation: share of the SMs that must load before HBM is saturated.
        store_exposed: share of the traffic of C that is not hidden behind the products.
        split: seconds to synchronise the blocks that share a tile's K.
    """

    issue: float
    block_clocks: float
    store_clocks: float
    saturation: float
    store_exposed: float
    split: float


SYNCHRONOUS = GemmFamily(issue=0.11, block_clocks=300.0, store_clocks=0.3, saturation=0.57, store_exposed=0.31, split=2.6e-6)
CLUSTERED = GemmFamily(issue=0.0, block_clocks=220.0, store_clocks=0.065, saturation=0.34, store_exposed=0.14, split=2.3e-6)


@dataclass(frozen=True)
class Candidates:
    """Every (tile, split) pair as columns (c, 1): ``rows``, ``columns``, ``split``, and the ``resident`` blocks of an SM."""

    rows: FloatArray
    columns: FloatArray
    split: FloatArray
    resident: FloatArray


def candidates() -> Candidates:
    pairs = np.array([(rows, columns, split) for rows, columns in TILES for split in SPLITS], dtype=np.float64)
    rows, columns, split = (pairs[:, i : i + 1] for i in range(3))
    resident = np.clip(np.floor(REGISTER_TILE / (rows * columns)), 1, MAX_BLOCKS_PER_SM)
    return Candidates(rows, columns, split, resident)
