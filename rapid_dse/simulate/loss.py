"""The loss over the vocabulary: how many logits are alive at once, and what they move through HBM, as ``software.loss`` runs it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.model.architecture import architecture_of
from rapid_dse.model.layers.end import Logits
from rapid_dse.model.shapes import MicroBatch

FloatColumn = NDArray[np.float64]

# HBM bytes a logit, forward and backward. fused, chunked: 16-bit logits read and their gradient written, each twice. whole, PyTorch's
# kernels one by one on rows longer than an SM's shared memory: a copy in fp32 (6), its log-softmax (read three times and written: 16), a
# gradient of zeros (4), that of the softmax (two operands read, one of them again, written: 16), a copy in 16 bits (6); measured on an
# H200 46 for rows of 128,256 and 44 for rows of 32,000, by their time over that of streaming. in_place is taken for as much: a copy (6),
# the largest subtracted (4 + 8), exponentials (8), their sum (4) and shares (8), and the gradient of that (8 + 6).
LOSS_BYTES = {"whole": 46.0, "in_place": 46.0, "fused": 8.0, "chunked": 8.0}


def chunk_tokens(scenario: Scenario, read: Logits) -> FloatColumn:
    """Tokens whose logits a chunked loss holds at a time, ``(n,)``, of those of a micro-batch.

    Liger's rule (Hsu et al., arXiv 2410.10989, section 3.2): as many chunks as the vocabulary's share of a rank is times as wide as the
    hidden size, each rounded up to a power of two, so that a chunk's logits are about as large as the stream.
    """
    chunks = np.maximum(1.0, np.ceil(read.columns / max(1, scenario.model.hidden_size)))
    size: FloatColumn = np.minimum(read.rows, 2.0 ** np.ceil(np.log2(np.maximum(1.0, np.ceil(read.rows / chunks)))))
    return size


def loss_memory(scenario: Scenario, shape: MicroBatch, width: int) -> FloatColumn:
    """Bytes that head and loss hold at their peak for a micro-batch on a rank, ``(n,)``.

    Logits with their gradient and copies (``Software.peak_logit_bytes`` each), of a chunk alone where the loss is chunked; a chunked loss
    computes its gradients while it goes: those of all the head's inputs and of its weights where they are trained, ``width`` bytes wide,
    wait for the backward pass.
    """
    read = architecture_of(scenario).head.logits(shape)
    if scenario.software.kernels.loss != "chunked":
        return read.rows * read.columns * scenario.software.peak_logit_bytes
    logits = chunk_tokens(scenario, read) * read.columns * scenario.software.peak_logit_bytes
    return logits + width * scenario.model.hidden_size * (read.rows + read.columns * scenario.workload.trains_all)


def loss_traffic(scenario: Scenario, shape: MicroBatch, width: int) -> FloatColumn:
    """HBM bytes of the loss of a micro-batch on a rank, forward and backward, ``(n,)``.

    A chunked loss adds each chunk's gradient of the head's weights to what the chunks before it gave: it is read and written again.
    """
    read = architecture_of(scenario).head.logits(shape)
    hbm_bytes: FloatColumn = read.rows * read.counted * LOSS_BYTES[scenario.software.kernels.loss]
    if scenario.software.kernels.loss != "chunked" or not scenario.workload.trains_all:
        return hbm_bytes
    again: FloatColumn = np.maximum(0.0, np.ceil(read.rows / np.maximum(1.0, chunk_tokens(scenario, read))) - 1)
    return hbm_bytes + again * (2.0 * width * scenario.model.hidden_size * read.columns)
