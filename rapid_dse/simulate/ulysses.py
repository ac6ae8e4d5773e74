"""All-to-all context parallelism: ranks trade parts of the sequence for heads around the attention kernel, and trade back.

DeepSpeed-Ulysses (Jacobs et al., arXiv 2309.14509, section 3.2): queries, keys and values go through an all-to-all each, so that a rank has
all of the sequence for its share of the heads, and what the kernel gives goes back through a fourth; backward the same four, reversed. A
kernel waits for them, so that nothing hides them. Where there are fewer key-value heads than ranks, each is copied before it goes, so
that every rank gets one (DeepSpeed, runtime/sequence_parallel/ulysses_sp.py; Bekman et al., arXiv 2506.13996, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.model.architecture import LayerKind
from rapid_dse.model.layers.part import CoreAttention, Tensor
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.operator_times import compute_bytes

FloatColumn = NDArray[np.float64]


def traded_bytes(scenario: Scenario, layouts: Layouts, core: CoreAttention | None) -> Sequence[FloatColumn]:
    """Bytes that a rank has of queries, keys, values and outputs before each all-to-all of one layer and one micro-batch, ``(n_layouts,)``
    each; none without attention or where keys go round a ring."""
    if core is None or scenario.cp_kind != "ulysses":
        return ()
    tokens = compute_bytes(scenario) * MicroBatch.of(layouts, scenario.workload).tokens * (layouts.cp > 1)
    keys = copied_keys(core.kv_heads, layouts.cp)
    widths = (core.heads * core.head_dim, keys * core.head_dim, keys * core.value_dim, core.heads * core.value_dim)
    return [tokens * width for width in widths]


def copied_keys(kv_heads: FloatColumn, cp: NDArray[np.int64]) -> FloatColumn:
    """Key-value heads that a rank sends, copies counted, ``(n,)``: as many as there are ranks at least."""
    return np.maximum(kv_heads, cp)


def kept_tensors(scenario: Scenario, kind: LayerKind, shape: MicroBatch) -> tuple[Tensor, ...]:
    """A layer's tensors, with the copies of keys and values that the kernel reads and autograd keeps."""
    tensors, core = tuple(kind.tensors(shape, scenario.software)), kind.attention(shape)
    if core is None or scenario.cp_kind != "ulysses":
        return tensors
    copies = shape.tokens * (copied_keys(core.kv_heads, shape.cp) - core.kv_heads) * (core.head_dim + core.value_dim)
    return tuple(replace(tensor, elements=tensor.elements + copies) if tensor.name == "qkv" else tensor for tensor in tensors)
