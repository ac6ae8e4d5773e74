"""What a framework copies of weights and gradients: FSDP around its transfers (gathered weights into each parameter, gradients into the
buffer that is reduced), others gradients into the sums of a step's micro-batches.

The copies run between a layer's kernels and cannot hide: the layer waits for its weights, and their buffer for its gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import PRECISION_BYTES
from rapid_dse.config.scenario import Scenario
from rapid_dse.device import OperatorModel
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.communication import gradient_bytes
from rapid_dse.simulate.held_weights import Weights, head_parameters, layer_weights
from rapid_dse.simulate.layer_work import Block, LayerBlock
from rapid_dse.simulate.memory import reduces_each
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.sharding import embedding_weights, gathered_bytes, trained_table
from rapid_dse.simulate.zero_plus_plus import EIGHT_BITS, FOUR_BITS

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Copied:
    """HBM bytes of the copies of some weights, read and written, ``(n_layouts,)`` each: after a gather, and before a reduction or into a
    sum."""

    weights: FloatColumn
    gradients: FloatColumn


def copied_bytes(scenario: Scenario, layouts: Layouts, weights: Weights, trained: Weights) -> Copied:
    """HBM bytes of each copy of ``weights`` in one pass: ZeRO 3 gathers them before each pass, and ZeRO 2 and 3 reduce the gradients of
    those that are ``trained`` after the backward pass. ZeRO++ casts what it gathers and reduces, whether or not a framework copies.
    Where gradients are added to sums by kernels of their own, both are read and the sums written."""
    software, (parameters, sent) = scenario.software, (part.total * (layouts.shards > 1) for part in (weights, trained))
    own = PRECISION_BYTES[software.precision.gradient_dtype] if software.kernels.fused_accumulation else compute_bytes(scenario)
    gathers = layouts.sharding.parameters & software.kernels.copies_gathered
    reduces = reduces_each(software, layouts) & software.kernels.copies_gradients
    precision, width, hbm_bytes = software.precision, compute_bytes(scenario), reduces_each(software, layouts)
    copied, reduced = gathers * (2.0 * gathered_bytes(scenario)), reduces * float(own + gradient_bytes(scenario))
    if precision.zero_quantized_weights:  # 8 bits read, and written as they compute: in place of a copy
        copied = np.where(layouts.sharding.parameters, float(EIGHT_BITS + width), 0.0)
    if precision.zero_quantized_gradients:  # read as they are, written in 4 bits, and what has arrived read
        reduced = np.where(hbm_bytes, own + 2 * FOUR_BITS, 0.0)
    summed = compute_bytes(scenario) + 2 * PRECISION_BYTES[precision.gradient_dtype] if software.kernels.sums_apart else 0
    return Copied(parameters * copied, sent * reduced + float(summed) * trained.total)


def with_copies(scenario: Scenario, layouts: Layouts, block: Block, device: OperatorModel) -> Block:
    """The block with the copies of a layer, of the head and of the embedding beside what they compute; ``block`` has a row a layout.

    Full recomputation runs in a backward pass whose weights have come already: it repeats no copy.
    """
    kernels, precision = scenario.software.kernels, scenario.software.precision
    copies = kernels.copies_gathered or kernels.copies_gradients
    casts = precision.zero_quantized_weights or precision.zero_quantized_gradients
    of_shards = (copies or casts) and layouts.sharding.gradients.any()
    if not (of_shards or kernels.sums_apart):
        return block
    apart = (layouts.pp > 1) | (not scenario.model.tie_word_embeddings)
    head, table = (
        copied_bytes(scenario, layouts, weights, trained_table(scenario, weights))
        for weights in (Weights(head_parameters(scenario, layouts) * apart), embedding_weights(scenario, layouts))
    )

    def seconds(hbm_bytes: FloatColumn) -> FloatColumn:
        return np.where(hbm_bytes > 0, device.elementwise(hbm_bytes), 0.0)

    def with_own(layer: LayerBlock, weights: Weights, trained: Weights) -> LayerBlock:
        own = copied_bytes(scenario, layouts, weights, trained)
        gathered = seconds(own.weights)
        return replace(
            layer,
            forward=layer.forward + gathered,
            backward=layer.backward + gathered + seconds(own.gradients),
            gather_copies=gathered,
            traffic=layer.traffic + 2 * own.weights + own.gradients,
        )

    layer_parts = (layer_weights(scenario, layouts, trained) for trained in (False, True))
    return replace(
        block,
        layers=tuple(with_own(*layer) for layer in zip(block.layers, *layer_parts, strict=True)),
        head_forward=block.head_forward + seconds(head.weights),
        head_backward=block.head_backward + seconds(head.gradients),
        embedding=block.embedding + seconds(table.weights) + seconds(table.gradients),
        ends_traffic=block.ends_traffic + head.weights + head.gradients,
    )
