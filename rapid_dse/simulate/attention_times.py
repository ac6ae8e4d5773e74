"""What attention costs alone, before a framework's factors: seconds of its kernels, FLOP, bytes of HBM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.device import OperatorModel
from rapid_dse.device.contract import OPERAND_PASSES, UNFUSED, score_passes
from rapid_dse.model.architecture import LayerKind
from rapid_dse.model.layers.part import CoreAttention, Part
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.simulate.fused_softmax import by_torch
from rapid_dse.simulate.ring_attention import AttentionKernels, Direction, ring_attention

FloatColumn = NDArray[np.float64]

DIRECTIONS: tuple[Direction, Direction] = ("forward", "backward")


def attention_kernels(
    scenario: Scenario, kinds: Sequence[LayerKind], shape: MicroBatch, device: OperatorModel
) -> list[tuple[FloatColumn, FloatColumn]]:
    """Seconds of the attention kernel of each kind of layer, forward and backward; kinds with the same kernel have it priced once."""
    times: dict[tuple[Part, ...], tuple[FloatColumn, FloatColumn]] = {}
    for kind in kinds:
        core, none = kind.attention(shape), np.zeros(len(shape.tp))
        if core is None:
            times[kind.parts[:-1]] = none, none
        elif kind.parts[:-1] not in times:
            forward, backward = (_attention_seconds(scenario, core, shape, device, way) for way in DIRECTIONS)
            times[kind.parts[:-1]] = forward, backward
    return [times[kind.parts[:-1]] for kind in kinds]


def _attention_seconds(
    scenario: Scenario, core: CoreAttention, shape: MicroBatch, device: OperatorModel, direction: Direction
) -> FloatColumn:
    """Seconds of one layer's attention, s, ``(n_shapes,)``."""
    seconds, ring = np.empty(len(shape.tp)), shape.cp > 1
    if scenario.cp_kind == "ulysses":  # a rank has all of the sequence, for its share of the heads
        keys = np.maximum(1.0, core.kv_heads / shape.cp)  # a copy of one where there are fewer than ranks
        core, ring = replace(core, heads=core.heads / shape.cp, kv_heads=keys), np.zeros(len(shape.tp), bool)
    kernels = AttentionKernels(scenario, core, shape, device, direction)
    if (~ring).any():
        seconds[~ring] = kernels.of(~ring, kernels.length, kernels.length)
    if ring.any():
        seconds[ring] = ring_attention(scenario, shape, kernels, ring)
    return seconds / scenario.hw.efficiency.sustained


def attention_flops(core: CoreAttention | None, shape: MicroBatch) -> FloatColumn:
    """FLOP of one layer's attention forward on one rank, of each document by itself."""
    if core is None:
        return np.zeros(len(shape.tp))
    return 4.0 * shape.tokens * core.context(shape.document_len) * core.heads * core.mean_dim


def all_scores(core: CoreAttention | None, shape: MicroBatch) -> FloatColumn:
    """FLOP of one layer's attention forward on one rank where those that the mask leaves out are multiplied too."""
    return np.zeros(len(shape.tp)) if core is None else 4.0 * shape.tokens * shape.seq_len * core.heads * core.mean_dim


def attention_bytes(scenario: Scenario, core: CoreAttention | None, shape: MicroBatch, width: int) -> FloatColumn:
    """HBM bytes of one layer's attention kernels on one rank forward and backward, of ``width`` bytes a number, ``(n_shapes,)``: queries,
    keys, values and outputs once forward and twice backward; of unfused ones also the passes over scores and operands between the
    products."""
    if core is None:
        return np.zeros(len(shape.tp))
    keys = np.maximum(core.kv_heads, shape.cp) if scenario.cp_kind == "ulysses" else core.kv_heads
    operands = shape.tokens * (core.heads + keys) * (core.head_dim + core.value_dim) * float(width)
    kernel = scenario.attention_kernel
    if kernel not in UNFUSED:
        return 3.0 * operands
    drops, chained = scenario.model.drops_out(scenario.software.kernels.dropout), by_torch(scenario, core, shape)
    hbm_bytes = 3.0 * operands
    for way in DIRECTIONS:
        whole, apart = (sum(score_passes(way, name, causal=core.causal, dropout=drops)) for name in (kernel, "torch_softmax"))
        passes = np.where(chained, apart, whole)
        hbm_bytes = hbm_bytes + width * shape.tokens * core.heads * (passes * shape.seq_len + OPERAND_PASSES[kernel, way] * core.head_dim)
    return hbm_bytes
