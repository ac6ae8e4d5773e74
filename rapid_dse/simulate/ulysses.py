"""All-to-all context parallelism: ranks trade parts of the sequence for heads around the attention kernel, and trade back.

DeepSpeed-Ulysses (Jacobs et al., arXiv 2309.14509, section 3.2): queries, keys and values go through an all-to-all each, so that a rank has
all of the sequence for its share of the heads, and what the kernel gives goes back through a fourth; backward the same four, reversed. A
kernel waits for them, so that nothing hides them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.model.layers.part import CoreAttention
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.operator_times import compute_bytes

FloatColumn = NDArray[np.float64]


def traded_bytes(scenario: Scenario, layouts: Layouts, core: CoreAttention | None) -> Sequence[FloatColumn]:
    """Bytes that a rank has of queries, keys, values and outputs before each all-to-all of one layer and one micro-batch, ``(n_layouts,)``
    each; none without attention or where keys go round a ring."""
    if core is None or scenario.parallel.cp_kind != "ulysses":
        return ()
    tokens = compute_bytes(scenario) * MicroBatch.of(layouts, scenario.workload).tokens * (layouts.cp > 1)
    widths = (core.heads * core.head_dim, core.kv_heads * core.head_dim, core.kv_heads * core.value_dim, core.heads * core.value_dim)
    return [tokens * each for each in widths]
