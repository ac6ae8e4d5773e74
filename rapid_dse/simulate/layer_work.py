"""What one layer, the embedding and the head cost one rank for one micro-batch: device time, traffic, kernels.

Priced once a distinct micro-batch shape, then gathered: a table of a million layouts has a few hundred of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.device import OperatorModel
from rapid_dse.model.operators import MicroBatch
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.operator_times import Operators, compute_bytes

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Device seconds and HBM bytes of one micro-batch on one rank; each ``(n,)``.

    ``layer_*`` are of one layer, ``head_*`` of head and loss, ``embedding`` of the look-up and, beside its passes
    forward, of its gradient, ``embedding_backward`` of what the first stage does after its last backward layer (transfers alone:
    ``vocabulary.Ends``); ``attention_forward`` is the part of
    ``layer_forward`` that ring attention's transfers can hide behind, ``weight_gradient`` the part of ``layer_backward`` that nothing
    waits for, ``head_weight_gradient`` that of ``head_backward``, ``spared`` the part of ``layer_forward`` that full recomputation leaves
    out (``software.recompute_stops_early``).
    """

    layer_forward: FloatColumn
    layer_backward: FloatColumn
    weight_gradient: FloatColumn
    attention_forward: FloatColumn
    attention_backward: FloatColumn
    selective_recompute: FloatColumn
    spared: FloatColumn
    head_forward: FloatColumn
    head_backward: FloatColumn
    head_weight_gradient: FloatColumn
    embedding: FloatColumn
    embedding_backward: FloatColumn
    layer_flops: FloatColumn
    head_flops: FloatColumn
    layer_traffic: FloatColumn
    head_traffic: FloatColumn

    def take(self, rows: NDArray[np.int64]) -> Block:
        """The entries at ``rows``."""
        return Block(*(getattr(self, f.name).take(rows) for f in fields(self)))


def distinct_shapes(layouts: Layouts, seq_len: int) -> tuple[MicroBatch, NDArray[np.int64]]:
    """The distinct micro-batch shapes of the layouts, and which of them each layout has, ``(n_layouts,)``."""
    first, where = layouts.alike.by("tp", "cp", "ep", "expert_tp", "micro_batch_size", "sequence_parallel")
    rows = layouts.take(first)
    return MicroBatch(rows.tp, rows.cp, rows.ep, rows.expert_tp, rows.micro_batch_size, rows.sequence_parallel, seq_len), where


def framework_block(scenario: Scenario, shape: MicroBatch, alone: Operators, device: OperatorModel) -> Block:
    """A layer, the head and the embedding as the framework runs them: its factors on what the operators cost alone."""
    software = scenario.software
    seconds = alone.matmul_seconds / software.kernels.matmul_efficiency
    if scenario.workload.precision == "fp8":
        seconds = seconds + np.where(alone.cast_bytes > 0, device.elementwise(software.precision.fp8_cast_passes * alone.cast_bytes), 0.0)
    layer, head, last = seconds[:, :-1].sum(axis=1), seconds[:, -1], seconds[0, -2]
    glue_forward = device.elementwise(alone.glue_forward_bytes * software.kernels.elementwise_traffic)
    glue_backward = device.elementwise(alone.glue_backward_bytes * software.kernels.elementwise_traffic)
    loss = device.elementwise(alone.loss_bytes)
    every_other = software.memory.selective_recompute == "every_other_matmul"
    traffic = (alone.glue_forward_bytes + alone.glue_backward_bytes) * software.kernels.elementwise_traffic
    return Block(
        layer_forward=layer[0] + alone.attention_forward + glue_forward,
        layer_backward=layer[1] + layer[2] + alone.attention_backward + glue_backward,
        weight_gradient=layer[2],
        attention_forward=alone.attention_forward,
        attention_backward=alone.attention_backward,
        selective_recompute=glue_forward + 0.5 * layer[0]
        if every_other
        else alone.attention_forward * software.memory.recomputes_attention,
        spared=last * software.memory.recompute_stops_early,
        head_forward=head[0] + loss / 2,
        head_backward=head[1] + head[2] + loss / 2,
        head_weight_gradient=head[2],
        embedding=device.elementwise(3.0 * compute_bytes(scenario) * shape.tokens * scenario.model.hidden_size),
        embedding_backward=np.zeros(len(shape.tp)),
        layer_flops=alone.layer_flops,
        head_flops=2 * shape.tokens * scenario.model.hidden_size * scenario.model.vocab_size / shape.tp,
        layer_traffic=3 * alone.layer_operand_bytes + traffic,
        head_traffic=3 * alone.head_operand_bytes + alone.loss_bytes,
    )
