"""In what form, and where, a GPU's weights and activations stay: shards in fp32 or 16 bits, on the GPU or in the host's memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.layouts import BoolColumn, Layouts
from rapid_dse.simulate.operator_times import compute_bytes

FloatColumn = NDArray[np.float64]


def shard_bytes(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes of a parameter where it stays all step long, ``(n_layouts,)``: FSDP's shards are the master weights."""
    width = compute_bytes(scenario)
    return np.where(shards_are_master(scenario, layouts), max(width, scenario.software.precision.master_bytes), width)


def shards_are_master(scenario: Scenario, layouts: Layouts) -> BoolColumn:
    """Whether what ZeRO 3 shards are the fp32 weights that the optimizer steps, ``(n_layouts,)``."""
    fsdp: BoolColumn = layouts.sharding.parameters & (layouts.shards > 1) & scenario.software.precision.master_shards
    return fsdp


def on_the_host(total: FloatColumn, largest: FloatColumn, share: float) -> FloatColumn:
    """What lies in the host's memory where a ``share`` of what layers have is offloaded: all but that of two layers, of which one computes
    and the other is on its way. ``total`` is what all layers have, ``largest`` the largest of them; same shape."""
    resident: FloatColumn = share * np.maximum(0.0, total - 2.0 * largest)
    return resident
