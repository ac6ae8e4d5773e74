"""What lies in the host's memory in place of the GPU's: what is copied over the link between them, and the optimizer's step there.

Activations leave with the forward pass of their layer and come back ahead of its backward pass; weights come ahead of each pass; both
directions of the link go at once. Copies hide behind the layer's own pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.host_link import HostLink
from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.overlap import exposed_beside
from rapid_dse.device import OperatorModel
from rapid_dse.model.architecture import architecture_of
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.held_weights import layer_bytes
from rapid_dse.simulate.layer_memory import layer_activations
from rapid_dse.simulate.operator_times import compute_bytes

FloatColumn = NDArray[np.float64]

CPU_GRADIENT = 4.0  # bytes of a gradient as the CPU's step reads it, in fp32


@dataclass(frozen=True)
class HostCopies:
    """Bytes of one layer and one micro-batch that a rank copies, ``(n_layouts,)`` each: ``activations`` to the host and back, ``weights``
    from it with each pass."""

    activations: FloatColumn
    weights: FloatColumn

    def exposed(self, scenario: Scenario, forward: FloatColumn, backward: FloatColumn) -> tuple[FloatColumn, FloatColumn]:
        """Seconds of them that do not hide behind the layer's forward and behind its backward pass.

        Args:
            forward, backward: seconds of the passes, ``(n_layouts,)`` each.
        """
        host, share = scenario.hw.host, scenario.software.overlap.offload_overlap
        if host is None:
            return np.zeros_like(forward), np.zeros_like(backward)
        ahead, back = np.maximum(self.activations, self.weights), self.activations + self.weights
        return exposed_beside(ahead / host.link_bandwidth, share, forward), exposed_beside(back / host.link_bandwidth, share, backward)


def host_copies(scenario: Scenario, layouts: Layouts) -> tuple[HostCopies, ...]:
    """Those of a layer of each kind."""
    shares, kinds = scenario.parallel, len(architecture_of(scenario).kinds)
    activations = weights = (np.zeros(len(layouts)),) * kinds
    if shares.offload_activations > 0:
        activations = tuple(shares.offload_activations * kept for kept in layer_activations(scenario, layouts))
    if shares.offload_weights > 0:
        weights = tuple(shares.offload_weights * copied for copied in layer_bytes(scenario, layouts))
    return tuple(HostCopies(*layer) for layer in zip(activations, weights, strict=True))


def offloaded_update(scenario: Scenario, parameters: FloatColumn, device: OperatorModel) -> FloatColumn:
    """Seconds of the optimizer's step for so many parameters a rank, the states of a share of which lie in the host's memory.

    cpu: gradients travel, the cores step the states beside them, and new weights travel back, bucket by bucket, while the GPU steps its
    own; the slowest of these sets the pace. streamed: all are stepped on the GPU, and states come and go meanwhile.
    """
    share, software = scenario.parallel.offload_optimizer, scenario.software
    if share == 0:
        return device.update(parameters, software.update_traffic)
    host, offloaded, states = _host(scenario), share * parameters, software.precision.optimizer_bytes
    if software.host.offload_step == "streamed":
        return np.maximum(device.update(parameters, software.update_traffic), offloaded * states / host.link_bandwidth)
    stepped = offloaded * (2 * states + CPU_GRADIENT) / host.memory_bandwidth
    travels = offloaded * max(CPU_GRADIENT, compute_bytes(scenario)) / host.link_bandwidth
    kept = device.update(parameters - offloaded, software.update_traffic)
    return np.maximum(kept, np.maximum(stepped, travels))


def _host(scenario: Scenario) -> HostLink:
    host = scenario.hw.host
    assert host is not None  # the scenario has this checked
    return host
