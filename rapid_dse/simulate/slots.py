"""How a slot of device work and the host that launches it go together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.communication import nodes_of
from rapid_dse.simulate.host_launches import gradient_launches, host_pace, layer_launches, library_seconds
from rapid_dse.simulate.recomputed import whole_layers

FloatColumn = NDArray[np.float64]
NODE = 8  # tensor-parallel ranks that ``cluster.host_slowdown`` is told of

Passes = tuple[FloatColumn, FloatColumn]  # seconds forward and backward


def host_layer_seconds(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Seconds in which the host launches a layer's forward and backward pass for a micro-batch, ``(n_layouts,)``."""
    software = scenario.software
    collective = np.where(layouts.tp > 1, software.host.host_collective_layer, 0.0)
    # Full recomputation launches the forward pass again, half of what the host does for a layer.
    again = 1.0 + 0.5 * whole_layers(scenario, layouts)
    launched = layer_launches(scenario, layouts) + (gradient_launches(scenario) if scenario.workload.kind == "training" else 0.0)
    recorded = 1.0 if scenario.workload.kind == "training" else software.host.host_without_gradients
    of_framework = software.host.host_layer * launched * recorded + collective * (launched > 0)
    seconds: FloatColumn = (of_framework + library_seconds(scenario)) * (again * host_pace(scenario))
    return seconds if scenario.cluster.host_slowdown == 1 else seconds * host_slowdown(scenario, layouts)


def host_slowdown(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Times as long as usual that the host launches a layer for, ``(n_layouts,)``, 1 and more (``cluster.host_slowdown``)."""
    slow = np.where(nodes_of(scenario.hw, layouts) > 1, scenario.cluster.host_slowdown * layouts.tp / NODE, 1.0)
    return np.maximum(1.0, slow)


def launched_slot(software: Software, device: NDArray[np.float64], host: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds that a micro-batch takes with ``device`` seconds of work that the host launches in ``host`` seconds; same shape."""
    if software.host.launch_norm is None:
        return np.maximum(device, host)
    longer, shorter = np.maximum(device, host), np.minimum(device, host)
    share = shorter / np.where(longer > 0, longer, 1.0)
    slot: NDArray[np.float64] = longer * (1.0 + share**software.host.launch_norm) ** (1.0 / software.host.launch_norm)
    return slot


def waits_in_pass(part: NDArray[np.float64], idle: NDArray[np.float64], launches: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds that one of a slot's three passes (forward, input gradient, weight gradient) waits for its launches; same shape.

    Each pass has a third of the launches, and cannot end before its own are done, as far as the device waits for the host at all. So where
    the host sets the pace, the passes keep their shares of the slot however fast the device is.

    Args:
        part: the pass's seconds on the device; ``idle``: what the device waits in the whole slot and no other pass has; ``launches``: the
            host's seconds for the whole slot.
    """
    return np.clip(launches / 3 - part, 0.0, np.maximum(0.0, idle))


def launched_passes(
    software: Software, device: Sequence[FloatColumn], host: Sequence[FloatColumn], apart: bool = False
) -> list[FloatColumn]:
    """Seconds that a slot's forward and its backward pass last, whose sum is ``launched_slot``'s of both; same shapes.

    Neither ends before its launches are done. The host runs ahead from pass to pass, so that what single passes take longer than their
    launches, the slot does not take in full: all lose the same share of it. So no pass gets longer where the device gets faster.

    Args:
        device: seconds of each pass there; ``host``: of its launches.
        apart: whether all passes one way follow each other (``Schedule.directions_apart``): the host gets ahead for its own kind alone.
    """
    alone = [launched_slot(software, part, own) for part, own in zip(device, host, strict=True)]
    if apart:
        return alone
    longer = [seconds - own for seconds, own in zip(alone, host, strict=True)]
    spared = added(alone) - launched_slot(software, added(device), added(host))
    share = share_of(np.maximum(0.0, spared), added(longer))
    return [seconds - share * more for seconds, more in zip(alone, longer, strict=True)]


def smoothed(software: Software, device: FloatColumn, host: FloatColumn) -> tuple[FloatColumn, FloatColumn]:
    """What a device and its host need for a slot beside each other's, so that the longer of both is ``launched_slot``: seconds that the
    device takes more, and times as long that the launches take; same shapes.

    Neither gets less where one of both takes longer: the device has at most what it takes more where both are equal, and so has the host.
    """
    slot, equal = launched_slot(software, device, host), launched_slot(software, host, host)
    late: FloatColumn = np.maximum(0.0, np.minimum(slot - device, equal - host))
    return late, np.where(host > 0, share_of(np.minimum(slot, equal), host), 1.0)


def share_of(part: FloatColumn, every: FloatColumn) -> FloatColumn:
    """``part / every``, none of nothing."""
    return np.divide(part, every, out=np.zeros_like(part), where=every > 0)


def waits_of_passes(
    software: Software, parts: tuple[float, float], device: float, host: float, apart: bool = False
) -> tuple[float, float, float]:
    """How one slot's waits for the host are dealt out to its forward pass, its input gradient's and its weight gradient's.

    Args:
        parts: seconds of the forward pass and of weight gradients; ``device`` of the whole slot, which the host launches in ``host``.
        apart: as ``launched_passes`` has it, of a backward pass with its weight gradients.
    """
    if apart:
        own = [np.array(parts[0]), np.array(device - parts[0])]
        ahead, back = launched_passes(software, own, [np.array(host / 3), np.array(host * 2 / 3)], apart=True)
        return float(ahead - own[0]), float(back - own[1]), 0.0
    idle, launches = launched_slot(software, np.array(device), np.array(host)) - device, np.array(host)
    first = waits_in_pass(np.array(parts[0]), idle, launches)
    third = waits_in_pass(np.array(parts[1]), idle - first, launches) * (parts[1] > 0)
    return float(first), float(idle - first - third), float(third)
