"""Weights that each tensor-parallel rank holds whole, and the sum of their gradients at the end of a step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.parameters import layer_norms
from rapid_dse.parallel.layouts import IntColumn, Layouts
from rapid_dse.simulate.communication import gradient_bytes

FloatColumn = NDArray[np.float64]


def replicated_parameters(model: Model) -> int:
    """Parameters of one layer of which each rank sees a share of the tokens alone under sequence parallelism: norms, biases that are added
    after a reduction, the router."""
    biases = (1 if model.num_experts else 2) * model.hidden_size if model.linear_bias else 0
    return layer_norms(model) + biases + model.hidden_size * model.num_experts


def replicated_bytes(scenario: Scenario, layouts: Layouts, layers: IntColumn) -> FloatColumn:
    """Bytes of gradients that a tensor-parallel group sums once a step for so many ``layers``, ``(n_layouts,)``; 0 without sequence
    parallelism, where ranks see the same tokens.

    One all-reduce of all of them together, after the reduction over data-parallel ranks: Megatron Core's
    ``_allreduce_non_tensor_model_parallel_grads``; nanotron sums them as tied weights.
    """
    size = layers * (replicated_parameters(scenario.model) * gradient_bytes(scenario))
    return np.where(layouts.sequence_parallel, size, 0).astype(np.float64)
