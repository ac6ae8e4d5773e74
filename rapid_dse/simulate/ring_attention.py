"""Attention on one rank: one kernel, or under context parallelism a kernel for each part of the keys that comes round the ring.

Ring attention (Liu et al., arXiv 2310.01889) as Transformer Engine and torchtitan run it: a rank starts with its own keys, causally, and
takes those of one other rank in each of cp - 1 further steps. In zigzag each rank has an early and a late part of the sequence: half of
a step's rectangle counts, all queries with half of the keys or half of them with all. Without zigzag the last rank needs every key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.device import AttentionCall, AttentionSizes, OperatorModel
from rapid_dse.device.contract import UNFUSED
from rapid_dse.model.layers.part import CoreAttention
from rapid_dse.model.shapes import MicroBatch, mean_context
from rapid_dse.simulate.fused_softmax import by_torch

FloatColumn = NDArray[np.float64]
Rows = NDArray[np.bool_]
Direction = Literal["forward", "backward"]

# Bytes an element that a step's partial result moves when it is merged into the running one: 16 bits read, fp32 read and written; and what
# writing the end result in 16 bits moves.
MERGE, LAST_WRITE = 10.0, 6.0
# Kernels that take values no narrower than keys: callers pad them (Megatron Core and Hugging Face do for FlashAttention-2).
PADS_VALUES = ("flash1", "flash2", "ck", "triton")


@dataclass(frozen=True)
class AttentionKernels:
    """The attention kernels of a table of shapes, in one direction.

    Of packed sequences fused kernels go over each document by itself (the variable-length kernels of FlashAttention and cuDNN); unfused
    ones compute all scores and mask what lies across.
    """

    scenario: Scenario
    core: CoreAttention
    shape: MicroBatch
    device: OperatorModel
    direction: Direction

    @property
    def documents(self) -> float:
        """Documents of a sequence that each have a kernel's walk of their own."""
        return 1.0 if self.scenario.attention_kernel in UNFUSED else self.shape.documents

    @property
    def length(self) -> float:
        """Tokens of each of them."""
        return self.shape.seq_len / self.documents

    def of(self, rows: Rows, queries: FloatColumn | float, keys: FloatColumn | float, causal: bool | None = None) -> FloatColumn:
        """Seconds of one kernel on the shapes at ``rows``: so many queries against so many keys, of which a causal one skips what is
        masked; None: as the layer's."""
        scenario, shape, core = self.scenario, self.shape, self.core
        causal = core.causal if causal is None else causal
        precision = scenario.workload.precision
        sizes = AttentionSizes(
            shape.micro_batch_size[rows] * self.documents,
            core.heads[rows],
            core.kv_heads[rows],
            queries,
            keys,
            core.head_dim,
            causal=causal,
            window=core.window if causal else None,
            v_head_dim=None if core.value_dim == core.head_dim or scenario.attention_kernel in PADS_VALUES else core.value_dim,
        )
        call = AttentionCall(
            direction=self.direction,
            kernel=scenario.attention_kernel,
            precision="bf16" if scenario.narrow else precision,
            dropout=scenario.model.drops_out(scenario.software.kernels.dropout),
            generation=scenario.software.kernels.library_generation,
        )
        seconds: FloatColumn = self.device.attention(sizes, call)
        chained = by_torch(scenario, core, shape)[rows]
        if chained.any():
            seconds = np.where(chained, self.device.attention(sizes, replace(call, kernel="torch_softmax")), seconds)
        return seconds

    def merging(self, rows: Rows) -> FloatColumn:
        """Seconds of merging the steps' partial results: outputs forward, gradients of queries, keys and values backward."""
        core, shape = self.core, self.shape
        outputs, tokens = core.heads[rows] * core.value_dim, shape.tokens[rows]
        gradients = core.heads[rows] * core.head_dim + core.kv_heads[rows] * (core.head_dim + core.value_dim)
        elements = tokens * (gradients if self.direction == "backward" else outputs)
        merged: FloatColumn = self.device.elementwise(elements * (MERGE * (shape.cp[rows] - 1.0) + LAST_WRITE))
        return merged


def ring_attention(scenario: Scenario, shape: MicroBatch, kernels: AttentionKernels, rows: Rows) -> FloatColumn:
    """Seconds of ring attention's kernels on the rank that has most to do, s, one a shape of ``rows``."""
    cp, seq_len, balanced = shape.cp[rows].astype(float), kernels.length, scenario.software.kernels.cp_balanced
    mine, window = seq_len / cp, kernels.core.window or seq_len
    if window < seq_len:
        # what the window leaves, in one rectangle; without zigzag the last rank's
        mean = mean_context(kernels.core.window, seq_len)
        most = window / mean
        uneven = 1.0 if balanced else np.minimum((2.0 * cp - 1) / cp, most)
        return kernels.of(rows, mine, mean, causal=False) * uneven + kernels.merging(rows)
    other = mine / 2 if balanced and kernels.core.causal else mine
    return kernels.of(rows, mine, mine) + (cp - 1) * kernels.of(rows, mine, other, causal=False) + kernels.merging(rows)
