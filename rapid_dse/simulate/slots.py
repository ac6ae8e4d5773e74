"""What each pipeline stage that may be the slowest spends on a micro-batch, and what the stages around it spend."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.layouts import RECOMPUTE_FULL, Layouts
from rapid_dse.simulate.block import Block
from rapid_dse.simulate.communication import nodes_of
from rapid_dse.simulate.stages import Stages
from rapid_dse.trace.schedules import Slots

FloatColumn = NDArray[np.float64]
NODE = 8  # tensor-parallel ranks that ``cluster.host_slowdown`` is told of

IDLE_FORWARD = 1 / 3  # share of a slot that is its forward pass where a stage computes nothing: the host's, as in the graphs of stages


def host_layer_seconds(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Seconds in which the host launches a layer's forward and backward pass for a micro-batch, ``(n_layouts,)``."""
    software = scenario.software
    collective = np.where(layouts.tp > 1, software.host_collective_layer, 0.0)
    # Full recomputation launches the forward pass again, half of what the host does for a layer.
    again = np.where(layouts.recompute == RECOMPUTE_FULL, 1.5, 1.0)
    seconds = (software.host_layer + collective) * again
    if scenario.cluster.host_slowdown == 1:
        return seconds
    slow = np.where(nodes_of(scenario.hw, layouts) > 1, scenario.cluster.host_slowdown * layouts.tp / NODE, 1.0)
    return seconds * np.maximum(1.0, slow)


def launched_slot(software: Software, device: NDArray[np.float64], host: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds that a micro-batch takes with ``device`` seconds of work that the host launches in ``host`` seconds; same shape."""
    if software.launch_norm is None:
        return np.maximum(device, host)
    longer, shorter = np.maximum(device, host), np.minimum(device, host)
    share = shorter / np.where(longer > 0, longer, 1.0)
    slot: NDArray[np.float64] = longer * (1.0 + share**software.launch_norm) ** (1.0 / software.launch_norm)
    return slot


def launched_part(part: NDArray[np.float64], whole: NDArray[np.float64], launches: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of a slot that one of its three passes (forward, input gradient, weight gradient) lasts; same shape.

    Each pass has a third of the launches, and cannot end before its own are done; the others keep the time of theirs. So where the host
    sets the pace, the passes keep their shares of the slot however fast the device is.

    Args:
        part: the pass's seconds on the device; ``whole``: the slot's; ``launches``: the host's for the whole slot.
    """
    third = launches / 3
    return np.clip(part, third, np.maximum(third, whole - 2 * third))


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
    behind_layers = found.has_embedding * block.embedding_backward + found.has_head * block.head_backward
    computing = found.layers * each + ahead + behind_layers
    device = computing + hops
    launches = found.layers * host_layer + scenario.software.host_micro_batch
    whole = launched_slot(scenario.software, device, launches)
    behind = layouts.pp - 1 - found.latest

    def before(of: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(found.latest > 0, of[0] + (found.ahead * of[1:-1]).sum(axis=1), 0.0)

    def after(of: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(behind > 0, of[-1] + (found.behind * of[1:-1]).sum(axis=1), 0.0)

    share = np.divide(found.layers * forward + ahead, computing, out=np.full_like(computing, IDLE_FORWARD), where=computing > 0)
    passes_forward = launched_part(whole * share, whole, launches)
    weights = np.where(found.layers > 0, launched_part(found.layers * block.weight_gradient, whole, launches), 0.0)
    slots = Slots(
        whole=whole,
        forward=passes_forward,
        weights=weights,
        before=before(whole),
        after=after(whole),
        forward_before=before(passes_forward),
        weights_before=before(weights),
        weights_after=after(weights),
        weights_first=weights[0],
        position=found.latest,
        behind=behind,
        vpp=layouts.vpp,
        micro_batches=layouts.num_micro_batches,
    )
    return slots, device
