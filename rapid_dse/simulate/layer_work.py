"""What one layer, the embedding and the head cost one rank for one micro-batch: device time, traffic, kernels.

Priced once a distinct micro-batch shape, then gathered: a table of a million layouts has a few hundred of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added, rows_of
from rapid_dse.config.hardware import NARROW_BYTES
from rapid_dse.config.run import Workload
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software.memory_settings import MemorySettings
from rapid_dse.device import OperatorModel
from rapid_dse.model.architecture import LayerKind, architecture_of
from rapid_dse.model.recompute import Recomputation, recomputation, selective
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.casts import cast_before_gather
from rapid_dse.simulate.operator_times import LayerOperators, Operators, compute_bytes, layer_alone

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class LayerBlock:
    """Device seconds, HBM bytes and joules of one layer of one kind and one micro-batch on one rank; each ``(n,)``.

    ``attention_forward`` is the part of ``forward`` that ring attention's transfers can hide behind, ``weight_gradient`` the part of
    ``backward`` that nothing waits for, ``spared`` what full recomputation leaves out of a forward pass
    (``software.recompute_stops_early``, ``software.keeps_gathered``), ``gather_copies`` the part that is FSDP's copy of gathered weights
    (``shard_copies``), ``selective`` what selective recomputation computes once more. ``product_joules`` and ``attention_joules`` are of
    the arithmetic of the forward pass, ``backward_joules`` of the products of the backward pass, ``again_joules`` of those that selective
    recomputation repeats; ``traffic`` are HBM bytes of both passes.
    """

    forward: FloatColumn
    backward: FloatColumn
    weight_gradient: FloatColumn
    attention_forward: FloatColumn
    attention_backward: FloatColumn
    selective: FloatColumn
    spared: FloatColumn
    gather_copies: FloatColumn
    product_joules: FloatColumn
    backward_joules: FloatColumn
    attention_joules: FloatColumn
    again_joules: FloatColumn
    traffic: FloatColumn


@dataclass(frozen=True)
class Block:
    """Device seconds, HBM bytes and joules of one micro-batch on one rank: of a layer of each kind (``layers``), and of what is
    around them; each ``(n,)``.

    ``head_*`` are of head and loss, ``embedding`` of what stands before the layers: its pass forward (``embedding_forward``) and its
    gradient; ``embedding_backward`` of what the first stage does after its last backward layer (transfers alone: ``vocabulary.Ends``);
    ``head_weight_gradient`` is the part of ``head_backward`` that nothing waits for; ``ends_joules`` of the arithmetic and
    ``ends_traffic`` HBM bytes of both passes of both ends.
    """

    layers: tuple[LayerBlock, ...]
    head_forward: FloatColumn
    head_backward: FloatColumn
    head_weight_gradient: FloatColumn
    embedding: FloatColumn
    embedding_backward: FloatColumn
    embedding_forward: FloatColumn
    ends_joules: FloatColumn
    ends_traffic: FloatColumn

    def take(self, rows: NDArray[np.int64]) -> Block:
        """The entries at ``rows``."""
        return rows_of(self, rows)


def distinct_shapes(layouts: Layouts, work: Workload, *names: str) -> tuple[MicroBatch, NDArray[np.int64]]:
    """The distinct micro-batch shapes of the layouts, and which of them each layout has, ``(n_layouts,)``; a shape stands once for each
    value of the columns ``names``."""
    first, where = layouts.alike.by("tp", "cp", "ep", "expert_tp", "micro_batch_size", "sequence_parallel", *names)
    return MicroBatch.of(layouts.take(first), work), where


def framework_block(scenario: Scenario, shape: MicroBatch, alone: Operators, device: OperatorModel) -> Block:
    """Layers, the head and the embedding as the framework runs them: its factors on what the operators cost alone."""
    head = _products(scenario, alone.head.seconds, alone.head.cast_bytes, device)
    first = _products(scenario, alone.embedding.seconds, alone.embedding.cast_bytes, device)
    loss, glue_bytes = moving(device, alone.loss_bytes), alone.embedding.glue_forward_bytes + alone.embedding.glue_backward_bytes
    around = moving(device, glue_bytes)
    ahead = around * np.divide(alone.embedding.glue_forward_bytes, glue_bytes, out=np.zeros_like(glue_bytes), where=glue_bytes > 0)
    return Block(
        layers=tuple(
            _layer_block(scenario, layer, some, SequenceCopies.of(scenario, kind, shape, device), device)
            for kind, layer, some in zip(architecture_of(scenario).kinds, alone.layers, selective(scenario), strict=True)
        ),
        head_forward=head[0] + loss / 2 + moving(device, alone.head.glue_forward_bytes),
        head_backward=head[1] + head[2] + loss / 2 + moving(device, alone.head.glue_backward_bytes),
        head_weight_gradient=head[2],
        embedding=first[0] + first[2] + around,  # nothing needs the gradient of what it reads
        embedding_backward=np.zeros(len(shape.tp)),
        embedding_forward=first[0] + ahead,
        ends_joules=alone.head.joules + alone.embedding.joules,
        ends_traffic=alone.head.operand_bytes + alone.embedding.operand_bytes + alone.loss_bytes,
    )


def moving(device: OperatorModel, hbm_bytes: FloatColumn) -> FloatColumn:
    """Seconds of small kernels that move so many bytes; none where they move nothing."""
    return np.where(hbm_bytes > 0, device.elementwise(hbm_bytes), 0.0)


# Gathers of the stream before a layer's tensor-parallel halves and scatters behind them: two each forward; backward two each, and two
# gathers again of what the weight gradients read.
GATHERS, SCATTERS = (2.0, 4.0), (2.0, 2.0)


@dataclass(frozen=True)
class SequenceCopies:
    """Seconds of one copy of the whole stream between the sequence's parts in rank order and whole sequences, ``(n_shapes,)`` each: around
    a gather, which may be of 8 bits, and around a scatter."""

    gather: FloatColumn
    scatter: FloatColumn

    @classmethod
    def none(cls, n_shapes: int) -> SequenceCopies:
        """Of a framework that needs none."""
        return cls(np.zeros(n_shapes), np.zeros(n_shapes))

    @classmethod
    def of(cls, scenario: Scenario, kind: LayerKind, shape: MicroBatch, device: OperatorModel) -> SequenceCopies:
        """Those of a layer of one kind: routed rows are gathered in 16 bits, whichever the precision."""
        if not scenario.software.kernels.copies_sequence:
            return cls.none(len(shape.tp))
        elements, width = shape.tokens * scenario.model.hidden_size, compute_bytes(scenario)
        may_be_cast = [exchanged.cast for part in kind.parts for exchanged in part.exchanged()]
        cast = float(np.mean(may_be_cast)) if may_be_cast and cast_before_gather(scenario) else 0.0
        gathered = width + cast * (NARROW_BYTES[scenario.narrow] - width) if scenario.narrow else width
        copied = shape.sequence_parallel & (shape.tp > 1)
        gather, scatter = (np.where(copied, device.elementwise(2.0 * size * elements), 0.0) for size in (gathered, width))
        return cls(gather, scatter)

    def forward(self) -> FloatColumn:
        """Of a layer's forward pass."""
        return GATHERS[0] * self.gather + SCATTERS[0] * self.scatter

    def backward(self) -> FloatColumn:
        """Of its backward pass."""
        return GATHERS[1] * self.gather + SCATTERS[1] * self.scatter

    def spared(self, memory: MemorySettings) -> FloatColumn:
        """What full recomputation leaves out: the scatter behind the last product, and gathers again of what it has just gathered."""
        return memory.recompute_stops_early * self.scatter + memory.keeps_gathered * (GATHERS[1] - GATHERS[0]) * self.gather


def layer_alone_block(scenario: Scenario, kind: LayerKind, shape: MicroBatch, device: OperatorModel) -> LayerBlock:
    """A layer of one kind as the framework runs it on one GPU, with nothing run again, whichever the model's layers are."""
    none = recomputation(kind, scenario.software, ())
    return _layer_block(scenario, layer_alone(scenario, kind, shape, device), none, SequenceCopies.none(len(shape.tp)), device)


def _layer_block(
    scenario: Scenario, alone: LayerOperators, some: Recomputation, copied: SequenceCopies, device: OperatorModel
) -> LayerBlock:
    """A layer of one kind; ``some``: what selective recomputation repeats of it."""
    software = scenario.software
    seconds = _products(scenario, alone.matmul_seconds, alone.cast_bytes, device)
    forward, input_gradient, weight_gradient = added(seconds.swapaxes(0, 1))
    glue_forward, glue_backward, glue_again = (
        moving(device, glue_bytes * software.kernels.elementwise_traffic)
        for glue_bytes in (alone.glue_forward_bytes, alone.glue_backward_bytes, alone.glue_again_bytes)
    )
    glue_forward, glue_backward = glue_forward + alone.counted_forward, glue_backward + alone.counted_backward
    again = added(alone.again * seconds[0]) + some.core * alone.attention_forward + alone.counted_again
    traffic = (alone.glue_forward_bytes + alone.glue_backward_bytes) * software.kernels.elementwise_traffic
    casts = added(alone.cast_bytes.reshape(-1, alone.cast_bytes.shape[-1]))
    traffic = traffic + software.precision.fp8_cast_passes * casts + alone.counted_bytes
    return LayerBlock(
        forward=forward + alone.attention_forward + glue_forward + copied.forward(),
        backward=input_gradient + weight_gradient + alone.attention_backward + glue_backward + copied.backward(),
        weight_gradient=weight_gradient,
        attention_forward=alone.attention_forward,
        attention_backward=alone.attention_backward,
        selective=glue_again + again + sum(some.gathers) * copied.gather + sum(some.scatters) * copied.scatter,
        spared=seconds[0, -1] * software.memory.recompute_stops_early + copied.spared(software.memory),
        gather_copies=np.zeros_like(copied.gather),
        product_joules=alone.product_joules,
        backward_joules=alone.backward_joules,
        attention_joules=alone.attention_joules,
        again_joules=alone.again_joules,
        traffic=alone.operand_bytes + alone.attention_bytes + traffic,
    )


def _products(scenario: Scenario, alone: NDArray[np.float64], casts: NDArray[np.float64], device: OperatorModel) -> NDArray[np.float64]:
    """Seconds of products with their casts, from those that they take ``alone``; same shape."""
    seconds = alone / scenario.software.kernels.matmul_efficiency
    if scenario.narrow:
        seconds = seconds + np.where(casts > 0, device.elementwise(scenario.software.precision.fp8_cast_passes * casts), 0.0)
    return seconds
