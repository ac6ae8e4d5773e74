"""Where Megatron's fused kernel of scale, mask and softmax does not take a rank's scores, and what runs in its place.

megatron/core/fusions/fused_softmax.py, ``is_kernel_available``: rows of more than 16 and at most 16,384 scores, their number and that of
the batched matrices (sequences times heads of the rank) multiples of four, the rows that a block of the kernel takes. Elsewhere
``forward_torch_softmax`` runs PyTorch's kernels: a copy in fp32, scaled, masked, softmax, a copy in 16 bits. Autograd then keeps a softmax
in fp32, 2 bytes a score more, which the account of memory leaves out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.model.layers.part import CoreAttention
from rapid_dse.model.shapes import MicroBatch

LONGEST, SHORTEST, BLOCK = 16_384, 16, 4  # scores of a row; rows
LAUNCHES = 4.0  # forward, of PyTorch's five kernels beyond the fused one


def by_torch(scenario: Scenario, core: CoreAttention, shape: MicroBatch) -> NDArray[np.bool_]:
    """Where PyTorch's kernels run in the fused softmax's place, ``(n_shapes,)``."""
    if scenario.attention_kernel != "fused_softmax":
        return np.zeros(len(shape.tp), bool)
    matrices = np.broadcast_to(core.heads * shape.micro_batch_size, shape.tp.shape)
    taken = SHORTEST < shape.seq_len <= LONGEST and shape.seq_len % BLOCK == 0
    return np.asarray(matrices % BLOCK != 0) if taken else np.ones(len(shape.tp), bool)
