"""What ends a training step: gradients, weights, the sums of what ranks hold alike, and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Shared, summed
from rapid_dse.config.hardware import NARROW_BYTES
from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.overlap import Occupied, Window, exposed
from rapid_dse.device import OperatorModel
from rapid_dse.parallel.layouts import IntColumn, Layouts
from rapid_dse.simulate.arrangement import Arrangement, alike_at_end
from rapid_dse.simulate.communication import gradient_bytes
from rapid_dse.simulate.held_weights import Weights, stage_weights
from rapid_dse.simulate.layer_kinds import MicroBatchTimes
from rapid_dse.simulate.offload import offloaded_update
from rapid_dse.simulate.sharding import bucket, embedding_weights, reduction_overlap, trained_table
from rapid_dse.simulate.slots import Passes

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class FirstStage:
    """What the layers of the first stage take for a micro-batch, s, ``(n_layouts,)`` or ``(n_dimensions, n_layouts)``.

    Attributes:
        forward, backward: their passes.
        forward_busy, backward_busy: seconds of each pass for which transfers take the port of each network dimension, sends included.
        reduced: transfers of ZeRO 2 and 3 in the backward pass.
    """

    forward: FloatColumn
    backward: FloatColumn
    forward_busy: NDArray[np.float64]
    backward_busy: NDArray[np.float64]
    reduced: FloatColumn

    @classmethod
    def of(cls, counts: IntColumn, times: MicroBatchTimes, passes: Passes, hops: IntColumn) -> FirstStage:
        """That of stages of so many layers of each kind (``counts``), with so many ``hops`` to the next one each way."""
        sends = hops * times.hop_busy
        ahead, back = (summed(counts[:, None], busy) + sends for busy in (times.forward_busy, times.backward_busy))
        return cls(*passes, ahead, back, summed(counts, times.reduced))


@dataclass(frozen=True)
class Ending:
    """What ends a step before anything hides it, ``(n_layouts,)`` each: transfers of gradients and weights, what tensor-parallel ranks hold
    whole (``replicated``), a tied table, the optimizer. ``overlap``: share of the backward pass that gradients may hide behind, ``last``:
    share of them in the last bucket."""

    gradients: Occupied
    weights: Occupied
    replicated: FloatColumn
    tied: FloatColumn
    optimizer: FloatColumn
    overlap: FloatColumn
    last: FloatColumn

    def exposed(self, scenario: Scenario, first: FirstStage) -> FloatColumn:
        """Exposed seconds of the transfers of gradients and weights, ``(n_layouts,)``.

        Gradients hide behind the last backward pass beside the layers' own transfers, all but the last bucket; new weights behind the next
        forward pass.
        """
        # collectives of one group follow each other: a gather under way takes its time from the reductions behind it
        alone = Occupied(self.gradients.seconds + first.reduced, self.gradients.busy)
        late = exposed(alone, self.overlap, Window(first.backward, first.backward_busy))
        exposed_seconds = np.maximum(np.minimum(late, self.gradients.seconds), self.gradients.seconds * self.last)
        overlap = scenario.software.overlap.parameter_gather_overlap
        return exposed_seconds + exposed(self.weights, overlap, Window(first.forward, first.forward_busy))


def endings(scenario: Scenario, layouts: Layouts, arranged: Arrangement, device: OperatorModel) -> Shared[Ending]:
    """The end of each layout's step, found once for layouts that are alike in it."""
    first, kind = alike_at_end(layouts, arranged.of_stages)
    return Shared(_ending(scenario, layouts.take(first), arranged.take(first), device), kind)


def _ending(scenario: Scenario, layouts: Layouts, arranged: Arrangement, device: OperatorModel) -> Ending:
    """That of each layout, from the weights of its first stage."""
    software, end = scenario.software, arranged.end
    weights = stage_weights(scenario, layouts, arranged.stages.alone("first"), trained=True).first_stage()
    sent = weights.times(gradient_bytes(scenario))
    # a bucket holds whole tensors, and the embedding's gradient is the last of all
    table = trained_table(scenario, embedding_weights(scenario, layouts)).times(gradient_bytes(scenario))
    return Ending(
        gradients=Occupied.by(end.gradients),
        weights=Occupied.by(end.weights),
        replicated=end.replicated.seconds,
        tied=end.tied.seconds,
        optimizer=update_seconds(scenario, layouts, weights, device),
        overlap=reduction_overlap(software, layouts),
        last=np.minimum(1.0, np.maximum(bucket(scenario, layouts), table.total) / np.maximum(1.0, sent.total)),
    )


def update_seconds(scenario: Scenario, layouts: Layouts, weights: Weights, device: OperatorModel) -> FloatColumn:
    """The optimizer's time for a stage of so many trained parameters, of which ZeRO leaves each rank a share, s, ``(n_layouts,)``."""
    software = scenario.software
    if not scenario.model.of_kind.looped:
        return np.zeros(len(layouts))
    seconds = offloaded_update(scenario, weights.sharded(layouts, layouts.sharding.optimizer), device)
    library = scenario.narrow == "fp4" or software.precision.fp8_library == "transformer_engine"
    if scenario.narrow and library and not software.precision.fp8_parameters and scenario.workload.trains_all:
        # weights and their transposes are cast once a step
        hbm_bytes = 2.0 + 2.0 * NARROW_BYTES[scenario.narrow]
        return seconds + device.elementwise(weights.total * (hbm_bytes * software.precision.fp8_cast_passes))
    return seconds
