"""What each pipeline stage that may be the slowest spends on a micro-batch, and what the stages around it spend."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.layouts import Layouts
from rapid_dse.simulate.block import Block
from rapid_dse.simulate.stages import Stages
from rapid_dse.trace.schedules import Slots

FloatColumn = NDArray[np.float64]

IDLE_FORWARD = 1 / 3  # share of a slot that is its forward pass where a stage computes nothing: the host's, as in the graphs of stages


def launched_slot(software: Software, device: NDArray[np.float64], host: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds that a micro-batch takes with ``device`` seconds of work that the host launches in ``host`` seconds; same shape."""
    if software.launch_norm is None:
        return np.maximum(device, host)
    longer, shorter = np.maximum(device, host), np.minimum(device, host)
    share = shorter / np.where(longer > 0, longer, 1.0)
    slot: NDArray[np.float64] = longer * (1.0 + share**software.launch_norm) ** (1.0 / software.launch_norm)
    return slot


def stage_slots(
    scenario: Scenario,
    layouts: Layouts,
    block: Block,
    found: Stages,
    layer: tuple[FloatColumn, FloatColumn],
    hops: NDArray[np.float64],
    host_layer: FloatColumn,
) -> tuple[Slots, NDArray[np.float64]]:
    """The candidate stages' slots, and what the device has of them, ``(n_candidates, n_layouts)``.

    A slot is as long as the device computes and transfers, or as the host takes to launch it (``launched_slot``). A stage without layers
    passes on what it receives, which takes the sends and the host's time for a micro-batch.

    Args:
        layer: seconds of a layer's forward and backward pass with all that shows beside them, ``(n_layouts,)`` each.
        hops: seconds of a micro-batch's sends on each candidate, ``host_layer`` of the host a layer, ``(n_layouts,)``.
    """
    forward, backward = layer
    each = forward + backward
    ahead = found.has_embedding * block.embedding + found.has_head * block.head_forward
    computing = found.layers * each + ahead + found.has_head * block.head_backward
    device = computing + hops
    whole = launched_slot(scenario.software, device, found.layers * host_layer + scenario.software.host_micro_batch)
    later = scenario.model.num_hidden_layers - found.before - found.layers
    behind = layouts.pp - 1 - found.latest
    before = np.where(found.latest > 0, whole[0] + (found.ahead * whole[1:-1]).sum(axis=1), 0.0)
    after = np.where(behind > 0, whole[-1] + (found.behind * whole[1:-1]).sum(axis=1), 0.0)
    share = np.divide(found.layers * forward + ahead, computing, out=np.full_like(computing, IDLE_FORWARD), where=computing > 0)
    slots = Slots(
        whole=whole,
        forward=whole * share,
        weights=found.layers * block.weight_gradient,
        before=before,
        after=after,
        forward_before=before * (forward / each),
        weights_before=found.before * block.weight_gradient,
        weights_after=later * block.weight_gradient,
        weights_first=found.layers[0] * block.weight_gradient,
        position=found.latest,
        behind=behind,
        vpp=layouts.vpp,
        micro_batches=layouts.num_micro_batches,
    )
    return slots, device
