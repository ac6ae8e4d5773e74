"""What embedding table, head and loss send beside the layers' own traffic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import Network
from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import Layouts
from rapid_dse.network import transfer
from rapid_dse.network.placement import Placement, two_ends
from rapid_dse.network.transfer import Transfer
from rapid_dse.simulate.communication import gradient_bytes
from rapid_dse.simulate.memory import vocabulary_parameters

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class TiedTable:
    """The all-reduce that ends a step where embedding and head are one table and the two ends of a pipeline hold a copy each.

    The first and the last stage sum the table's gradient, rank by rank (Megatron's embedding group), after gradients are reduced over
    data-parallel ranks and before the optimizer: Megatron Core's ``finalize_model_grads``, nanotron's ``sync_tied_weights_gradients``;
    DeepSpeed's ``ReduceTiedGrads`` comes just before that reduction. Nothing is left to hide it.

    Attributes:
        size: bytes of the gradient that each of the two ranks has, and sends once, ``(n_layouts,)``; 0 without a pipeline or where
            tables are not tied. ZeRO 0 and 1 reduce the rank's whole part of the table: Megatron Core's gradient buffer stays whole
            under its distributed optimizer, and so do nanotron's and DeepSpeed's. From ZeRO 2 on a rank has kept its shard alone.
        reduction: the all-reduce.
    """

    size: FloatColumn
    reduction: Transfer


def tied_bytes(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """``TiedTable.size`` of each layout, bytes, ``(n_layouts,)``."""
    if not scenario.model.tie_word_embeddings:
        return np.zeros(len(layouts))
    shards = np.where(layouts.zero >= 2, layouts.shards, 1)
    return np.where(layouts.pp > 1, vocabulary_parameters(scenario, layouts) * gradient_bytes(scenario) / shards, 0.0)


def tied_table(scenario: Scenario, layouts: Layouts, placement: Placement, network: Network) -> TiedTable:
    """The tied table's all-reduce of each layout; of size 0 where there is none."""
    size = tied_bytes(scenario, layouts)
    if not size.any():
        return TiedTable(size, transfer.nothing(network, len(layouts)))
    return TiedTable(size, transfer.all_reduce(size, two_ends(placement.pp), network).times(size > 0))
