"""A layer of long short-term memory (Hochreiter and Schmidhuber, 1997) as cuDNN runs it (Appleyard et al., arXiv 1604.01946).

The products with the inputs of all steps are one, those with the states are one a step for all four gates, and layers follow each other in
wavefronts: while a layer is at step t, the one above it is at step t - 1. So T steps of L layers take T + L - 1 rounds, in each of which up
to L products run side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.config.model import Model
from rapid_dse.config.software import Software
from rapid_dse.model.layers.embedding import table_parameters
from rapid_dse.model.layers.head import Head
from rapid_dse.model.layers.part import Counted, ForwardStep, GridMove, Part, PartParameters, SmallKernel, Tensor
from rapid_dse.model.shapes import FloatColumn, MatMul, MicroBatch

GATES = 4  # input, forget, cell, output
# Numbers a unit of the state that the kernel behind a step's product moves. Forward: both products' gates and the cell read; cell, output
# and gates written. Backward: the gates, two cells and three gradients read; gradients of the gates and of the cell written.
CELL_FORWARD, CELL_BACKWARD = 2 * GATES + 1 + 2 + GATES, GATES + 2 + 3 + GATES + 1
# What cuDNN's loop launches for a step of a layer, forward and backward, events between the streams of a wavefront among them: on an H200
# 17 and 34 us where launches set the pace, whatever batch (32 to 256), width (1,024, 2,048) and steps.
STEP_LAUNCHES = 5, 10


@dataclass(frozen=True)
class Recurrent(Part):
    """All steps of one layer; ``width`` of its input. Ranks that share it hold some columns of every gate, and gather the state after each
    step (kernel parallelism)."""

    width: int = 0

    def _columns(self, shape: MicroBatch) -> FloatColumn:
        columns: FloatColumn = GATES * self.model.hidden_size / shape.tp
        return columns

    def _rounds(self, shape: MicroBatch) -> tuple[float, float]:
        """Rounds for each layer, and products that run side by side in one on average."""
        steps, layers = shape.seq_len, self.model.num_hidden_layers
        return (steps + layers - 1) / layers, steps * layers / (steps + layers - 1)

    def parameters(self, shape: MicroBatch) -> PartParameters:
        """Matrices of inputs and states, and a bias beside each (torch.nn.LSTM, cuDNN)."""
        columns = self._columns(shape)
        return PartParameters(products=columns * (self.width + self.model.hidden_size), biases=2 * columns)

    def products(self, shape: MicroBatch) -> list[MatMul]:
        columns, (rounds, cells) = self._columns(shape), self._rounds(shape)
        rows, wide = shape.micro_batch_size.astype(float), np.full_like(shape.tokens, self.model.hidden_size)
        return [
            MatMul("input_gates", shape.tokens, columns, np.full_like(shape.tokens, self.width)),
            MatMul("state_gates", rows, columns, wide, cells, second=0.0, in_turn=rounds),
        ]

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        """The cell's kernel of each round, and in a wavefront the event that the layer above waits for, another start."""
        units, (rounds, _) = shape.tokens * self.model.hidden_size / shape.tp, self._rounds(shape)
        starts = rounds * (2.0 if self.model.num_hidden_layers > 1 else 1.0)
        return [SmallKernel("cell", CELL_FORWARD * units, CELL_BACKWARD * units, counted=Counted((0.0, 0.0), (starts, starts)))]

    def steps(self) -> tuple[ForwardStep, ...]:
        return (
            ForwardStep("input_gates", "layer_input", ("gates_of_inputs",)),
            ForwardStep("state_gates", "gates_of_inputs", ("gates_of_states",)),
            ForwardStep("cell", "gates_of_states", ("gates", "cells", "layer_output")),
        )

    def tensors(self, shape: MicroBatch, software: Software) -> list[Tensor]:
        """Its input, the gates and the cell of each step, which the backward pass goes through from the last step to the first; what the
        inputs give to the gates stays too, since a wavefront has all layers under way at once (cuDNN's workspace)."""
        units = shape.tokens * self.model.hidden_size / shape.tp
        return [
            Tensor("layer_input", shape.tokens * self.width, "input"),
            Tensor("gates_of_inputs", GATES * units, product=True),
            Tensor("gates", GATES * units),
            Tensor("cells", units),
        ]

    def moves(self, shape: MicroBatch) -> tuple[GridMove, ...]:
        """The state is gathered after each step; backward its gradient is summed and scattered, and so is that of the input, once."""
        (rounds, cells), one = self._rounds(shape), np.ones_like(shape.tp)
        state: FloatColumn = shape.micro_batch_size.astype(np.float64) * (self.model.hidden_size * cells)
        return (
            GridMove("ALL_GATHER", state, shape.tp, one, times=rounds),
            GridMove("REDUCE_SCATTER", state, shape.tp, one, backward=True, times=rounds),
            GridMove("REDUCE_SCATTER", shape.tokens * self.width, shape.tp, one, backward=True),
        )

    def carried(self, shape: MicroBatch) -> FloatColumn:
        """The state that all ranks have, and a rank's part of the cell."""
        carried: FloatColumn = shape.micro_batch_size * self.model.hidden_size * (1.0 + 1.0 / shape.tp)
        return carried

    def launches(self) -> float:
        """One call of the library."""
        return 1.0

    def library_launches(self, steps: int) -> float:
        return float(sum(STEP_LAUNCHES) * steps)


@dataclass(frozen=True)
class OutputHead(Head):
    """The product with the vocabulary behind the last layer, without a norm."""

    def parameters(self, shape: MicroBatch) -> PartParameters:
        return PartParameters(table_parameters(self.model, shape.tp))


def inner(model: Model) -> Recurrent:
    """A layer that reads another one's output."""
    return Recurrent(model, model.hidden_size)


PART = inner
