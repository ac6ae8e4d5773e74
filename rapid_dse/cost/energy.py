"""Energy of a step from the work it does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.cluster import Cluster
from rapid_dse.config.hardware import Hardware
from rapid_dse.parallel.layouts import IntColumn

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """What the mean GPU does, ``(n_layouts,)`` each: FLOP, bytes of HBM; and bytes that it sends into each network dimension,
    ``(n_dimensions, n_layouts)``."""

    flops: FloatColumn
    hbm_bytes: FloatColumn
    sent_bytes: NDArray[np.float64]


def dynamic_energy(hw: Hardware, precision: str, work: Work) -> FloatColumn:
    """Joules of a GPU's work, ``(n_layouts,)``: FLOP, bytes and bits moved at the chip's figures, without idle power."""
    per_byte = np.array([dimension.energy for dimension in hw.network.dimensions])
    joules: FloatColumn = work.flops * _energy_a_flop(hw, precision) + work.hbm_bytes * (hw.energy.hbm + hw.energy.l2)
    return joules + per_byte @ work.sent_bytes


def energy(hw: Hardware, dynamic: FloatColumn, seconds: FloatColumn, num_gpus: IntColumn) -> FloatColumn:
    """Joules of a step of so many seconds on all GPUs, ``(n_layouts,)``: of each one's work, and idle power throughout.

    Never above the chips' thermal design power for the time of the step.
    """
    joules: FloatColumn = np.minimum(dynamic + hw.energy.idle * seconds, hw.energy.tdp * seconds) * num_gpus
    return joules


def site_energy(cluster: Cluster, hw: Hardware, joules: FloatColumn, seconds: FloatColumn, num_gpus: IntColumn) -> FloatColumn:
    """Joules of the whole site over so many seconds in which the GPUs took ``joules``: with their nodes, cooling and conversion."""
    nodes = np.ceil(num_gpus / hw.gpus_per_node)
    return (joules + nodes * cluster.node_power * seconds) * cluster.pue


def _energy_a_flop(hw: Hardware, precision: str) -> float:
    """J/FLOP of the precision, or of the nearest wider one that the chip's table has: bf16, fp16, tf32, fp32; 0 where it has none."""
    joules = {str(name): energy for name, energy in hw.energy.flop.items()}
    return next((joules[name] for name in (precision, "bf16", "fp16", "tf32", "fp32") if name in joules), 0.0)
