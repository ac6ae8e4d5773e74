"""Weights that each tensor-parallel rank holds whole, and the sum of their gradients at the end of a step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import summed
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.architecture import architecture_of
from rapid_dse.model.shapes import ONE
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.communication import gradient_bytes

FloatColumn = NDArray[np.float64]


def replicated_bytes(scenario: Scenario, layouts: Layouts, of_kinds: NDArray[np.int64]) -> FloatColumn:
    """Bytes of gradients that a tensor-parallel group sums once a step for so many layers of each kind (``(n_kinds, n_layouts)``),
    ``(n_layouts,)``; 0 without sequence parallelism, where ranks see the same tokens.

    One all-reduce of all of them together, after the reduction over data-parallel ranks: Megatron Core's
    ``_allreduce_non_tensor_model_parallel_grads``; nanotron sums them as tied weights.
    """
    model = architecture_of(scenario)
    whole = [np.array(sum(part.trained.whole for part in kind.parameters(ONE))) for kind in model.kinds]
    ends = 0.0 if model.shares_ends else float(model.embedding.weights(np.ones(1, np.int64))[0])
    size = (summed(of_kinds, whole) + ends) * gradient_bytes(scenario)
    return np.where(layouts.sequence_parallel, size, 0).astype(np.float64)
